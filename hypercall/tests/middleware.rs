//! Machines around machines: what passes is counted, written down, or refused, and reaches the
//! machine inside as it should.
#![expect(unsafe_code, reason = "asking is unsafe; the machine of these tests has no memory")]

mod support;

use hypercall::grants::{
    GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants,
};
use hypercall::memory::{Extent, MemoryOp};
use hypercall::middleware::{Counting, Counts, FailNth, Refusal};
use hypercall::{
    Assist, Call, DomId, Errno, Error, Hypercall, Hypercalls, Mfn, MmuExtOp, MmuUpdate, Request,
};
use support::{Inside, list, mapping, va};

const UPDATES: [MmuUpdate; 3] = [MmuUpdate::EMPTY; 3];

/// Whether each of [`LIFE`]'s requests worked, and how many elements took effect.
type Answers = Vec<Result<usize, usize>>;

/// What a machine is asked in [`live`], elements included, as it arrives inside.
const LIFE: [&str; 11] = [
    "mmu_update x3",
    "mmuext_op x2",
    "update_va_mapping x1",
    "increase_reservation x3",
    "decrease_reservation x2",
    "populate_physmap x4",
    "maximum_ram_page x0",
    "M2pStrict",
    "map x3",
    "unmap x2",
    "table x1",
];

/// Asks one of everything.
fn live<M: Hypercalls + Grants>(machine: &M) -> Answers {
    let ops = [MmuExtOp::tlb_flush_all(); 2];
    let mut calls = [
        Call::new(Request::MmuUpdate(&UPDATES, DomId::SELF)),
        Call::new(Request::MmuExt(&ops, DomId::SELF)),
        Call::new(Request::VaMapping(mapping())),
    ];
    // SAFETY: the machine inside does nothing with what it is asked, here and below.
    assert_eq!(unsafe { machine.issue(&mut calls) }, Ok(()));
    let mut answers: Answers = calls
        .iter()
        .map(|call| call.result().map(|()| call.done()).map_err(|error| error.done as usize))
        .collect();
    let mut extents = [Extent::from_mfn(Mfn::new(0x20)); 4];
    for count in [3, 2, 4] {
        let list = list(&mut extents[..count]);
        let mut op = match count {
            3 => MemoryOp::Increase(list),
            2 => MemoryOp::Decrease(list),
            _ => MemoryOp::Populate(list),
        };
        // SAFETY: as above.
        let done = unsafe { machine.memory_op(&mut op) }.expect("short at worst");
        let done = usize::try_from(done).expect("a count");
        answers.push(if done == count { Ok(count) } else { Err(done) });
    }
    // SAFETY: as above.
    let ram = unsafe { machine.memory_op(&mut MemoryOp::MaximumRamPage) };
    answers.push(ram.map(|_| 0).map_err(|_| 0));
    answers.push(machine.enable_assist(Assist::M2pStrict).map(|()| 0).map_err(|_| 0));
    let mut maps = [GrantMap::kernel(va(), DomId(1), GrantRef(8), GrantAccess::ReadOnly); 3];
    // SAFETY: as above.
    assert_eq!(unsafe { machine.grant_map(&mut maps) }, Ok(()));
    answers.push(first_refused(maps.iter().map(GrantMap::status)));
    let mut unmaps = [GrantUnmap::kernel(va(), GrantHandle(1)); 2];
    // SAFETY: as above.
    assert_eq!(unsafe { machine.grant_unmap(&mut unmaps) }, Ok(()));
    answers.push(first_refused(unmaps.iter().map(GrantUnmap::status)));
    answers.push(machine.grant_table(&mut [Mfn::new(1)]).map(|()| 1).map_err(|_| 0));
    answers
}

/// `Ok` with their number if all are fine; else the place of the only one that is not.
fn first_refused(
    statuses: impl ExactSizeIterator<Item = GrantStatus> + Clone,
) -> Result<usize, usize> {
    let count = statuses.len();
    let bad: Vec<_> =
        (0..).zip(statuses).filter(|(_, status)| *status != GrantStatus::OKAY).collect();
    match bad[..] {
        [] => Ok(count),
        [(at, GrantStatus::GENERAL_ERROR)] => Err(at),
        _ => panic!("{bad:?}"),
    }
}

