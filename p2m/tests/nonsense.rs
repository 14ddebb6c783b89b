//! A machine that answers nonsense: whatever it says, nothing panics, and everything ends.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![cfg(not(loom))]

mod common;

use common::{Storage, opened, split};
use hypercall::{FrameSource as _, Mfn, Pfn};
use p2m::audit::Audit;
use p2m::{DirectEntries, FrameList, Pfns, walk};
use pv_tests::nonsense::{Nonsense, seeds};
use pv_tests::window::{GIB, LEAF, WindowMachine};

#[test]
fn a_window_is_opened_or_refused_whatever_a_machine_says() {
    for seed in seeds(24) {
        let machine = WindowMachine::of(1024, 3);
        let nonsense = Nonsense::new(&machine, seed);
        let (frames, _) = split(&machine);
        let _ = machine.open(&nonsense, frames, &mut Storage::new().batch());
    }
}

#[test]
fn a_window_changes_or_is_refused_whatever_a_machine_says() {
    for seed in seeds(24) {
        let machine = WindowMachine::of(1024, 3);
        let nonsense = Nonsense::new(&machine, seed);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let mut storage = Storage::new();
        let mut batch = storage.batch();
        let guest = machine.guest(&nonsense, &p2m);
        for _ in 0..3 {
            let len = p2m.len();
            let _ = window.grow(&guest, None, len + GIB / 2, &mut batch);
            let pfns = Pfns::new(Pfn::new(len.saturating_sub(LEAF)), 4 * LEAF);
            let _ = window.reserve(&guest, None, pfns, &mut pool, &mut batch);
            let pfns = Pfns::new(Pfn::new(len / 2 + 3), 3 * LEAF);
            // SAFETY: as above.
            let _ = unsafe { window.reserve_identity(&guest, None, pfns, &mut pool, &mut batch) };
        }
        let mut findings = [None; 4];
        let mut audit = Audit::begin(&mut findings);
        audit.run(&guest);
        let Some(top) = pool.take() else { continue };
        let mut middles = [const { None }; 4];
        let mut list = FrameList::new(top, &mut middles);
        let _ = list.build(&guest, &window, &mut pool);
        audit.check_frame_list(&guest, &list, &window);
        assert!(!audit.report().to_string().is_empty());
        for number in 0..200 {
            let _ = DirectEntries::new(guest).find(Pfn::new(number));
            let _ = guest.pfn(Mfn::new(number));
            let _ = walk(&guest, guest.kernel_root(), window.va());
        }
    }
}
