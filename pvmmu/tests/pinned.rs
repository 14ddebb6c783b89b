//! Changes of a tree that Xen holds.

mod common;

use common::{Guest, Pool, build, context, destroy, page};
use hypercall::{BatchStorage, Counting, Errno, FailNth, GuestVa, Machine, Pte, PteFlags, Refusal};
use pvmmu::{Context, MapError, Pages, Pgd, Pinned, TableSource as _, walk};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
const ALL: u64 = 16;

fn pages(count: u64) -> Pages {
    Pages { start: page(0), count }
}

fn pinned<M: Machine>(context: &Context<'_, M>, pool: &mut Pool) -> Pgd<Pinned> {
    let mut storage = BatchStorage::<16, 1>::new();
    build(context, ALL, pool).pin(context, &mut storage.batch()).expect("pinned")
}

fn release<M: Machine>(context: &Context<'_, M>, pgd: Pgd<Pinned>, pool: &mut Pool) {
    let mut storage = BatchStorage::<16, 1>::new();
    let loose = pgd.unpin(context, &mut storage.batch()).expect("unpinned");
    destroy(context, loose, pool);
}

/// The L1 entries of the pages, as the guest reads them.
fn entries<M: Machine>(context: &Context<'_, M>, pgd: &Pgd<Pinned>) -> Vec<Pte> {
    let leaf = |index| walk(context, pgd.root(), page(index)).expect("readable").leaf();
    (0..ALL).map(|index| leaf(index).expect("an L1 table").1).collect()
}

#[test]
fn protecting_pages_is_one_trap_with_its_flush() {
    // Up to 8 pages are flushed one by one if the batch has room, more all at once.
    for (count, flushes) in [(1, 1), (8, 8), (9, 1), (16, 1)] {
        let guest = Guest::new();
        let (machine, p2m) = (Counting::new(&guest.model), guest.p2m());
        let context = context(&guest, &machine, &p2m);
        let mut pool = guest.pool();
        let mut pgd = pinned(&context, &mut pool);
        let mut storage = BatchStorage::<16, 8>::new();
        let before = machine.counts();
        pgd.protect(&context, pages(count), READ_ONLY, &mut storage.batch()).expect("protected");
        let cost = machine.counts() - before;
        assert_eq!((cost.hypercalls, cost.entries), (1, count + flushes));
        for (index, pte) in entries(&context, &pgd).into_iter().enumerate() {
            assert_eq!(pte.is_writable(), index as u64 >= count);
        }
        release(&context, pgd, &mut pool);
        guest.check();
    }
}

#[test]
fn a_page_unmapped_and_mapped_again_is_the_same_frame() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let free = pool.len();
    let mut pgd = pinned(&context, &mut pool);
    let before = entries(&context, &pgd);
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    let frame = pgd.unmap(&context, page(3), &mut batch).expect("unmapped");
    assert_eq!(entries(&context, &pgd)[3], Pte::ABSENT, "no bit of the frame stays behind");
    let again = pgd.unmap(&context, page(3), &mut batch);
    assert_eq!(again.map(drop), Err(MapError::NotMapped(page(3))));
    pgd.map(&context, (page(3), PteFlags::USER_RW), frame, &mut batch).expect("mapped");
    let after = entries(&context, &pgd);
    assert!(before.iter().zip(&after).all(|(old, new)| old.same_for_guest(*new)));
    release(&context, pgd, &mut pool);
    assert_eq!(pool.len(), free);
    guest.check();
}

#[test]
fn what_is_wrong_with_a_request_is_told_before_xen_is_asked() {
    let guest = Guest::new();
    let (machine, p2m) = (Counting::new(&guest.model), guest.p2m());
    let context = context(&guest, &machine, &p2m);
    let mut pool = guest.pool();
    let mut pgd = pinned(&context, &mut pool);
    let before = machine.counts();
    let mut storage = BatchStorage::<4, 1>::new();
    let mut batch = storage.batch();
    let kernel = GuestVa::new(0xffff_ffff_8000_0000).expect("the guest's");
    let far = GuestVa::new(0x7000_0000_0000).expect("the guest's");
    let mut protect = |pages, flags| pgd.protect(&context, pages, flags, &mut batch);
    assert_eq!(protect(Pages::one(kernel), READ_ONLY), Err(MapError::KernelHalf(kernel)));
    assert_eq!(protect(pages(1), PteFlags::USER), Err(MapError::Flags(4)));
    assert_eq!(protect(pages(5), READ_ONLY), Err(MapError::BatchTooSmall { needed: 5, room: 4 }));
    let last = Pages { start: page(15), count: 2 };
    assert_eq!(protect(last, READ_ONLY), Err(MapError::NotMapped(page(16))));
    let frame = pool.take().expect("a frame");
    let failed =
        pgd.map(&context, (far, PteFlags::USER_RW), frame, &mut batch).expect_err("no table");
    assert_eq!(failed.error, MapError::NoTable(far));
    let failed = pgd
        .map(&context, (page(0), PteFlags::USER_RW), failed.frame, &mut batch)
        .expect_err("occupied");
    assert!(matches!(failed.error, MapError::Occupied { .. }));
    pool.give(failed.frame);
    assert_eq!(machine.counts(), before);
    release(&context, pgd, &mut pool);
    guest.check();
}

#[test]
fn a_refusal_in_the_middle_of_a_run_is_undone_to_the_last_entry() {
    for done in 0..ALL {
        for request in 0..2 {
            let guest = Guest::new();
            let p2m = guest.p2m();
            let plain = context(&guest, &guest.model, &p2m);
            let mut pool = guest.pool();
            let mut pgd = pinned(&plain, &mut pool);
            let before = entries(&plain, &pgd);
            let done = usize::try_from(done).expect("small");
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&guest.model, refusal);
            let context = context(&guest, &machine, &p2m);
            let mut storage = BatchStorage::<16, 8>::new();
            let refused = pgd.protect(&context, pages(ALL), READ_ONLY, &mut storage.batch());
            let Err(MapError::Refused { va, error }) = refused else { panic!("{refused:?}") };
            assert_eq!(error.error.errno, Errno::ENOMEM);
            if request == 0 {
                assert_eq!(va, page(done as u64), "the refused page is named");
            }
            assert_eq!(entries(&plain, &pgd), before);
            release(&plain, pgd, &mut pool);
            guest.check();
        }
    }
}

#[test]
fn an_undo_that_is_refused_too_says_what_is_left() {
    // The machine refuses the fifth update for good: first of the change, then of its undo.
    let guest = Guest::new();
    let p2m = guest.p2m();
    let plain = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut pgd = pinned(&plain, &mut pool);
    let first = FailNth::new(&guest.model, Refusal { request: 0, errno: Errno::ENOMEM, done: 5 });
    let both = FailNth::new(&first, Refusal { request: 2, errno: Errno::ENOMEM, done: 2 });
    let context = context(&guest, &both, &p2m);
    let mut storage = BatchStorage::<16, 8>::new();
    let refused = pgd.protect(&context, pages(ALL), READ_ONLY, &mut storage.batch());
    assert!(matches!(refused, Err(MapError::NotUndone { left: 3, .. })), "{refused:?}");
    let changed = entries(&plain, &pgd).iter().filter(|pte| !pte.is_writable()).count();
    assert_eq!(changed, 3);
    release(&plain, pgd, &mut pool);
    guest.check();
}
