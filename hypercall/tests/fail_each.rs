//! A machine that refuses several requests and fails several accesses: each where it is told,
//! whatever else is refused, and what it was asked is written down.
#![expect(unsafe_code, reason = "asking is unsafe; the machine of these tests has no memory")]

mod support;

use core::cell::Cell;

use hypercall::grants::{GrantAccess, GrantMap, GrantRef, GrantStatus, Grants as _};
use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::middleware::{Accessed, Asked, FailEach, Refusal, Refusals};
use hypercall::{
    AccessError, Assist, Call, DomId, Errno, Error, FrameAccess, Hypercall, Hypercalls as _, Mfn,
    MmuExtOp, MmuUpdate, Outcome, Pfn, Pte, Request,
};
use support::{Inside, list, va};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

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
    let many = Call::new(Request::MmuUpdate(&updates, DomId::SELF));
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

/// Refuses an exchange of lists of these orders and lengths after its first chunk. Returns what the
/// machine inside was asked, what was recorded and what was answered.
fn refuse_exchange(orders: [u32; 2], lengths: [usize; 2]) -> (Vec<String>, usize, u32) {
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
    let Error { errno, done, .. } = answer.expect_err("it is refused");
    assert_eq!(errno, Errno::ENOMEM);
    (machine.inner().take(), asked[0].get().expect("recorded").elements, done)
}

#[test]
fn an_exchange_is_refused_after_whole_chunks() {
    // Four frames against one extent of four, twice; and one extent against four frames, twice.
    for (orders, lengths, given) in [([0, 2], [8, 2], 4), ([2, 0], [2, 8], 1)] {
        let expected = (vec![format!("exchange x{given}")], 2, given);
        assert_eq!(refuse_exchange(orders, lengths), expected);
    }
}

#[test]
fn an_exchange_of_an_order_that_no_word_holds_is_refused_too() {
    assert_eq!(refuse_exchange([0, 64], [8, 2]), (vec![], 1, 0));
    assert_eq!(refuse_exchange([u32::MAX, 0], [2, 8]), (vec!["exchange x1".into()], 2, 1));
}

/// Every access that can fail, once: its name, and whether it writes.
fn accesses(machine: &impl FrameAccess) -> Vec<(&'static str, bool, Result<(), AccessError>)> {
    let (pfn, index) = (Pfn::new(8), PageTableIndex::new(3));
    let (mut ptes, mut bytes) = ([Pte::ABSENT; 2], [0; 2]);
    // SAFETY: the machine has no memory, here and below.
    let write_entry = unsafe { machine.write_entry(pfn, index, Pte::ABSENT) };
    // SAFETY: as above.
    let write_entries = unsafe { machine.write_entries(pfn, index, &ptes) };
    // SAFETY: as above.
    let write_bytes = unsafe { machine.write_bytes(pfn, 0, &bytes) };
    // SAFETY: as above.
    let clear_frame = unsafe { machine.clear_frame(pfn) };
    vec![
        ("write_entry", true, write_entry),
        ("write_entries", true, write_entries),
        ("write_bytes", true, write_bytes),
        ("clear_frame", true, clear_frame),
        ("read_entry", false, machine.read_entry(pfn, index).map(drop)),
        ("read_entries", false, machine.read_entries(pfn, index, &mut ptes)),
        ("next_present", false, machine.next_present(pfn, 0..2).map(drop)),
        ("read_bytes", false, machine.read_bytes(pfn, 0, &mut bytes)),
        ("direct_map", false, machine.direct_map(pfn).map(drop)),
    ]
}

#[test]
fn each_access_fails_when_its_turn_comes_with_an_error_that_it_may_have() {
    let machine = Model::builder().build().expect("a guest");
    for failing in 0..9 {
        let made = [const { Cell::new(None) }; 9];
        let number = [failing];
        let plan = Refusals::new(&[], &[]).and_accesses(&number, &made);
        let machine = FailEach::new(&machine, &plan);
        for (at, (method, writes, result)) in (0..).zip(accesses(&machine)) {
            let pfn = Pfn::new(8);
            let expected = match writes && at % 2 == 0 {
                true => AccessError::ReadOnly(pfn),
                false => AccessError::Unmapped(pfn),
            };
            let expected = if at == failing { Err(expected) } else { Ok(()) };
            assert_eq!(result, expected, "{method}");
            let access = Accessed { method, pfn, requests: 0 };
            assert_eq!(made[usize::try_from(at).expect("few")].get(), Some(access));
        }
        assert_eq!((plan.accessed(), plan.seen(), plan.refused()), (9, 0, 1));
    }
}

#[test]
fn an_access_knows_how_many_requests_came_before_it() {
    let made = [const { Cell::new(None) }; 2];
    let plan = Refusals::new(&[], &[]).and_accesses(&[], &made);
    let machine = FailEach::new(Inside::default(), &plan);
    let read = || machine.read_bytes(Pfn::new(8), 0, &mut [0]);
    assert_eq!(read(), Ok(()));
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
    assert_eq!(read(), Ok(()));
    let before = made.each_ref().map(|access| access.get().map(|access| access.requests));
    assert_eq!(before, [Some(0), Some(1)]);
    let last = made[1].get().map(|access| access.to_string());
    assert_eq!(last.as_deref(), Some("read_bytes of pfn 00008, behind 1 requests"));
}
