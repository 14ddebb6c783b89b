//! What it costs that a table waits for its next use as it does: docs/architecture.md, "Tables
//! between two uses", counts on these figures.

#[macro_use]
mod common;

use common::tables::check_counts;
use common::{Pool, tools};
use hypercall::{Batch, BatchStorage, GuestVa, Level, Machine, PteFlags};
use p2m::Guest;
use pvmmu::{Pages, Pgd, PinFailure, Pinned, PooledTable, TablePool, Tools};
use xen_model::{Model, PageType};

/// L1 tables of one page each, under one L2 table.
const TABLES: u64 = 20;
/// With the tables between them and the root.
const BELOW_ROOT: u64 = TABLES + 2;

type Storage = BatchStorage<200, 200>;

fn page(number: u64) -> Pages {
    Pages::one(GuestVa::new((1 << 30) + (number << 21)).expect("user half"))
}

/// How often a frame has become a table below a root.
fn validations(model: &Model) -> u64 {
    let counts = model.statistics().transitions;
    let tables = [PageType::L1, PageType::L2, PageType::L3];
    counts.iter().map(|row| tables.map(|kind| row[kind as usize]).iter().sum::<u64>()).sum()
}

fn filled_first<M: Machine>(
    guest: &Guest<'_, M>,
    pool: &mut Pool,
    batch: &mut Batch<'_>,
) -> Pgd<Pinned> {
    let mut pgd = Pgd::new(&mut Tools::new(*guest, pool)).expect("a root");
    for number in 0..TABLES {
        pgd.map_pages(&mut Tools::new(*guest, pool), page(number), PteFlags::USER_RW)
            .expect("mapped");
    }
    pgd.pin(guest, batch).expect("pinned")
}

fn out_of_the_pool<M: Machine>(
    guest: &Guest<'_, M>,
    tables: &mut TablePool<'_>,
    pool: &mut Pool,
    batch: &mut Batch<'_>,
) -> Pgd<Pinned> {
    let mut pgd =
        Pgd::new(&mut Tools::new(*guest, pool)).expect("a root").pin(guest, batch).expect("pinned");
    let mut with = tools(guest, batch, tables, pool);
    pgd.edit(&mut with, |edit| {
        (0..TABLES).try_for_each(|number| edit.map_pages(page(number), PteFlags::USER_RW))
    })
    .expect("mapped");
    pgd
}

/// A table that is stored into is made read-only once and writable once in each life, whichever of
/// the two waits: 2 elements, and a validation. A table out of the pool takes neither.
#[test]
fn a_table_that_is_stored_into_changes_access_twice_in_a_life_and_a_pooled_one_never() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let cost = || (machine.counts().entries, validations(&test.model));
    let mut none = TablePool::new([&mut [], &mut [], &mut []]);
    for _ in 0..2 {
        let before = cost();
        let pgd = filled_first(&guest, &mut pool, &mut batch);
        pgd.destroy(&mut tools(&guest, &mut batch, &mut none, &mut pool)).expect("destroyed");
        let (elements, validated) = (cost().0 - before.0, cost().1 - before.1);
        // The root: two changes of access, a pin and its end.
        assert_eq!((elements, validated), (2 * BELOW_ROOT + 4, BELOW_ROOT));
        test.check();
    }
    let mut places = [const { None::<PooledTable> }; 22];
    let (l1, upper) = places.split_at_mut(20);
    let (l2, l3) = upper.split_at_mut(1);
    let mut tables = TablePool::new([l1, l2, l3]);
    for (level, count) in [(Level::L1, 20), (Level::L2, 1), (Level::L3, 1)] {
        tables.fill(&guest, level, count, &mut pool, &mut batch).expect("filled");
    }
    for _ in 0..2 {
        let before = cost();
        let pgd = out_of_the_pool(&guest, &mut tables, &mut pool, &mut batch);
        pgd.destroy(&mut tools(&guest, &mut batch, &mut tables, &mut pool)).expect("destroyed");
        let (elements, validated) = (cost().0 - before.0, cost().1 - before.1);
        // Each is linked and unlinked, each page entered and cleared, and a flush at the end.
        assert_eq!((elements, validated), (2 * BELOW_ROOT + 2 * TABLES + 1 + 4, 0));
        check_counts(&tables, 0);
        test.check();
    }
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&guest, level, 99, &mut pool).expect("drained");
    }
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn a_pool_is_not_filled_by_a_batch_without_room() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut places = [const { None::<PooledTable> }; 2];
    let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
    let mut storage = Storage::new();
    for (updates, ops) in [(0, 1), (1, 0)] {
        let mut batch = storage.batch_of(updates, ops);
        let refused = tables.fill(&guest, Level::L1, 2, &mut pool, &mut batch);
        let failure = refused.expect_err("no room").failure;
        assert_eq!((failure, pool.len()), (PinFailure::BatchTooSmall, free));
    }
    assert_eq!(tables.fill(&guest, Level::L1, 0, &mut pool, &mut storage.batch()), Ok(0));
}

#[test]
fn tables_left_in_a_pools_memory_are_handed_out_by_nobody() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut places = [const { None::<PooledTable> }; 2];
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut first = TablePool::new([&mut places, &mut [], &mut []]);
    assert_eq!(first.fill(&guest, Level::L1, 2, &mut pool, &mut batch), Ok(2));
    let mut second = TablePool::new([&mut [], &mut places, &mut []]);
    assert!(second.is_empty(), "tables of another level");
    assert_eq!(second.drain(&guest, Level::L2, 9, &mut pool), Ok(0));
    assert_eq!(pool.len(), free - 2, "a pinned table is no frame");
    assert!(places.iter().all(Option::is_none));
}

#[test]
fn a_table_of_another_pool_is_adopted() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut places = [[const { None::<PooledTable> }; 3], [const { None }; 3]];
    let [first, second] = &mut places;
    let [l1, l2, l3] = first.each_mut().map(core::slice::from_mut);
    let mut first = TablePool::new([l1, l2, l3]);
    let [l1, l2, l3] = second.each_mut().map(core::slice::from_mut);
    let mut second = TablePool::new([l1, l2, l3]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    for level in [Level::L1, Level::L2, Level::L3] {
        first.fill(&guest, level, 1, &mut pool, &mut batch).expect("filled");
    }
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut with = tools(&guest, &mut batch, &mut first, &mut pool);
    pgd.map_pages(&mut with, page(0), PteFlags::USER_RW).expect("mapped");
    pgd.destroy(&mut tools(&guest, &mut batch, &mut second, &mut pool)).expect("destroyed");
    check_counts(&first, 3);
    check_counts(&second, 0);
    assert_eq!((second.counts().adopted, second.counts().returned), (3, 0));
    for level in [Level::L1, Level::L2, Level::L3] {
        assert_eq!(second.drain(&guest, level, 9, &mut pool), Ok(1));
    }
    assert_eq!(pool.len(), free);
    test.check();
}
