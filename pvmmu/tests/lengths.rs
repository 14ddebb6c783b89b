//! Every length of batch, and every remainder that it leaves: a last partial batch that is not sent
//! is a change that is lost.

#[macro_use]
mod common;

use common::tables::check_marks;
use common::{Pool, build, no_pool, page, pages, tools};
use hypercall::{BatchStorage, FrameSource, GuestVa, Level, Machine, Pfn, PteFlags};
use p2m::{Guest, walk};
use pvmmu::{Pages, Pgd, Pinned, PooledTable, Presence, Shares, TablePool, Tools};

/// Pages in the tree from the start: under two L1 tables.
const ALL: u64 = 24;
/// As many tables in a pool.
const PLACES: usize = 24;
const LENGTHS: core::ops::RangeInclusive<usize> = 1..=26;

type Storage = BatchStorage<26, 26>;

fn mapped<M: Machine>(guest: &Guest<'_, M>, root: Pfn, pages: Pages) -> Vec<bool> {
    let is_mapped = |at| {
        let va = pages.at(at).expect("user half");
        let leaf = walk(guest, root, va).expect("readable").leaf();
        leaf.is_some_and(|(_, pte)| pte.is_present())
    };
    (0..pages.count).map(is_mapped).collect()
}

fn pinned<M: Machine>(guest: &Guest<'_, M>, pool: &mut Pool) -> Pgd<Pinned> {
    build(guest, ALL, pool).pin(guest, &mut Storage::new().batch()).expect("pinned")
}

fn end<M: Machine, F: FrameSource>(pgd: Pgd<Pinned>, with: &mut Tools<'_, '_, M, F>) {
    pgd.destroy(with).expect("destroyed");
}

#[test]
fn pages_are_unmapped_and_mapped_in_batches_of_every_length() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut pgd = pinned(&guest, &mut pool);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    for (length, count) in LENGTHS.flat_map(|length| (1..=ALL).map(move |count| (length, count))) {
        let mut batch = storage.batch_of(length, 1);
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        let traps = count.div_ceil(length as u64);
        let before = machine.counts();
        pgd.unmap(&mut with, pages(count)).expect("unmapped");
        let cost = machine.counts() - before;
        assert_eq!((cost.hypercalls, cost.entries), (traps, count + traps), "{count} by {length}");
        let now = mapped(&guest, pgd.root(), pages(ALL));
        assert!(now.iter().zip(0..).all(|(is_mapped, at)| *is_mapped == (at >= count)));
        let before = machine.counts();
        pgd.map_pages(&mut with, pages(count), PteFlags::USER_RW).expect("mapped");
        let cost = machine.counts() - before;
        assert_eq!((cost.hypercalls, cost.entries), (traps, count), "{count} by {length}");
        assert!(mapped(&guest, pgd.root(), pages(ALL)).into_iter().all(|is_mapped| is_mapped));
    }
    let mut batch = storage.batch();
    end(pgd, &mut tools(&guest, &mut batch, &mut tables, &mut pool));
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn an_address_space_is_forked_in_batches_of_every_length() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut parent = pinned(&guest, &mut pool);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    for length in LENGTHS.skip(1) {
        let mut batch = storage.batch_of(length, 1);
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        with.presence = Presence::Steady;
        let before = machine.counts();
        let child = parent.fork(&mut with).expect("forked");
        let cost = machine.counts() - before;
        let in_child = child.tables(&guest).expect("readable");
        let length = length as u64;
        let traps = ALL.div_ceil(length) + in_child.div_ceil(length) + 1;
        assert_eq!(cost.hypercalls, traps, "in batches of {length}");
        for root in [parent.root(), child.root()] {
            for at in 0..ALL {
                let leaf = walk(&guest, root, page(at)).expect("readable").leaf();
                assert!(leaf.is_some_and(|(_, pte)| pte.is_present() && !pte.is_writable()));
            }
        }
        end(child, &mut with);
        let own = |at| parent.edit(&mut with, |edit| edit.make_own(page(at)));
        (0..ALL).try_for_each(own).expect("the last who shares them");
    }
    let mut batch = storage.batch();
    end(parent, &mut tools(&guest, &mut batch, &mut tables, &mut pool).with_shares(&mut shares));
    assert_eq!((pool.len(), counts.iter().any(|count| *count > 0)), (free, false));
    test.check();
}

#[test]
fn a_table_moves_in_one_trap_whatever_the_length_of_the_batch() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut pgd = pinned(&guest, &mut pool);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let [here, there] = [1 << 30, (1 << 30) + (9 << 21)];
    let places = [here, there].map(|va| GuestVa::new(va).expect("user half"));
    for (length, turn) in LENGTHS.skip(1).zip([0, 1].into_iter().cycle()) {
        let mut batch = storage.batch_of(length, 1);
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        let (from, to) = (places[turn], places[1 - turn]);
        let before = machine.counts();
        pgd.edit(&mut with, |edit| edit.move_table(from, to)).expect("moved");
        let cost = machine.counts() - before;
        assert_eq!((cost.hypercalls, cost.entries), (1, 2), "in batches of {length}");
        for (start, is_there) in [(from, false), (to, true)] {
            let rest = Pages { start, count: ALL - 8 };
            assert_eq!(mapped(&guest, pgd.root(), rest), [is_there; PLACES - 8]);
        }
    }
    let mut batch = storage.batch();
    end(pgd, &mut tools(&guest, &mut batch, &mut tables, &mut pool));
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn a_pool_is_filled_and_linked_in_batches_of_every_length() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut storage = Storage::new();
    let mut pgd = pinned(&guest, &mut pool);
    for (length, ops) in LENGTHS.map(|length| (length, 1)).chain(LENGTHS.map(|ops| (26, ops))) {
        let mut places = [const { None::<PooledTable> }; PLACES];
        let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
        let mut batch = storage.batch_of(length, ops);
        let before = machine.counts();
        let filled = tables.fill(&guest, Level::L1, PLACES, &mut pool, &mut batch);
        assert_eq!(filled, Ok(ALL));
        let cost = machine.counts() - before;
        let together = length.min(ops) as u64;
        assert_eq!((cost.hypercalls, cost.entries), (ALL.div_ceil(together), 2 * ALL));
        if length > 1 {
            let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
            let at = |number: u64| GuestVa::new((2 << 30) - (64 << 21) + (number << 21));
            let page = |number| Pages::one(at(number).expect("user half"));
            pgd.edit(&mut with, |edit| {
                (0..ALL).try_for_each(|number| edit.map_pages(page(number), PteFlags::USER_RW))
            })
            .expect("linked");
            check_marks(&test, pgd.root());
            let twin = pgd.tables(&guest).expect("readable");
            assert!(twin > ALL, "each page has a table of its own");
            for number in 0..ALL {
                assert_eq!(mapped(&guest, pgd.root(), page(number)), [true]);
            }
            end(pgd, &mut tools(&guest, &mut batch, &mut tables, &mut pool));
            pgd = pinned(&guest, &mut pool);
        }
        assert_eq!(tables.drain(&guest, Level::L1, 99, &mut pool), Ok(ALL));
    }
    let mut batch = storage.batch();
    end(pgd, &mut tools(&guest, &mut batch, &mut no_pool(), &mut pool));
    assert_eq!(pool.len(), free);
    test.check();
}
