//! A frame cannot be reached for once, in the places where that was found to give a frame two
//! owners, to lose one, or to leave a page as nobody wanted it. `pairs.rs` sweeps all places.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "writes frames of a guest that exists only in the model")]

mod common;

use common::tables::check_counts;
use common::{Pool, TestGuest, guest, tools};
use hypercall::middleware::{FailEach, Refusals};
use hypercall::{BatchStorage, FrameAccess as _, GuestVa, Level, Pte, PteFlags, Refused};
use p2m::Guest;
use pvmmu::{
    DestroyError, Loose, MapError, Pages, Pgd, Pinned, PooledTable, Presence, RangeError,
    TablePool, Tools,
};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

type Machine<'r, 'm> = FailEach<'r, &'m Model>;
type Work<'a, 't, 'r, 'm> = Tools<'a, 't, Machine<'r, 'm>, Pool>;
type Plain<'a> = Guest<'a, Model>;

/// Clean, so that what the CPU notes there can be lost.
const CLEAN: PteFlags = PteFlags::USER_RW.difference(PteFlags::DIRTY);

fn va(raw: u64) -> GuestVa {
    GuestVa::new(raw).expect("user half")
}

fn pages(count: u64) -> Pages {
    Pages { start: va(0x40_0000), count }
}

/// Runs `operation` on an address space that maps `pages`, with its first access to a frame
/// failing, its second, and so on, until all have failed; then takes apart what it left of it. Each
/// frame comes back once. How many accesses there were.
fn each_access(
    pages: Pages,
    presence: Presence,
    mut work: impl FnMut(Pgd<Pinned>, &mut Work<'_, '_, '_, '_>, &Plain<'_>) -> Option<Pgd<Pinned>>,
) -> u64 {
    for number in 0.. {
        let test = TestGuest::small();
        let (p2m, mut pool) = (test.p2m(), test.pool());
        let plain = guest(&test, &test.model, &p2m);
        let free = pool.len();
        soil(&plain, &pool);
        let mut places = [const { None::<PooledTable> }; 6];
        let (l1, rest) = places.split_at_mut(3);
        let (l2, l3) = rest.split_at_mut(2);
        let mut tables = TablePool::new([l1, l2, l3]);
        let mut storage = BatchStorage::<256, 12>::new();
        let mut batch = storage.batch();
        let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
        pgd.map_pages(&mut Tools::new(plain, &mut pool), pages, CLEAN).expect("mapped");
        let pgd = pgd.pin(&plain, &mut batch).expect("pinned");

        let failing = [number];
        let plan = Refusals::new(&[], &[]).and_accesses(&failing, &[]);
        let machine = FailEach::new(&test.model, &plan);
        let around = guest(&test, &machine, &p2m);
        let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
        with.presence = presence;
        let left = work(pgd, &mut with, &plain);
        let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
        if let Some(pgd) = left {
            pgd.destroy(&mut with).expect("all can be reached");
        }
        for level in [Level::L1, Level::L2, Level::L3] {
            tables.drain(&plain, level, 9, &mut pool).expect("drained");
        }
        check_counts(&tables, 0);
        // The pool panics if a frame comes twice.
        assert_eq!(pool.len(), free, "access {number} failed, and a frame is lost");
        test.check();
        if plan.refused() == 0 {
            return number;
        }
    }
    unreachable!("an operation ends")
}

/// Every free frame holds an entry that maps it, as if it had been a table before.
fn soil(guest: &Plain<'_>, pool: &Pool) {
    for pfn in pool.pfns() {
        let pte = Pte::new(guest.mfn(pfn).expect("RAM"), PteFlags::USER_RW);
        // SAFETY: the frame is free.
        unsafe { guest.machine().write_entry(pfn, PageTableIndex::new(7), pte) }.expect("free");
    }
}

/// The flags that each page has.
fn flags(pgd: &Pgd<Pinned>, guest: &Plain<'_>, pages: Pages) -> Vec<PteFlags> {
    let mut flags = Vec::new();
    pgd.translate_pages(guest, pages, &mut |page| flags.push(page.flags)).expect("readable");
    flags
}

#[test]
fn a_new_table_that_cannot_be_cleared_gives_away_no_page_of_what_it_was_before() {
    let new = Pages { start: va(0x4000_0000), count: 40 };
    let accesses = each_access(pages(1), Presence::Steady, |mut pgd, with, plain| {
        let mapped = pgd.map_pages(with, new, CLEAN);
        let count = flags(&pgd, plain, new).len();
        assert_eq!(count, if mapped.is_ok() { 40 } else { 0 }, "{mapped:?}");
        Some(pgd)
    });
    assert!(accesses > 10, "{accesses}");
}

#[test]
fn an_address_space_of_which_a_table_cannot_be_read_comes_back_and_is_destroyed() {
    let mut loose = 0;
    each_access(pages(3), Presence::Steady, |mut pgd, with, plain| {
        // One table is the pool's, and one has got a pin of its own.
        let mut well = with.on_machine(plain.machine());
        for level in [Level::L1, Level::L2, Level::L3] {
            well.fill_pool(level, 2).expect("filled");
        }
        let more = Pages { start: va(0x4000_0000), count: 3 };
        pgd.map_pages(&mut well, more, CLEAN).expect("mapped");
        pgd.hold_l1_tables(plain, &mut well.batch).expect("held");
        let error = pgd.destroy(with).err()?;
        if let DestroyError::Loose(pgd, _) = error {
            loose += 1;
            pgd.destroy(&mut Tools::new(*plain, with.frames.source)).expect("all can be reached");
            return None;
        }
        error.into_pgd()
    });
    assert!(loose > 3, "{loose}");
}

/// No root of the loose address space leads to a table that is free.
fn check_tables(test: &TestGuest, pgd: &Pgd<Loose>, pool: &Pool) {
    let p2m = test.p2m();
    for root in [Some(pgd.root()), pgd.user_root()].into_iter().flatten() {
        for table in common::tables::tables(test, root) {
            let pfn = p2m.pfn(&test.model, table.mfn).expect("the test's");
            assert!(pool.pfns().all(|free| free != pfn), "{table:?}, pfn {pfn}, is free");
        }
    }
}

#[test]
fn the_root_for_user_code_leads_to_no_table_that_went_back() {
    for number in 0.. {
        let test = TestGuest::small();
        let (p2m, mut pool) = (test.p2m(), test.pool());
        let plain = guest(&test, &test.model, &p2m);
        let free = pool.len();
        let mut pgd = Pgd::with_user_root(&mut Tools::new(plain, &mut pool)).expect("roots");
        let failing = [number];
        let plan = Refusals::new(&[], &[]).and_accesses(&failing, &[]);
        let machine = FailEach::new(&test.model, &plan);
        let around = guest(&test, &machine, &p2m);
        let mapped = pgd.map_pages(&mut Tools::new(around, &mut pool), pages(3), CLEAN);
        check_tables(&test, &pgd, &pool);
        let destroyed = pgd.destroy(&mut Tools::new(around, &mut pool));
        assert!(mapped.is_ok() || destroyed.is_ok(), "one access failed");
        if let Err(Refused { value: pgd, .. }) = destroyed {
            check_tables(&test, &pgd, &pool);
            pgd.destroy(&mut Tools::new(plain, &mut pool)).expect("all can be reached");
        }
        assert_eq!(pool.len(), free, "access {number} failed, and a frame is lost");
        if plan.refused() == 0 {
            assert!(number > 20, "{number}");
            return;
        }
    }
}

#[test]
fn a_table_that_is_out_of_the_tree_and_cannot_be_written_goes_back_as_it_was() {
    let whole = pages(400);
    let mut refused = 0;
    each_access(pages(100), Presence::MayVanish, |mut pgd, with, plain| {
        let before = flags(&pgd, plain, whole);
        let read_only = CLEAN.difference(PteFlags::WRITABLE);
        match pgd.protect(with, pages(100), read_only) {
            Ok(()) => assert!(!flags(&pgd, plain, whole)[0].contains(PteFlags::WRITABLE)),
            Err(error) => {
                refused += 1;
                assert!(matches!(error, RangeError { done: 0, error: MapError::Walk(_) }));
                assert_eq!(flags(&pgd, plain, whole), before);
            }
        }
        Some(pgd)
    });
    assert!(refused > 3, "{refused}");
}

#[test]
fn pages_that_cannot_be_looked_at_again_can_be_written_again() {
    let mut refused = 0;
    each_access(pages(3), Presence::Steady, |mut pgd, with, plain| {
        let before = flags(&pgd, plain, pages(3));
        let cleared = pgd.edit(with, |edit| edit.clear_reading_ad(pages(3), &mut |_, _| {}));
        if cleared.is_err() {
            refused += 1;
            assert_eq!(flags(&pgd, plain, pages(3)), before);
        }
        Some(pgd)
    });
    assert!(refused > 3, "{refused}");
}

#[test]
fn a_page_that_is_unmapped_and_cannot_be_looked_at_is_said_to_be_written() {
    let mut said = 0;
    each_access(pages(3), Presence::Steady, |mut pgd, with, plain| {
        let mut told = Vec::new();
        let unmapped = pgd.edit(with, |edit| {
            edit.unmap_reading_ad(pages(3), &mut |va, flags| told.push((va, flags)))
        });
        assert_eq!(told.len() + flags(&pgd, plain, pages(3)).len(), 3, "{unmapped:?}");
        said += told.iter().filter(|(_, flags)| flags.contains(PteFlags::DIRTY)).count();
        Some(pgd)
    });
    assert!(said > 0 && said.is_multiple_of(3), "{said}");
}
