//! A machine that refuses several requests: each where it is told, whatever else is refused, and
//! what it was asked is written down.
#![expect(unsafe_code, reason = "asking is unsafe; the machine of these tests has no memory")]

mod support;

use core::cell::Cell;

use hypercall::{
    Asked, Assist, Call, DomId, Domains, Errno, Error, Exchange, Extent, FailEach, GrantAccess,
    GrantMap, GrantRef, GrantStatus, Grants as _, Hypercall, Hypercalls as _, MemoryOp, Mfn,
    MmuExtOp, MmuUpdate, Outcome, Refusal, Refusals, Request, Reservation,
};
use support::{Inside, list, va};

const fn refusal(request: u64, errno: Errno, done: usize) -> Refusal {
    Refusal { request, errno, done }
}

#[test]
fn two_requests_of_one_multicall_are_refused_and_the_others_go_through() {
    let refusals = [refusal(3, Errno::EBUSY, 0), refusal(1, Errno::ENOMEM, 2)];
    let plan = Refusals::new(&refusals, &[]);
    let machine = FailEach::new(Inside::default(), &plan);
    let updates = [MmuUpdate::EMPTY; 5];
    let ops = [MmuExtOp::tlb_flush_all(); 2];
    let many = Call::new(Request::MmuUpdate(&updates, Domains::SELF));
    let few = Call::new(Request::MmuExt(&ops, DomId::SELF));
    let mut calls = [many, many, few, few, few];
    // SAFETY: the machine does nothing, here and below.
    assert_eq!(unsafe { machine.issue(&mut calls) }, Ok(()));
    let outcomes = calls.map(|call| call.outcome);
    let refused = |errno, done| Outcome::Refused { errno, done };
    let (first, second) = (refused(Errno::ENOMEM, 2), refused(Errno::EBUSY, 0));
    assert_eq!(outcomes, [Outcome::Done, first, Outcome::Done, second, Outcome::Done]);
    let arrived = ["mmu_update x5", "mmu_update x2", "mmuext_op x2", "mmuext_op x2"];
    assert_eq!(machine.inner().take(), arrived);
    assert_eq!((plan.seen(), plan.refused()), (5, 2));
}

#[test]
fn two_elements_of_one_grant_request_are_refused_and_those_around_them_are_mapped() {
    let refusals = [refusal(0, Errno::EBUSY, 3), refusal(0, Errno::EBUSY, 1)];
    let plan = Refusals::new(&refusals, &[]);
    let machine = FailEach::new(Inside::default(), &plan);
    let mut maps = [GrantMap::kernel(va(), DomId(1), GrantRef(8), GrantAccess::ReadOnly); 6];
    // SAFETY: as above.
    assert_eq!(unsafe { machine.grant_map(&mut maps) }, Ok(()));
    let (done, bad) = (GrantStatus::OKAY, GrantStatus::GENERAL_ERROR);
    assert_eq!(maps.map(|map| map.status()), [done, bad, done, bad, done, done]);
    assert_eq!(machine.inner().take(), ["map x1", "map x1", "map x2"]);
}

#[test]
fn what_was_asked_is_written_down_as_far_as_there_is_room() {
    let asked = [const { Cell::new(None) }; 2];
    let plan = Refusals::new(&[], &asked);
    let machine = FailEach::new(Inside::default(), &plan);
    let mut extents = [Extent::from_mfn(Mfn::new(1)); 4];
    let mut op = MemoryOp::Populate(list(&mut extents));
    // SAFETY: as above.
    assert_eq!(unsafe { machine.memory_op(&mut op) }, Ok(4));
    // Two machines of one plan are counted as one.
    let another = FailEach::new(Inside::default(), &plan);
    assert_eq!(another.enable_assist(Assist::M2pStrict), Ok(()));
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
    let populate = Hypercall::MemoryOp("populate_physmap");
    let expected = [
        Some(Asked { hypercall: populate, elements: 4 }),
        Some(Asked { hypercall: Hypercall::VmAssist, elements: 1 }),
    ];
    assert_eq!(asked.each_ref().map(Cell::get), expected);
    assert_eq!((plan.seen(), plan.refused()), (3, 0));
}

#[test]
fn an_exchange_is_refused_after_whole_chunks() {
    // Four frames against one extent of four, twice; and one extent against four frames, twice.
    for (orders, lengths, given) in [([0, 2], [8, 2], 4), ([2, 0], [2, 8], 1)] {
        let refusals = [refusal(0, Errno::ENOMEM, 1)];
        let asked = [const { Cell::new(None) }; 1];
        let plan = Refusals::new(&refusals, &asked);
        let machine = FailEach::new(Inside::default(), &plan);
        let mut extents = lengths.map(|length| vec![Extent::default(); length]);
        let [give, take] = &mut extents;
        let exchange = Exchange {
            give: Reservation { order: orders[0], ..list(give) },
            take: Reservation { order: orders[1], ..list(take) },
        };
        // SAFETY: as above.
        let answer = unsafe { machine.memory_op(&mut MemoryOp::Exchange(exchange)) };
        let hypercall = Hypercall::MemoryOp("exchange");
        assert_eq!(answer, Err(Error { hypercall, errno: Errno::ENOMEM, done: given }));
        assert_eq!(machine.inner().take(), [format!("exchange x{given}")]);
        assert_eq!(asked[0].get(), Some(Asked { hypercall, elements: 2 }));
    }
}
