//! Sections of many changes: what they read, and what becomes of them when they give up.

mod common;

use common::{Guest, context, page, tools};
use hypercall::{BatchStorage, Frame, GuestVa, Level, PteFlags};
use pvmmu::{MapError, Pages, Pgd, TablePool};

#[test]
fn a_page_that_is_missed_on_the_way_makes_nothing_pending_forgotten() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let free = pool.len();
    let mut places = [const { None::<Frame> }; 6];
    let (l1, rest) = places.split_at_mut(2);
    let (l2, l3) = rest.split_at_mut(2);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.fill(&context, (level, 2), &mut pool, &mut batch).expect("filled");
    }
    let pgd = Pgd::new(&context, &mut pool).expect("a root");
    let mut pgd = pgd.pin(&context, &mut batch).expect("pinned");
    let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
    let far = Pages::one(GuestVa::new(5 << 39).expect("user half"));
    pgd.edit(&mut with, |edit| {
        // Through new tables, whose links are pending.
        edit.map_pages(Pages::one(page(0)), PteFlags::USER_RW)?;
        assert_eq!(edit.unmap(far), Err(MapError::NotMapped(far.start)));
        edit.map_pages(Pages::one(page(1)), PteFlags::USER_RW)
    })
    .expect("a section");
    for index in 0..2 {
        let mapping = pgd.translate(&context, page(index)).expect("readable");
        assert!(mapping.is_some(), "page {index}");
    }
    assert_eq!(pgd.tables(&context), Ok(4));
    pgd.destroy(&mut with).expect("destroyed");
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&context, (level, 2), &mut pool).expect("drained");
    }
    assert_eq!(pool.len(), free);
    guest.check();
}
