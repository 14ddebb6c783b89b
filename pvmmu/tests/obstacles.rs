//! What stands in the way of a table that is linked into a live tree, or of a tree that is to be
//! none any more: named, and counted.
#![expect(unsafe_code, reason = "changes tables of its own; the test exists only in the model")]

#[macro_use]
mod common;

use common::{TestGuest, alias, build, guest, no_pool, page, tools};
use hypercall::{
    BatchStorage, Call, DomId, Errno, FrameAccess as _, FrameSource as _, GuestVa, Hypercalls as _,
    Level, MmuUpdate, Pfn, Pte, PteFlags, Request, Slot,
};
use p2m::{Guest, walk};
use pvmmu::obstacles::Obstacle;
use pvmmu::{MapError, Pages, PinFailure, PooledTable, TablePool, load_root};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

/// A new table is filled, made read-only where the test maps it, and linked; but somebody maps it
/// writable at another place. Each level in turn.
#[test]
fn a_link_that_is_refused_names_the_table_at_fault_and_every_mapping_in_its_way() {
    for (at_fault, level) in [(0, Level::L1), (1, Level::L2), (2, Level::L3)] {
        scene!(test, guest, pool);
        let (mut storage, mut tables) = (BatchStorage::<40, 8>::new(), no_pool());
        let mut batch = storage.batch();
        let mut pgd = build(&guest, 4, &mut pool).pin(&guest, &mut batch).expect("pinned");
        let windows: Vec<_> = (0..6).map(|_| pool.take().expect("a frame")).collect();
        // A chain takes its page behind its first table.
        let next: Vec<_> = (0..4).map(|_| pool.take().expect("a frame")).collect();
        let table = [&next[0], &next[2], &next[3]][at_fault].pfn();
        next.into_iter().rev().for_each(|frame| pool.give(frame));
        for window in &windows {
            alias(&guest, window.pfn(), table);
        }
        let free = pool.len();
        let far = Pages::one(GuestVa::new(9 << 39).expect("user half"));
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        let refused = pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect_err("in the way");
        let MapError::LinkRefused { va, level: named, table: pfn, error, obstacles } =
            refused.error
        else {
            panic!("{refused}")
        };
        assert_eq!((va, named, pfn), (far.start, level, table), "{refused}");
        assert_eq!(error.error.errno, Errno::EINVAL);
        assert_eq!((obstacles.count(), obstacles.first().count()), (6, 4), "{refused}");
        let told = refused.to_string();
        assert!(told.starts_with(&format!("{level} table pfn {table} at ")), "{told}");
        assert!(told.contains("6 in the way: ") && told.ends_with("2 more like these"), "{told}");
        for (obstacle, window) in obstacles.first().zip(&windows) {
            let Obstacle::Writable(place) = obstacle else { panic!("{refused}") };
            assert_eq!(place.va, direct_va(&guest, window.pfn()));
        }
        assert_eq!(pool.len(), free, "everything came back");
        test.check();
        for window in windows {
            alias(&guest, window.pfn(), window.pfn());
            pool.give(window);
        }
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect("nothing is in the way");
        pgd.destroy(&mut with).expect("destroyed");
        test.check();
    }
}

/// Where the direct mapping shows a frame.
fn direct_va(guest: &Guest<'_, Model>, pfn: Pfn) -> GuestVa {
    guest.machine().direct_map(pfn).expect("mapped")
}

/// Writes one entry of a live table.
fn write(guest: &Guest<'_, Model>, slot: Slot, pte: Pte) {
    let updates = [MmuUpdate::set(slot, pte)];
    let mut calls = [Call::new(Request::MmuUpdate(&updates, DomId::SELF))];
    // SAFETY: the test exists only in the model.
    unsafe { guest.machine().issue(&mut calls) }.expect("issued");
    calls[0].result().expect("written");
}

