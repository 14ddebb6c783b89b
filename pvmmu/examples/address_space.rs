//! The life of an address space: built by plain stores, pinned, changed in batches, destroyed; and
//! what an error says when Xen refuses.
//!
//! `cargo run -p pvmmu --example address_space`: the same lines would run on real Xen.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{TestGuest, guest, page, tools};
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{BatchStorage, Errno, PteFlags};
use pvmmu::{Pages, Pgd, TablePool, Tools};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

fn main() {
    let test = TestGuest::new();
    let (machine, p2m, mut frames) = (Counting::new(&test.model), test.p2m(), test.pool());
    let guest = guest(&test, &machine, &p2m);
    let free = frames.len();
    // What goes to Xen in one trap is bounded by this.
    let mut storage = BatchStorage::<64, 4>::new();
    let mut batch = storage.batch();
    let pages = Pages { start: page(0), count: 40 };

    // While it is loose, an address space is plain memory, and Xen knows nothing of it.
    let mut loose = Pgd::new(&mut Tools::new(guest, &mut frames)).expect("a frame for the root");
    let mapped = loose.map_pages(&mut Tools::new(guest, &mut frames), pages, PteFlags::USER_RW);
    mapped.expect("frames enough");
    assert_eq!(machine.counts().hypercalls, 0);

    // A refusal gives the address space back, as it was, and says what stood in the way.
    let refusal = Refusal { request: 1, errno: Errno::ENOMEM, done: 0 };
    let strict = FailNth::new(&machine, refusal);
    let error = loose.pin(&common::guest(&test, &strict, &p2m), &mut batch);
    let error = error.map(drop).expect_err("it was to be refused");
    println!("{error}");
    let before = machine.counts();
    let mut pgd = error.pgd.pin(&guest, &mut batch).expect("nothing stands in the way");
    let cost = machine.counts() - before;
    println!("pinned: {} hypercalls, {} elements", cost.hypercalls, cost.entries);

    // Now every change is a request; forty of them are one trap.
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut frames);
    let before = machine.counts();
    pgd.edit(&mut with, |edit| {
        edit.protect(Pages { start: page(0), count: 20 }, READ_ONLY)?;
        edit.unmap(Pages { start: page(20), count: 20 })
    })
    .expect("nothing is refused");
    let cost = machine.counts() - before;
    println!("changed: {} hypercalls, {} elements", cost.hypercalls, cost.entries);
    assert_eq!(cost.hypercalls, 1);

    pgd.destroy(&mut with).expect("no vCPU runs on it");
    assert_eq!(frames.len(), free, "every frame is back");
    test.check();
}

#[test]
fn it_runs() {
    main();
}
