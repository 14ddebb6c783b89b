//! Changes of a tree that Xen holds, entry by entry and table by table.

#[macro_use]
mod common;

use common::{Pool, TestGuest, build, destroy, guest, no_pool, page, pages, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{
    BatchStorage, Errno, FrameAccess as _, FrameSource as _, GuestVa, Machine, Pfn, Pte, PteFlags,
};
use p2m::{Guest, walk};
use pvmmu::{MapError, Pages, Pgd, Pinned, Presence, RangeError, Tools};
use xen_model::PageType;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
const ALL: u64 = 16;

type Storage = BatchStorage<600, 16>;

/// The pages of a whole L1 table, and some on both sides of it.
fn around_a_table() -> Pages {
    Pages { start: GuestVa::new((1 << 30) - 0x3000).expect("user half"), count: 3 + 512 + 3 }
}

fn pinned<M: Machine>(guest: &Guest<'_, M>, pool: &mut Pool) -> Pgd<Pinned> {
    build(guest, ALL, pool).pin(guest, &mut Storage::new().batch()).expect("pinned")
}

/// Maps the pages around a table while the tree is loose, and pins it.
fn full<M: Machine>(guest: &Guest<'_, M>, pool: &mut Pool) -> Pgd<Pinned> {
    let mut pgd = Pgd::new(&mut Tools::new(*guest, pool)).expect("a root");
    pgd.map_pages(&mut Tools::new(*guest, pool), around_a_table(), PteFlags::USER_RW)
        .expect("mapped");
    pgd.pin(guest, &mut Storage::new().batch()).expect("pinned")
}

fn release<M: Machine>(guest: &Guest<'_, M>, pgd: Pgd<Pinned>, pool: &mut Pool) {
    let loose = pgd.unpin(guest, &mut Storage::new().batch()).expect("unpinned");
    destroy(guest, loose, pool);
}

/// The L1 entries of `pages`, as the test reads them.
fn entries<M: Machine>(guest: &Guest<'_, M>, root: Pfn, pages: Pages) -> Vec<Option<Pte>> {
    let leaf = |index| {
        let va = pages.at(index).expect("user half");
        let leaf = walk(guest, root, va).expect("readable").leaf();
        leaf.map(|(_, pte)| pte).filter(|pte| pte.is_present())
    };
    (0..pages.count).map(leaf).collect()
}

#[test]
fn protecting_pages_is_one_trap_with_its_flush() {
    // Up to 8 pages are flushed one by one if the batch has room, more all at once.
    for (count, flushes) in [(1, 1), (8, 8), (9, 1), (16, 1)] {
        scene!(test, machine, guest, pool);
        let mut pgd = pinned(&guest, &mut pool);
        let (mut storage, mut tables) = (Storage::new(), no_pool());
        let mut batch = storage.batch();
        let before = machine.counts();
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        pgd.protect(&mut with, pages(count), READ_ONLY).expect("protected");
        let cost = machine.counts() - before;
        assert_eq!((cost.hypercalls, cost.entries), (1, count + flushes));
        for (index, pte) in entries(&guest, pgd.root(), pages(ALL)).into_iter().enumerate() {
            assert_eq!(pte.expect("mapped").is_writable(), index as u64 >= count);
        }
        release(&guest, pgd, &mut pool);
        test.check();
    }
}

fn runs_in_batches_of<const LENGTH: usize>() {
    scene!(test, machine, guest, pool);
    let mut pgd = pinned(&guest, &mut pool);
    for count in 1..=ALL {
        let mut storage = BatchStorage::<LENGTH, 1>::new();
        let (mut batch, mut tables) = (storage.batch(), no_pool());
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        let before = machine.counts();
        pgd.protect(&mut with, pages(count), READ_ONLY).expect("protected");
        let traps = (machine.counts() - before).hypercalls;
        assert_eq!(traps, count.div_ceil(LENGTH as u64), "{count} in batches of {LENGTH}");
        let now = entries(&guest, pgd.root(), pages(ALL));
        let protected = now.iter().flatten().filter(|pte| !pte.is_writable()).count();
        assert_eq!(protected as u64, count);
        pgd.protect(&mut with, pages(count), PteFlags::USER_RW).expect("as before");
    }
    release(&guest, pgd, &mut pool);
    test.check();
}

#[test]
fn every_length_of_batch_and_every_remainder_is_submitted() {
    macro_rules! lengths {
        ($($length:literal)*) => { $(runs_in_batches_of::<$length>();)* };
    }
    lengths!(1 2 3 4 5 6 7 8 15 16 17);
}

#[test]
fn a_page_unmapped_and_mapped_again_is_the_same_frame() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut pgd = pinned(&guest, &mut pool);
    let before = entries(&guest, pgd.root(), pages(ALL));
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    pgd.unmap(&mut with, Pages::one(page(3))).expect("unmapped");
    let frame = with.frames.take().expect("the unmapped frame");
    let leaf = walk(&guest, pgd.root(), page(3)).expect("readable").leaf();
    assert_eq!(leaf.expect("a table").1, Pte::ABSENT, "no bit of the frame stays behind");
    let again = pgd.unmap(&mut with, Pages::one(page(3)));
    assert_eq!(again, Err(RangeError { done: 0, error: MapError::NotMapped(page(3)) }));
    pgd.map(&mut with, page(3), PteFlags::USER_RW, frame).expect("mapped");
    let after = entries(&guest, pgd.root(), pages(ALL));
    let same = |(old, new): (&Option<Pte>, &Option<Pte>)| {
        old.expect("mapped").same_for_guest(new.expect("mapped"))
    };
    assert!(before.iter().zip(&after).all(same));
    release(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn what_is_wrong_with_a_request_is_told_before_xen_is_asked() {
    scene!(test, machine, guest, pool);
    let mut pgd = pinned(&guest, &mut pool);
    let before = machine.counts();
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let kernel = GuestVa::new(0xffff_ffff_8000_0000).expect("the test's");
    let mut protect =
        |pages, flags| pgd.protect(&mut with, pages, flags).map_err(|refused| refused.error);
    assert_eq!(protect(Pages::one(kernel), READ_ONLY), Err(MapError::KernelHalf(kernel)));
    let wrong = |flags| Err(MapError::Flags { va: pages(1).start, flags });
    assert_eq!(protect(pages(1), PteFlags::USER), wrong(PteFlags::USER));
    let mine = PteFlags::USER_RW | PteFlags::GLOBAL;
    assert_eq!(protect(pages(1), mine), wrong(mine));
    let last = Pages { start: page(15), count: 2 };
    assert_eq!(protect(last, READ_ONLY), Err(MapError::NotMapped(page(16))));
    let frame = with.frames.take().expect("a frame");
    let failed = pgd.map(&mut with, page(0), PteFlags::USER_RW, frame).expect_err("occupied");
    assert!(matches!(failed.error, MapError::Occupied { .. }));
    pool.give(failed.value.expect("the frame comes back"));
    assert_eq!(machine.counts(), before);
    release(&guest, pgd, &mut pool);
    test.check();
}

#[test]
fn a_whole_table_is_unmapped_by_unlinking_it() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut pgd = full(&guest, &mut pool);
    let before_tables = pgd.tables(&guest).expect("readable");
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    with.presence = Presence::Steady;
    let before = machine.counts();
    pgd.unmap(&mut with, around_a_table()).expect("unmapped");
    let cost = machine.counts() - before;
    assert_eq!(cost.hypercalls, 3, "three pages; the table; three pages");
    assert_eq!(cost.entries, (3 + 3) + 2 + (3 + 3), "entries, flushes, and two for the table");
    assert_eq!(pgd.tables(&guest), Ok(before_tables - 1), "the full table is gone");
    assert!(entries(&guest, pgd.root(), around_a_table()).iter().all(Option::is_none));
    test.check();
    // And mapped again, table and all.
    pgd.map_pages(&mut with, around_a_table(), PteFlags::USER_RW).expect("mapped");
    assert!(entries(&guest, pgd.root(), around_a_table()).iter().all(Option::is_some));
    test.check();
    release(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn a_whole_table_is_protected_in_place_unless_its_pages_may_vanish() {
    for (presence, traps) in [(Presence::MayVanish, 2), (Presence::Steady, 1)] {
        scene!(test, machine, guest, pool);
        let mut pgd = full(&guest, &mut pool);
        let (mut storage, mut tables) = (Storage::new(), no_pool());
        let mut batch = storage.batch();
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
        with.presence = presence;
        let table = Pages { start: GuestVa::new(1 << 30).expect("user half"), count: 512 };
        let before = machine.counts();
        pgd.protect(&mut with, table, READ_ONLY).expect("protected");
        assert_eq!((machine.counts() - before).hypercalls, traps);
        let writable = |pte: &Option<Pte>| pte.expect("mapped").is_writable();
        let now = entries(&guest, pgd.root(), around_a_table());
        assert_eq!(now.iter().filter(|pte| writable(pte)).count(), 6);
        assert!(!now[3..515].iter().any(writable));
        test.check();
        release(&guest, pgd, &mut pool);
        test.check();
    }
}

#[test]
fn a_refusal_in_the_middle_of_a_run_is_undone_to_the_last_entry() {
    for done in 0..ALL {
        for request in 0..2 {
            let test = TestGuest::new();
            let p2m = test.p2m();
            let plain = guest(&test, &test.model, &p2m);
            let mut pool = test.pool();
            let mut pgd = pinned(&plain, &mut pool);
            let before = entries(&plain, pgd.root(), pages(ALL));
            let done = usize::try_from(done).expect("small");
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&test.model, refusal);
            let guest = guest(&test, &machine, &p2m);
            let (mut storage, mut tables) = (Storage::new(), no_pool());
            let mut batch = storage.batch();
            let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
            let refused = pgd.protect(&mut with, pages(ALL), READ_ONLY);
            let Err(RangeError { done: 0, error }) = refused else { panic!("{refused:?}") };
            match (request, error) {
                (0, MapError::Refused { va, error }) => {
                    assert_eq!(va, page(done as u64), "the refused page is named");
                    assert_eq!(error.error.errno, Errno::ENOMEM);
                }
                (1, MapError::RefusedCall(error)) => {
                    assert_eq!(error.error.errno, Errno::ENOMEM);
                }
                (_, error) => panic!("{error}"),
            }
            assert_eq!(entries(&plain, pgd.root(), pages(ALL)), before);
            release(&plain, pgd, &mut pool);
            test.check();
        }
    }
}

#[test]
fn an_undo_that_is_refused_too_says_what_is_left() {
    // The machine refuses the sixth update of the change, then the third of its undo.
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut pgd = pinned(&plain, &mut pool);
    let first = FailNth::new(&test.model, Refusal { request: 0, errno: Errno::ENOMEM, done: 5 });
    let both = FailNth::new(&first, Refusal { request: 2, errno: Errno::ENOMEM, done: 2 });
    let guest = guest(&test, &both, &p2m);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let refused = pgd.protect(&mut with, pages(ALL), READ_ONLY).expect_err("twice");
    assert!(matches!(refused.error, MapError::NotUndone { left: 3, .. }), "{refused}");
    let now = entries(&plain, pgd.root(), pages(ALL));
    assert_eq!(now.iter().flatten().filter(|pte| !pte.is_writable()).count(), 3);
    release(&plain, pgd, &mut pool);
    test.check();
}

#[test]
fn what_a_section_has_written_is_what_it_reads() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut pgd = pinned(&guest, &mut pool);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let before = machine.counts();
    pgd.edit(&mut with, |edit| {
        // In ascending order nothing has to go out in between.
        edit.unmap(Pages::one(page(2)))?;
        edit.protect(Pages::one(page(5)), READ_ONLY)?;
        // A step back sends what is pending first: so the page is known to be gone.
        assert_eq!(edit.unmap(Pages::one(page(2))), Err(MapError::NotMapped(page(2))));
        edit.map_pages(Pages::one(page(2)), READ_ONLY)
    })
    .expect("a section");
    assert_eq!((machine.counts() - before).hypercalls, 2);
    let now = entries(&guest, pgd.root(), pages(ALL));
    let writable = now.iter().map(|pte| pte.expect("mapped").is_writable());
    let read_only: Vec<_> = (0..).zip(writable).filter(|(_, yes)| !yes).map(|(at, _)| at).collect();
    assert_eq!(read_only, [2, 5]);
    release(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn a_section_that_gives_up_changes_nothing_and_loses_nothing() {
    scene!(test, machine, guest, pool);
    let mut pgd = pinned(&guest, &mut pool);
    let (free, before) = (pool.len(), entries(&guest, pgd.root(), pages(ALL + 4)));
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let counts = machine.counts();
    let refused = pgd.edit(&mut with, |edit| {
        edit.protect(pages(3), READ_ONLY)?;
        edit.map_pages(Pages { start: page(ALL), count: 4 }, PteFlags::USER_RW)?;
        edit.unmap(Pages::one(page(100)))
    });
    assert_eq!(refused, Err(RangeError { done: 0, error: MapError::NotMapped(page(100)) }));
    assert_eq!(machine.counts(), counts, "Xen was not asked");
    assert_eq!(entries(&guest, pgd.root(), pages(ALL + 4)), before);
    assert_eq!(pool.len(), free, "frames that were to be mapped came back");
    release(&guest, pgd, &mut pool);
    test.check();
}

#[test]
fn a_user_root_sees_what_the_kernel_root_sees_below_and_nothing_above() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
    pgd.map_pages(&mut Tools::new(guest, &mut pool), pages(ALL), PteFlags::USER_RW)
        .expect("mapped");
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut pgd = pgd.pin(&guest, &mut batch).expect("both pinned");
    let mut tables = no_pool();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let far = Pages { start: GuestVa::new(5 << 39).expect("user half"), count: 3 };
    pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect("a new slot of both roots");
    let user = pgd.user_root().expect("made");
    for pages in [pages(ALL), far] {
        let kernel = entries(&guest, pgd.root(), pages);
        assert!(kernel.iter().all(Option::is_some));
        assert_eq!(entries(&guest, user, pages), kernel);
    }
    let direct_map = test.model.direct_map(Pfn::new(0)).expect("mapped");
    assert!(walk(&guest, user, direct_map).expect("readable").leaf().is_none());
    test.check();
    release(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

/// How often a frame has become an L1 table.
fn l1_validations(test: &TestGuest) -> u64 {
    let counts = test.model.statistics().transitions;
    counts.iter().map(|row| row[PageType::L1 as usize]).sum()
}

#[test]
fn a_table_moves_with_its_pages_and_is_not_validated_again() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut pgd = full(&guest, &mut pool);
    let (mut storage, mut tables) = (Storage::new(), no_pool());
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let from = GuestVa::new(1 << 30).expect("user half");
    let pages_at = |start| Pages { start, count: 512 };
    let before = entries(&guest, pgd.root(), pages_at(from));
    // Beside it; under another L3 table, which is made; and back.
    let places =
        [(1 << 30) + (4 << 21), 7 << 39, 1 << 30].map(|va| GuestVa::new(va).expect("user"));
    let mut at = from;
    for (to, traps) in places.into_iter().zip([1, 2, 1]) {
        let counts = machine.counts();
        let validated = l1_validations(&test);
        pgd.edit(&mut with, |edit| edit.move_table(at, to)).expect("moved");
        assert_eq!((machine.counts() - counts).hypercalls, traps);
        assert_eq!(l1_validations(&test), validated, "Xen has not looked at it again");
        assert_eq!(entries(&guest, pgd.root(), pages_at(to)), before);
        assert!(entries(&guest, pgd.root(), pages_at(at)).iter().all(Option::is_none));
        test.check();
        at = to;
    }
    let occupied = pgd.edit(&mut with, |edit| {
        edit.move_table(at, GuestVa::new((1 << 30) - (2 << 20)).expect("user half"))
    });
    assert!(matches!(occupied.expect_err("taken").error, MapError::Occupied { .. }));
    release(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}
