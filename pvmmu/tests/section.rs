//! Sections of many changes: what they read, and what becomes of them when they give up.

#[macro_use]
mod common;

use common::{build, page, tools};
use hypercall::{BatchStorage, GuestVa, Level, PteFlags};
use pvmmu::{Edit, MapError, Pages, Pgd, PooledTable, TablePool, Tools};

#[test]
fn a_page_that_is_missed_on_the_way_makes_nothing_pending_forgotten() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut places = [const { None::<PooledTable> }; 6];
    let (l1, rest) = places.split_at_mut(2);
    let (l2, l3) = rest.split_at_mut(2);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.fill(&guest, level, 2, &mut pool, &mut batch).expect("filled");
    }
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let far = Pages::one(GuestVa::new(5 << 39).expect("user half"));
    pgd.edit(&mut with, |edit| {
        // Through new tables, whose links are pending.
        edit.map_pages(Pages::one(page(0)), PteFlags::USER_RW)?;
        assert_eq!(edit.unmap(far), Err(MapError::NotMapped(far.start)));
        edit.map_pages(Pages::one(page(1)), PteFlags::USER_RW)
    })
    .expect("a section");
    for index in 0..2 {
        let mapping = pgd.translate(&guest, page(index)).expect("readable");
        assert!(mapping.is_some(), "page {index}");
    }
    assert_eq!(pgd.tables(&guest), Ok(4));
    pgd.destroy(&mut with).expect("destroyed");
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&guest, level, 2, &mut pool).expect("drained");
    }
    assert_eq!(pool.len(), free);
    test.check();
}

/// Reading sends what is pending, and nothing if nothing is.
#[test]
fn a_section_that_walks_sees_what_it_has_written() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 8, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let asked = || machine.counts().hypercalls;
    let before = asked();
    pgd.edit(&mut with, |edit| {
        let is_mapped = |edit: &mut Edit<'_, '_, '_, _, _>, at| {
            let leaf = edit.walk(page(at))?.leaf();
            Ok::<_, MapError>(leaf.is_some_and(|(_, pte)| pte.is_present()))
        };
        assert!(is_mapped(edit, 3)?);
        assert_eq!(asked(), before, "nothing was pending");
        edit.unmap(Pages::one(page(3)))?;
        edit.unmap(Pages::one(page(5)))?;
        assert_eq!(asked(), before, "both are pending");
        assert!(!is_mapped(edit, 3)? && !is_mapped(edit, 5)? && is_mapped(edit, 4)?);
        assert_eq!((asked(), edit.done()), (before + 1, 2));
        Ok(())
    })
    .expect("a section");
    pgd.destroy(&mut with).expect("destroyed");
    assert_eq!(pool.len(), free);
    test.check();
}
