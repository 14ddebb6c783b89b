//! One trap for several requests, what a refusal leaves behind, and the way back.
//!
//! `cargo run -p hypercall --example batch`: the same lines would run on real Xen.
#![expect(unsafe_code, reason = "submits requests about pages that nobody else uses")]

use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, MmuExtOp, MmuUpdate, PAGE_SIZE, Pte, Slot};
use xen_model::{BootMapping, Model};

/// Where this guest's builder maps page 0.
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

fn main() {
    let machine = Model::builder().pages(1024).boot_mapping(BootMapping::AllPages).build();
    let machine = machine.expect("a guest of 4 MiB on a model of Xen");
    let free = machine.guest().first_free_page().raw();
    let page = |number| VIRT_BASE + (free + number) * PAGE_SIZE as u64;
    let entry = |number| machine.guest().l1_slot(page(number)).expect("mapped");

    // Three pages read-only, and a flush behind the changes: two requests, one trap.
    let mut storage = BatchStorage::<8, 2>::new();
    let mut batch = storage.batch();
    for number in 0..3 {
        let (slot, pte): (Slot, Pte) = entry(number);
        // The old value beside each change makes the batch undoable without another look.
        batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).expect("there is room");
    }
    batch.op(MmuExtOp::tlb_flush_local()).expect("there is room");
    println!("asked for: {batch:?}");

    // A machine that refuses the first request after one of its elements.
    let refusal = Refusal { request: 0, errno: Errno::EINVAL, done: 1 };
    let strict = FailNth::new(&machine, refusal);
    // SAFETY: the pages are free, so that nobody minds what they are mapped like.
    let refused = unsafe { batch.submit(&strict) }.expect_err("it was to be refused");
    println!("refused:   {refused}");
    assert!(!entry(0).1.is_writable() && entry(1).1.is_writable(), "one element took effect");

    batch.invert();
    // SAFETY: as above.
    unsafe { batch.submit(&machine) }.expect("the way back is open");
    assert!((0..3).all(|number| entry(number).1.is_writable()), "all is as it was");
    println!("undone:    all three pages are writable again");
    machine.audit().expect("Xen's own counts add up");
}

#[test]
fn it_runs() {
    main();
}