/// Xen takes no table into a pool that somebody maps writable.
#[test]
fn a_pool_that_is_not_filled_names_the_table_and_the_mapping_in_its_way() {
    scene!(test, guest, pool);
    let window = pool.take().expect("a frame");
    let free = pool.len();
    let frames: Vec<_> = (0..4).map(|_| pool.take().expect("a frame")).collect();
    let table = frames[2].pfn();
    frames.into_iter().rev().for_each(|frame| pool.give(frame));
    alias(&guest, window.pfn(), table);
    let mut places = [const { None::<PooledTable> }; 4];
    let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
    let mut storage = BatchStorage::<8, 8>::new();
    let refused = tables.fill(&guest, Level::L1, 4, &mut pool, &mut storage.batch());
    let refused = refused.expect_err("in the way");
    let PinFailure::Table { level, pfn, error, .. } = refused.failure else { panic!("{refused}") };
    assert_eq!((refused.done, level, pfn), (2, Level::L1, table), "{refused}");
    assert_eq!((error.errno, refused.obstacles.count()), (Errno::EINVAL, 1), "{refused}");
    let told = direct_va(&guest, window.pfn()).to_string();
    assert!(refused.to_string().contains(&told), "{told} is not in: {refused}");
    assert_eq!(tables.drain(&guest, Level::L1, 9, &mut pool), Ok(2));
    assert_eq!(pool.len(), free);
    test.check();
    alias(&guest, window.pfn(), window.pfn());
    pool.give(window);
    test.check();
}

/// The running tree leads to the L3 table of one that is to be unpinned.
#[test]
fn an_unpin_that_is_refused_names_the_entry_that_still_leads_to_the_table() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut batch = BatchStorage::<40, 8>::new();
    let mut batch = batch.batch();
    let pgd = build(&guest, 4, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let path = walk(&guest, pgd.root(), page(0)).expect("readable");
    let (l3, l1) = (path.at(Level::L3).expect("a table"), path.at(Level::L1).expect("a table"));
    let index = PageTableIndex::new(100);
    let slot = Slot { table: p2m.mfn(test.root).expect("RAM"), index };
    write(&guest, slot, Pte::new(l3.slot.table, PteFlags::TABLE));
    let error = pgd.unpin(&guest, &mut batch).expect_err("it is linked");
    let PinFailure::Protect { table, error: refusal } = error.failure else { panic!("{error}") };
    assert_eq!((table, refusal.errno), (l1.table, Errno::EBUSY));
    assert_eq!((error.undo, error.obstacles.count()), (Ok(()), 1), "{error}");
    let Some(Obstacle::Links(place)) = error.obstacles.first().next() else { panic!("{error}") };
    let through_the_running_tree = (100 << 39) + (page(0).raw() >> 21 << 21);
    assert_eq!((place.level, place.va.raw()), (Level::L2, through_the_running_tree), "{error}");
    assert_eq!(place.pte.mfn(), l1.slot.table);
    assert!(error.to_string().contains("1 in the way: L2 entry"), "{error}");
    test.check();
    write(&guest, slot, Pte::ABSENT);
    let loose = error.pgd.unpin(&guest, &mut batch).expect("nothing leads there");
    common::destroy(&guest, loose, &mut pool);
    test.check();
}

/// No entry is at fault if a vCPU runs on the tree: that is said instead.
#[test]
fn an_unpin_that_is_refused_for_a_vcpu_says_that_no_entry_is_in_the_way() {
    scene!(test, guest, pool);
    let mut batch = BatchStorage::<40, 8>::new();
    let mut batch = batch.batch();
    let pgd = build(&guest, 4, &mut pool).pin(&guest, &mut batch).expect("pinned");
    // SAFETY: the model's test has no Rust objects.
    unsafe { pgd.load(&guest) }.expect("loaded");
    let error = pgd.unpin(&guest, &mut batch).expect_err("it runs");
    assert_eq!((error.undo, error.obstacles.count()), (Ok(()), 0), "{error}");
    assert!(error.to_string().contains("a vCPU runs on the tree"), "{error}");
    // SAFETY: as above.
    unsafe { load_root(&guest, test.root) }.expect("the kernel's root");
    let loose = error.pgd.unpin(&guest, &mut batch).expect("it runs no more");
    common::destroy(&guest, loose, &mut pool);
    test.check();
}