fn all_done() -> Answers {
    [3, 2, 1, 3, 2, 4, 0, 0, 3, 2, 1].map(Ok).to_vec()
}

#[test]
fn all_that_passes_is_counted() {
    let machine = Counting::new(Inside::default());
    assert_eq!(machine.counts(), Counts::default());
    assert_eq!(live(&machine), all_done());
    let once = Counts { hypercalls: 9, entries: 6 + 9 + 5, refused: 0 };
    assert_eq!(machine.counts(), once);
    assert_eq!(machine.inner().take(), LIFE);
    // A reference to a machine is one, too.
    assert_eq!(live(&&machine), all_done());
    assert_eq!(machine.inner().take(), LIFE);
    assert_eq!(machine.counts() - once, once);
    // SAFETY: nothing is asked.
    assert_eq!(unsafe { machine.issue(&mut []) }, Ok(()));
    assert_eq!(machine.counts() - once, once, "no trap");
}

#[test]
fn what_is_refused_is_counted() {
    for request in 0..LIFE.len() as u64 {
        let refusal = Refusal { request, errno: Errno::EBUSY, done: 0 };
        let machine = Counting::new(FailNth::new(Inside::default(), refusal));
        live(&machine);
        // Operations on extents come up short, which is no refusal.
        let refused = u64::from(!(3..6).contains(&request));
        assert_eq!(machine.counts(), Counts { hypercalls: 9, entries: 20, refused }, "{request}");
    }
    let count_refused = Counts { hypercalls: 7, entries: 20, refused: 3 };
    let before = Counts { hypercalls: 4, entries: 15, refused: 1 };
    assert_eq!(count_refused - before, Counts { hypercalls: 3, entries: 5, refused: 2 });
}

#[test]
fn exactly_the_nth_request_is_refused_where_it_is_told() {
    for (request, done) in (0..=LIFE.len() as u64).flat_map(|n| (0..4).map(move |done| (n, done))) {
        let refusal = Refusal { request, errno: Errno::EBUSY, done };
        let machine = FailNth::new(Inside::default(), refusal);
        assert_eq!((machine.seen(), machine.has_refused()), (0, false));
        let mut expected = all_done();
        let at = usize::try_from(request).expect("a small number");
        let refused = expected.get_mut(at);
        let effective = refused.map_or(0, |answer| {
            let length = answer.expect("worked");
            let done = done.min(length.saturating_sub(1));
            *answer = Err(done);
            done
        });
        assert_eq!(live(&machine), expected, "{refusal:?}");
        assert_eq!((machine.seen(), machine.has_refused()), (11, request < 11));
        let arrived = machine.inner().take();
        let mut others = LIFE.map(str::to_owned).to_vec();
        if request < 11 {
            let name = others.remove(at);
            let name = name.split(" x").next().expect("a name");
            let parts: Vec<_> = match name {
                // Those around the refused element go through, in two parts.
                "map" => vec![format!("map x{effective}"), format!("map x{}", 2 - effective)],
                "unmap" => vec![format!("unmap x{effective}"), format!("unmap x{}", 1 - effective)],
                _ if effective > 0 => vec![format!("{name} x{effective}")],
                _ => Vec::new(),
            };
            others.splice(at..at, parts);
        }
        assert_eq!(arrived, others, "{refusal:?}");
    }
}

#[test]
fn a_refusal_is_due_only_once_its_request_has_come() {
    let refusal = Refusal { request: 1, errno: Errno::EINVAL, done: 0 };
    let machine = FailNth::new(Inside::default(), refusal);
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
    assert_eq!((machine.seen(), machine.has_refused()), (1, false));
    let error = Error { hypercall: Hypercall::VmAssist, errno: Errno::EINVAL, done: 0 };
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Err(error));
    assert_eq!((machine.seen(), machine.has_refused()), (2, true));
    assert_eq!(machine.enable_assist(Assist::M2pStrict), Ok(()));
    // SAFETY: nothing is mapped.
    assert_eq!(unsafe { machine.grant_map(&mut []) }, Ok(()));
    // SAFETY: nothing is unmapped.
    assert_eq!(unsafe { machine.grant_unmap(&mut []) }, Ok(()));
    assert_eq!(machine.seen(), 3);
}
