//! A machine that answers nonsense: whatever it says, nothing panics, and everything ends.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{Build, OldList, Plan, replace_tables};
use hypercall::BatchStorage;
use pv_tests::booting::Booting;
use pv_tests::nonsense::{Nonsense, seeds};
use xen_model::Role;

#[test]
fn the_direct_map_is_built_or_refused_whatever_a_machine_says() {
    for seed in seeds(60) {
        let booting = Booting::new(Role::DomU, 0x1000);
        let p2m = booting.p2m();
        let nonsense = Nonsense::new(&booting.model, seed);
        let guest = booting.guest(&nonsense, &p2m);
        let memory = booting.memory();
        let plan = Plan::new(&memory).expect("a plan");
        let mut storage = BatchStorage::<16, 4>::new();
        let mut batch = storage.batch();
        // SAFETY: the frames exist only in the model.
        let mut build = unsafe { Build::begin(&memory, plan) };
        for _ in 0..6 {
            match build.round(&guest, &mut batch) {
                Ok(Some(mapped)) => booting.model.guest().set_direct_map(mapped.start, mapped.end),
                Ok(None) => break,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        let mut free = Vec::new();
        let _ = build.finish(|frames| free.push(frames));
        free.sort_by_key(hypercall::Frames::count);
        let Some(frames) = free.pop() else { continue };
        // SAFETY: as above.
        let replaced =
            unsafe { replace_tables(&guest, &memory, OldList::InUse, frames, &mut batch, |_| {}) };
        if let Err(error) = replaced {
            assert!(!error.to_string().is_empty());
        }
    }
}
