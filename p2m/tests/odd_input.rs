//! Numbers that nobody has a page for, at the ends of what a word holds: each is refused by its
//! name, and none is a panic.
#![cfg(not(loom))]

mod common;

use common::{Storage, audit, opened, split};
use hypercall::{FrameAccess as _, GuestVa, Mfn, PAGE_SIZE, Pfn};
use p2m::kexec::KexecState;
use p2m::runs::{Census, Grain, Run};
use p2m::{
    DirectEntries, DirectMap, FrameList, Leaves as _, NoDirectEntry, P2mEntry, P2mError, Pfns, walk,
};
use pv_tests::window::{CAPACITY, WindowMachine};

const ENDS: [u64; 6] = [1 << 40, 1 << 52, (1 << 55) + 1, 1 << 63, u64::MAX - 1, u64::MAX];

#[test]
fn a_page_of_the_list_that_no_map_has_is_refused_whatever_its_number() {
    let machine = WindowMachine::new(5);
    let (frames, mut pool) = split(&machine);
    let (p2m, window) = opened(&machine, frames);
    let guest = machine.guest(&machine, &p2m);
    let mut middles = [const { None }; 1];
    let top = hypercall::FrameSource::take(&mut pool).expect("a frame");
    let mut list = FrameList::new(top, &mut middles);
    list.build(&guest, &window, &mut pool).expect("a short map");
    for leaf in ENDS {
        let refused = window.leaf(&guest, leaf);
        assert!(matches!(refused, Err(P2mError::OutOfRange { .. })), "{leaf:#x}: {refused:?}");
        let refused = machine.builder_list().leaf(&guest, leaf);
        assert!(matches!(refused, Err(P2mError::OutOfRange { .. })), "{leaf:#x}: {refused:?}");
        assert!(list.lookup(&guest, leaf).is_err(), "{leaf:#x}");
    }
}

#[test]
fn a_window_neither_grows_nor_reserves_past_its_end_whatever_it_is_asked_for() {
    let machine = WindowMachine::new(6);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (guest, len, free) = (machine.guest(&machine, &p2m), p2m.len(), pool.len());
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    for end in ENDS.into_iter().chain([CAPACITY + 1]) {
        window.grow(&guest, None, end, &mut batch).expect_err("too far");
        for pfns in [Pfns::new(Pfn::new(end), 1), Pfns::new(Pfn::new(0), end)] {
            window.reserve(&guest, None, pfns, &mut pool, &mut batch).expect_err("too far");
        }
        let none = Pfns::new(Pfn::new(end), 0);
        let _ = window.reserve(&guest, None, none, &mut pool, &mut batch);
    }
    assert_eq!((p2m.len(), pool.len()), (len, free));
    audit(&machine, &p2m);
    machine.check();
}

#[test]
fn a_number_that_is_no_pfn_is_refused_by_whatever_takes_one() {
    let machine = WindowMachine::new(7);
    let p2m = machine.builder_map();
    let guest = machine.guest(&machine, &p2m);
    let va = GuestVa::new(0xffff_ffff_ffff_f000).expect("the last page");
    for number in ENDS {
        let (pfn, mfn) = (Pfn::new(number), Mfn::new(number));
        assert_eq!(p2m.entry(pfn), Err(P2mError::OutOfRange { pfn, len: p2m.len() }));
        assert!(p2m.machine_frame(pfn).is_err() && p2m.check_can_fill(pfn).is_err());
        assert!(guest.pfn(mfn).is_err(), "{mfn}");
        assert_eq!(DirectEntries::new(guest).find(pfn), Err(NoDirectEntry(pfn)));
        assert!(DirectMap::default().entry_of(&guest, mfn).is_err());
        assert!(walk(&guest, pfn, va).is_err());
        let pfns = Pfns::new(pfn, number);
        assert_eq!(p2m.runs(pfns, Grain::Frames).count(), 0);
        assert_eq!(Census::of(&p2m, pfns).total(), 0);
        let ram = [pfns, p2m.all(), Pfns::new(Pfn::new(0), number)];
        let state = KexecState { p2m: &p2m, ram: &ram, granted: None, maps: None };
        assert!(state.kexec_is_safe().is_ok());
        assert!(machine.direct_map(pfn).is_err());
        assert!(machine.read_bytes(pfn, PAGE_SIZE, &mut [0; 8]).is_err());
    }
}

#[test]
fn a_run_is_put_in_words_wherever_it_ends() {
    for number in ENDS {
        let (pfns, mfn) = (Pfns::new(Pfn::new(number), number), Mfn::new(number));
        let foreign = P2mEntry::Foreign { owner: hypercall::DomId::IO, mfn };
        for first in [P2mEntry::Ram(mfn), P2mEntry::Absent, P2mEntry::Identity, foreign] {
            assert!(Run { pfns, first }.to_string().starts_with("pfn "));
        }
    }
}
