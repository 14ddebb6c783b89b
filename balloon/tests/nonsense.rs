//! A machine that answers nonsense: whatever it says, no step panics, and each ends.

mod common;

use balloon::{Balloon, StepStorage, Wipe};
use common::{Guest, step, words};
use pv_tests::nonsense::{Nonsense, seeds};

#[test]
fn each_step_ends_whatever_a_machine_says() {
    for seed in seeds(20) {
        let guest = Guest::new();
        let nonsense = Nonsense::new(&guest.model, seed);
        let around = guest.on(&nonsense);
        let mut words = words();
        let Ok((mut balloon, accounts)) = Balloon::new(&around, &mut words, 8, Wipe::Always) else {
            continue;
        };
        assert!(!accounts.to_string().is_empty());
        balloon.add_empty(guest.p2m, guest.empty()).expect("nothing is there");
        let mut stack = guest.stack();
        let mut storage = StepStorage::<600>::new();
        for target in [100, 3_000, 0, u64::MAX, 2_000, 2_001] {
            balloon.set_target(target);
            for _ in 0..8 {
                let step = step(around, &mut balloon, &mut stack, &mut storage);
                assert!(!step.accounts.to_string().is_empty());
            }
        }
        assert!(balloon.aside(guest.p2m).all(|pfn| balloon.holds(pfn)));
    }
}
