//! A guest is made smaller and larger again, as a toolstack would want it: on the model, in a
//! second.
//!
//! `cargo run -p xen-balloon --example resize`: the same lines would run on real Xen.

use std::error::Error;

use balloon::{Moved, Next, StepStorage, Wipe, frames_of_kib};
use hypercall::middleware::Counting;

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn Error>> {
    let guest = common::Guest::new();
    let machine = Counting::new(&guest.model);
    let mut free = guest.stack();
    // A bit for each pfn there may ever be, and memory for the requests of a step: its size is what
    // bounds a step.
    let mut words = common::words();
    let mut storage = StepStorage::<512>::new();
    let mut balloon = common::begin(&guest, &mut words, Wipe::Always);
    let around = guest.on(&machine);

    // 1. What `xl mem-set` writes into memory/target, and what others may write.
    println!("garbage: {}", frames_of_kib(b"lots").expect_err("it is no number"));
    let target = frames_of_kib(b"8000")?;

    // 2. Out, in steps of two hypercalls. Each says where every pfn is, and what Xen counts.
    balloon.set_target(target);
    loop {
        let step = common::step(around, &mut balloon, &mut free, &mut storage);
        println!("{:?}: {}", step.moved, step.accounts);
        assert!(step.accounts.is_balanced());
        if step.next == Next::Idle {
            break;
        }
    }
    assert_eq!(balloon.ballooned(), common::PAGES - target);

    // 3. In again, and meanwhile other domains take all memory but 300 frames. Nothing is lost, and
    // the balloon says how long it would be in vain to ask again: it has no clock, the caller has.
    balloon.set_target(common::PAGES);
    guest.model.leave_free(300);
    let step = common::settle(around, &mut balloon, &mut free, &mut storage);
    let Next::Wait { why, pause } = step.next else { panic!("there is no memory: {step:?}") };
    println!("{:?}: {why}; again after {pause} s", step.moved);
    assert!(step.accounts.is_balanced());
    guest.model.leave_free(common::PAGES);

    // 4. A target below the floor is followed as far as it goes, and not forgotten.
    balloon.set_target(1);
    println!("a target of 1: {}", balloon.goal());
    let step = common::settle(around, &mut balloon, &mut free, &mut storage);
    assert_eq!((step.next, step.accounts.populated), (Next::Idle, common::FLOOR));

    // 5. All of it comes back.
    balloon.set_target(common::PAGES);
    let step = common::settle(around, &mut balloon, &mut free, &mut storage);
    assert_eq!((step.next, step.accounts.populated), (Next::Idle, common::PAGES));
    assert_ne!(step.moved, Moved::Nothing);
    println!("{}, after {}", step.accounts, machine.counts().hypercalls);
    guest.check();
    Ok(())
}

#[test]
fn it_runs() -> Result<(), Box<dyn Error>> {
    main()
}
