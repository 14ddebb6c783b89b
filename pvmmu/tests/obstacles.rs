//! What stands in the way of a table that is linked into a live tree, or of a tree that is to be
//! none any more: named, and counted.
#![expect(unsafe_code, reason = "changes tables of its own; the guest exists only in the model")]

#[macro_use]
mod common;

use common::{Guest, alias, build, context, no_pool, page, tools};
use hypercall::{
    BatchStorage, Call, Domains, Errno, Frame, FrameAccess as _, GuestVa, Hypercalls as _, Level,
    MmuUpdate, Pfn, Pte, PteFlags, Request, Slot,
};
use pvmmu::{
    Context, FrameSource as _, MapError, Obstacle, Pages, PinFailure, TablePool, load_root, walk,
};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

/// A new table is filled, made read-only where the guest maps it, and linked; but somebody maps it
/// writable at another place. Each level in turn.
#[test]
fn a_link_that_is_refused_names_the_table_at_fault_and_every_mapping_in_its_way() {
    for (at_fault, level) in [(0, Level::L1), (1, Level::L2), (2, Level::L3)] {
        scene!(guest, context, pool);
        let (mut storage, mut tables) = (BatchStorage::<40, 8>::new(), no_pool());
        let mut batch = storage.batch();
        let mut pgd = build(&context, 4, &mut pool).pin(&context, &mut batch).expect("pinned");
        let windows: Vec<_> = (0..6).map(|_| pool.take().expect("a frame")).collect();
        // A chain takes its page behind its first table.
        let next: Vec<_> = (0..4).map(|_| pool.take().expect("a frame")).collect();
        let table = [&next[0], &next[2], &next[3]][at_fault].pfn();
        next.into_iter().rev().for_each(|frame| pool.give(frame));
        for window in &windows {
            alias(&context, window.pfn(), table);
        }
        let free = pool.len();
        let far = Pages::one(GuestVa::new(9 << 39).expect("user half"));
        let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
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
            assert_eq!(place.va, direct_va(&context, window.pfn()));
        }
        assert_eq!(pool.len(), free, "everything came back");
        guest.check();
        for window in windows {
            alias(&context, window.pfn(), window.pfn());
            pool.give(window);
        }
        let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
        pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect("nothing is in the way");
        pgd.destroy(&mut with).expect("destroyed");
        guest.check();
    }
}

/// Where the direct mapping shows a frame.
fn direct_va(context: &Context<'_, Model>, pfn: Pfn) -> u64 {
    context.machine().direct_map(pfn).expect("mapped").raw()
}

/// Writes one entry of a live table.
fn write(context: &Context<'_, Model>, slot: Slot, pte: Pte) {
    let updates = [MmuUpdate::set(slot, pte)];
    let mut calls = [Call::new(Request::MmuUpdate(&updates, Domains::SELF))];
    // SAFETY: the guest exists only in the model.
    unsafe { context.machine().issue(&mut calls) }.expect("issued");
    calls[0].result().expect("written");
}

/// Xen takes no table into a pool that somebody maps writable.
#[test]
fn a_pool_that_is_not_filled_names_the_table_and_the_mapping_in_its_way() {
    scene!(guest, context, pool);
    let window = pool.take().expect("a frame");
    let free = pool.len();
    let frames: Vec<_> = (0..4).map(|_| pool.take().expect("a frame")).collect();
    let table = frames[2].pfn();
    frames.into_iter().rev().for_each(|frame| pool.give(frame));
    alias(&context, window.pfn(), table);
    let mut places = [const { None::<Frame> }; 4];
    let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
    let mut storage = BatchStorage::<8, 8>::new();
    let refused = tables.fill(&context, (Level::L1, 4), &mut pool, &mut storage.batch());
    let refused = refused.expect_err("in the way");
    let PinFailure::Table { level, pfn, error, .. } = refused.failure else { panic!("{refused}") };
    assert_eq!((refused.done, level, pfn), (2, Level::L1, table), "{refused}");
    assert_eq!((error.errno, refused.obstacles.count()), (Errno::EINVAL, 1), "{refused}");
    let told = format!("{:#018x}", direct_va(&context, window.pfn()));
    assert!(refused.to_string().contains(&told), "{told} is not in: {refused}");
    assert_eq!(tables.drain(&context, (Level::L1, 9), &mut pool), Ok(2));
    assert_eq!(pool.len(), free);
    guest.check();
    alias(&context, window.pfn(), window.pfn());
    pool.give(window);
    guest.check();
}

/// The running tree leads to the L3 table of one that is to be unpinned.
#[test]
fn an_unpin_that_is_refused_names_the_entry_that_still_leads_to_the_table() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut batch = BatchStorage::<40, 8>::new();
    let mut batch = batch.batch();
    let pgd = build(&context, 4, &mut pool).pin(&context, &mut batch).expect("pinned");
    let path = walk(&context, pgd.root(), page(0)).expect("readable");
    let (l3, l1) = (path.at(Level::L3).expect("a table"), path.at(Level::L1).expect("a table"));
    let index = PageTableIndex::new(100);
    let slot = Slot { table: p2m.mfn(guest.root).expect("RAM"), index };
    write(&context, slot, Pte::new(l3.slot.table, PteFlags::TABLE));
    let error = pgd.unpin(&context, &mut batch).expect_err("it is linked");
    let PinFailure::Protect { table, error: refusal } = error.failure else { panic!("{error}") };
    assert_eq!((table, refusal.errno), (l1.table, Errno::EBUSY));
    assert_eq!((error.undo, error.obstacles.count()), (Ok(()), 1), "{error}");
    let Some(Obstacle::Links(place)) = error.obstacles.first().next() else { panic!("{error}") };
    let through_the_running_tree = (100 << 39) + (page(0).raw() >> 21 << 21);
    assert_eq!((place.level, place.va), (Level::L2, through_the_running_tree), "{error}");
    assert_eq!(place.pte.mfn(), l1.slot.table);
    assert!(error.to_string().contains("1 in the way: L2 entry"), "{error}");
    guest.check();
    write(&context, slot, Pte::ABSENT);
    let loose = error.pgd.unpin(&context, &mut batch).expect("nothing leads there");
    common::destroy(&context, loose, &mut pool);
    guest.check();
}

/// No entry is at fault if a vCPU runs on the tree: that is said instead.
#[test]
fn an_unpin_that_is_refused_for_a_vcpu_says_that_no_entry_is_in_the_way() {
    scene!(guest, context, pool);
    let mut batch = BatchStorage::<40, 8>::new();
    let mut batch = batch.batch();
    let pgd = build(&context, 4, &mut pool).pin(&context, &mut batch).expect("pinned");
    // SAFETY: the model's guest has no Rust objects.
    unsafe { pgd.load(&context) }.expect("loaded");
    let error = pgd.unpin(&context, &mut batch).expect_err("it runs");
    assert_eq!((error.undo, error.obstacles.count()), (Ok(()), 0), "{error}");
    assert!(error.to_string().contains("a vCPU runs on the tree"), "{error}");
    // SAFETY: as above.
    unsafe { load_root(&context, guest.root) }.expect("the kernel's root");
    let loose = error.pgd.unpin(&context, &mut batch).expect("it runs no more");
    common::destroy(&context, loose, &mut pool);
    guest.check();
}
