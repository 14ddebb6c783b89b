//! Xen refuses a change, and then the undo of what took effect of it, in the places where that was
//! found to give a frame two owners or to leave an address space that could not be ended.
//! `pairs.rs` sweeps all places.
#![expect(unsafe_code, reason = "changes the frame map of a model's test")]

mod common;

use std::collections::BTreeSet;

use common::{Pool, TestGuest, guest, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{
    BatchStorage, Errno, Frame, FrameSource, GuestVa, Level, Pfn, PteFlags, Uncertain,
};
use p2m::WalkError;
use pvmmu::{Edit, MapError, Pages, Pgd, Presence, Shares, TablePool, Tools};
use xen_model::Model;

type Storage = BatchStorage<40, 12>;
/// A machine that refuses two requests.
type Twice<'m> = FailNth<&'m FailNth<&'m Model>>;
type Section<'e, 'a, 't, 'm> = Edit<'e, 'a, 't, Twice<'m>, Pool>;

const fn refuse(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

fn va(raw: u64) -> GuestVa {
    GuestVa::new(raw).expect("user half")
}

/// Moves `pages` to `to` while `refusals` are refused; then, with Xen well again, unmaps both
/// places or destroys all.
fn moved_and_ended(pages: Pages, to: GuestVa, refusals: [Refusal; 2], unmaps: [Option<Pages>; 2]) {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    pgd.map_pages(&mut Tools::new(plain, &mut pool), pages, PteFlags::USER_RW).expect("mapped");
    // There is a table for `to`, or one above it, already.
    let near = Pages::one(if pages.count == 512 { va(0xa0_0000) } else { va(0x80_1000) });
    pgd.map_pages(&mut Tools::new(plain, &mut pool), near, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");

    let inner = FailNth::new(&test.model, refusals[1]);
    let machine = FailNth::new(&inner, refusals[0]);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
    with.presence = Presence::Steady;
    let refused = pgd.remap(&mut with, pages, to).expect_err("refused");
    assert!(matches!(refused.error, MapError::NotUndone { left: 1, .. }), "{refused}");

    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    for pages in unmaps.into_iter().flatten() {
        // Of a page that was at two places one is left.
        let _ = pgd.unmap(&mut with, pages);
    }
    pgd.destroy(&mut with).expect("Xen is well again");
    // The pool panics if a frame comes twice.
    assert_eq!(pool.len(), free, "each frame came back once");
    test.check();
}

#[test]
fn a_page_that_was_neither_moved_nor_put_back_comes_back_once() {
    let (page, to) = (Pages::one(va(0x40_0000)), va(0x80_0000));
    let refusals = [refuse(0, 1), refuse(2, 0)];
    moved_and_ended(page, to, refusals, [Some(page), Some(Pages::one(to))]);
    moved_and_ended(page, to, refusals, [Some(Pages::one(to)), Some(page)]);
    moved_and_ended(page, to, refusals, [None, None]);
}

#[test]
fn a_table_that_was_neither_moved_nor_put_back_comes_back_once_with_its_pages() {
    let (pages, to) = (Pages { start: va(0x40_0000), count: 512 }, va(0x80_0000));
    let refusals = [refuse(0, 1), refuse(1, 0)];
    moved_and_ended(pages, to, refusals, [Some(pages), Some(Pages { start: to, ..pages })]);
    moved_and_ended(pages, to, refusals, [None, None]);
}

/// Nothing is done with an address space before what is in doubt of it is put right, as often as
/// Xen refuses that.
#[test]
fn an_operation_that_finds_a_page_at_two_places_does_nothing_until_that_is_put_right() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let (page, to) = (Pages::one(va(0x40_0000)), va(0x80_0000));
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    let both = Pages { start: page.start, count: 1 };
    pgd.map_pages(&mut Tools::new(plain, &mut pool), both, PteFlags::USER_RW).expect("mapped");
    let near = Pages::one(va(0x80_1000));
    pgd.map_pages(&mut Tools::new(plain, &mut pool), near, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let inner = FailNth::new(&test.model, refuse(2, 0));
    let machine = FailNth::new(&inner, refuse(0, 1));
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
    pgd.remap(&mut with, page, to).expect_err("refused, and not undone");
    for _ in 0..3 {
        let before = pool_and_tree(&pgd, &plain, &pool);
        let machine = FailNth::new(&test.model, refuse(0, 0));
        let around = guest(&test, &machine, &p2m);
        let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
        let refused = pgd.unmap(&mut with, page).expect_err("refused again");
        let is_said = matches!(refused.error, MapError::InDoubt(_));
        assert!(is_said && refused.done == 0, "{refused}");
        assert_eq!(pool_and_tree(&pgd, &plain, &pool), before);
    }
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    pgd.unmap(&mut with, page).expect("it is put right first");
    assert_eq!(pgd.translate(&plain, to).expect("readable"), None, "it is at no other place");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    pgd.destroy(&mut with).expect("nobody runs on it");
    assert_eq!(pool.len(), free);
    test.check();
}

fn pool_and_tree(
    pgd: &Pgd<pvmmu::Pinned>,
    guest: &p2m::Guest<'_, Model>,
    pool: &Pool,
) -> (usize, Vec<Option<pvmmu::Mapping>>) {
    let pages = [0x40_0000, 0x80_0000, 0x80_1000].map(va);
    let mapped = pages.map(|va| pgd.translate(guest, va).expect("readable"));
    (pool.len(), mapped.to_vec())
}

/// What is refused twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Destroying,
    PinningItsTables,
}

fn refused_twice_and_destroyed(what: What, refusals: [Refusal; 2]) {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    let pages = Pages { start: va(0x3f_f000), count: 40 };
    pgd.map_pages(&mut Tools::new(plain, &mut pool), pages, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let inner = FailNth::new(&test.model, refusals[1]);
    let machine = FailNth::new(&inner, refusals[0]);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
    let left = if what == What::PinningItsTables {
        let _ = pgd.hold_l1_tables(&with.guest, &mut with.batch);
        Some(pgd)
    } else {
        pgd.destroy(&mut with).err().map(|error| error.into_pgd().expect("it is there"))
    };
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    if let Some(pgd) = left {
        pgd.destroy(&mut with).unwrap_or_else(|error| panic!("{refusals:?}: {error}"));
    }
    assert_eq!(pool.len(), free, "{refusals:?}");
    test.check();
}

#[test]
fn an_address_space_can_be_destroyed_after_any_two_refusals_of_destroying_it() {
    for (first, gap, done) in places() {
        refused_twice_and_destroyed(
            What::Destroying,
            [refuse(first, done), refuse(first + gap, done)],
        );
    }
}

#[test]
fn an_address_space_can_be_destroyed_after_any_two_refusals_of_pinning_its_tables() {
    for (first, gap, done) in places() {
        refused_twice_and_destroyed(
            What::PinningItsTables,
            [refuse(first, done), refuse(first + gap, done)],
        );
    }
}

fn places() -> impl Iterator<Item = (u64, u64, usize)> {
    (0..4).flat_map(|first| (1..4).flat_map(move |gap| (0..3).map(move |done| (first, gap, done))))
}

/// Frames, and those in doubt.
#[derive(Default)]
struct Kept {
    free: Vec<Frame>,
    doubtful: Vec<Uncertain>,
}

impl FrameSource for Kept {
    fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.doubtful.push(frames);
    }
}

#[test]
fn both_tables_of_a_map_of_one_frame_are_in_doubt_when_their_flush_is_refused() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let mut kept = Kept::default();
    kept.free.extend(std::iter::from_fn(|| pool.take()));
    let mut before: Vec<Pfn> = kept.free.iter().map(Frame::pfn).collect();
    let plain = guest(&test, &test.model, &p2m);
    let mut places = [const { [const { None }; 1] }; 2];
    let [l1, l2] = &mut places;
    let mut tables = TablePool::new([l1, l2, &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    tables.fill(&plain, Level::L1, 1, &mut kept, &mut batch).expect("filled");
    tables.fill(&plain, Level::L2, 1, &mut kept, &mut batch).expect("filled");
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut kept)).expect("a root");
    // There is an L3 table already.
    let near = Pages::one(va(0x40_0000));
    pgd.map_pages(&mut Tools::new(plain, &mut kept), near, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");

    // Two links and a page, of which the page is refused; the links are undone, and the flush that
    // they owe is refused.
    let inner = FailNth::new(&test.model, refuse(2, 0));
    let machine = FailNth::new(&inner, refuse(0, 2));
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut kept);
    let frame = with.frames.take().expect("a frame");
    let pfn = frame.pfn();
    let refused = pgd.map(&mut with, va(0x8000_0000), PteFlags::USER_RW, frame);
    let refused = refused.expect_err("refused");
    assert!(matches!(refused.error, MapError::NotUndone { left: 0, .. }), "{}", refused.error);
    assert_eq!(refused.value.as_ref().map(Frame::pfn), Some(pfn), "it was never mapped");
    kept.give(refused.value.expect("the same"));
    assert_eq!(kept.doubtful.len(), 2, "the L2 and the L1 table");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut kept);
    pgd.destroy(&mut with).expect("nobody runs on it");
    let doubtful = kept.doubtful.iter().map(Uncertain::start);
    let mut after: Vec<Pfn> = kept.free.iter().map(Frame::pfn).chain(doubtful).collect();
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(after, before, "each frame is in one place");
    test.check();
}

/// Unmapping is refused behind its flush, and so is the flush of the undo: the pages are mapped
/// again. Mapping is: they are mapped nowhere, but a TLB may know them.
#[test]
fn frames_that_were_mapped_for_a_moment_and_could_not_be_flushed_are_in_doubt() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let mut kept = Kept::default();
    kept.free.extend(std::iter::from_fn(|| pool.take()));
    let free = kept.free.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let pages = Pages { start: va(0x40_0000), count: 2 };
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut kept)).expect("a root");
    pgd.map_pages(&mut Tools::new(plain, &mut kept), pages, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    // Three more, of which Xen takes two; then of their undo the updates, not the flush.
    let more = Pages { start: va(0x40_2000), count: 3 };
    let inner = FailNth::new(&test.model, refuse(2, 0));
    let machine = FailNth::new(&inner, refuse(0, 2));
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut kept).with_shares(&mut shares);
    let refused = pgd.map_pages(&mut with, more, PteFlags::USER_RW).expect_err("refused");
    assert!(matches!(refused.error, MapError::NotUndone { left: 0, .. }), "{refused}");
    assert!(refused.to_string().contains("could not be flushed"), "{refused}");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut kept).with_shares(&mut shares);
    pgd.destroy(&mut with).expect("nobody runs on it");
    assert_eq!(kept.doubtful.iter().map(Uncertain::count).sum::<u64>(), 2);
    assert_eq!(kept.free.len(), free - 2, "those two are handed out to nobody");
    let doubtful: BTreeSet<Pfn> = kept.doubtful.iter().map(Uncertain::start).collect();
    assert!(kept.free.iter().all(|frame| !doubtful.contains(&frame.pfn())));
    test.model.audit().expect("every reference has its holder");
}

#[test]
fn a_frame_that_the_frame_map_does_not_know_becomes_no_root_and_no_table() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let plain = guest(&test, &test.model, &p2m);
    let mut kept = Kept::default();
    let root = pool.take().expect("a frame");
    let stranger = pool.take().expect("a frame");
    let unknown = stranger.pfn();
    // SAFETY: nothing of the model's test uses the frame.
    unsafe { p2m.depopulate(unknown) }.expect("it was known");
    kept.free = vec![stranger];
    let refused = Pgd::new(&mut Tools::new(plain, &mut kept)).expect_err("no memory of the test's");
    assert!(matches!(refused, MapError::Walk(WalkError::P2m(_))), "{refused}");
    assert_eq!(kept.free.iter().map(Frame::pfn).collect::<Vec<_>>(), [unknown], "it came back");
    kept.free.push(root);
    let refused =
        Pgd::with_user_root(&mut Tools::new(plain, &mut kept)).expect_err("only one is known");
    assert!(matches!(refused, MapError::Walk(WalkError::P2m(_))), "{refused}");
    assert_eq!(kept.free.len(), 2);
    kept.free.reverse();
    kept.free.sort_by_key(|frame| frame.pfn() != unknown);
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut kept)).expect("a root");
    let page = Pages::one(va(0x40_0000));
    let refused = pgd
        .map_pages(&mut Tools::new(plain, &mut kept), page, PteFlags::USER_RW)
        .expect_err("a table");
    assert!(matches!(refused.error, MapError::Walk(WalkError::P2m(_))), "{refused}");
    assert_eq!(kept.free.iter().map(Frame::pfn).collect::<Vec<_>>(), [unknown], "it came back");
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut places = [None];
    let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
    tables.fill(&plain, Level::L1, 1, &mut kept, &mut batch).expect_err("a table");
    assert_eq!((kept.free.len(), tables.is_empty()), (1, true));
    pgd.destroy(&mut Tools::new(plain, &mut kept)).expect("readable");
    test.check();
}

/// Pages that can be written and are clean: they lose write access while they move to `to`, or are
/// looked at. Xen refuses two requests; with Xen well again, the next operation puts right what is
/// left of that. Whether the error of the first one said that something is.
fn write_protected(
    operation: impl FnOnce(&mut Section<'_, '_, '_, '_>, Pages) -> Result<(), MapError>,
    to: GuestVa,
    refusals: [Refusal; 2],
) -> bool {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let plain = guest(&test, &test.model, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    let flags = PteFlags::USER_RW - PteFlags::DIRTY;
    let (pages, near) = (Pages { start: va(0x40_0000), count: 4 }, Pages::one(va(0x80_8000)));
    for pages in [pages, near] {
        pgd.map_pages(&mut Tools::new(plain, &mut pool), pages, flags).expect("mapped");
    }
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let inner = FailNth::new(&test.model, refusals[1]);
    let machine = FailNth::new(&inner, refusals[0]);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
    with.presence = Presence::Steady;
    let done = pgd.edit(&mut with, |edit| operation(edit, pages)).map_err(|refused| refused.error);
    let writable = |pgd: &Pgd<pvmmu::Pinned>| {
        let all = [pages, Pages { start: to, ..pages }].into_iter();
        let all = all.flat_map(|pages| (0..4).map(move |at| pages.at(at).expect("user half")));
        let page = |va| pgd.translate(&plain, va).expect("readable");
        let writable = |va| page(va).is_some_and(|page| page.flags.contains(PteFlags::WRITABLE));
        all.filter(|va| writable(*va)).count()
    };
    let is_left = matches!(done, Err(MapError::NotUndone { .. }));
    assert!(is_left || writable(&pgd) == 4, "not said: {refusals:?}: {done:?}");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    pgd.unmap(&mut with, near).expect("unmapped");
    assert_eq!(writable(&pgd), 4, "write access is lost for good: {refusals:?}: {done:?}");
    pgd.destroy(&mut with).expect("destroyed");
    test.check();
    is_left
}

/// How many of all pairs of refusals leave something that is to be put right.
fn left_write_protected(
    operation: impl Fn(&mut Section<'_, '_, '_, '_>, Pages) -> Result<(), MapError>,
    to: GuestVa,
) -> usize {
    let pairs = (0..6).flat_map(|first| (first..8).map(move |next| (first, next)));
    let places = pairs.flat_map(|pair| [0, 1, 3].map(|done| (pair, done)));
    let left = places.filter(|((first, next), done)| {
        write_protected(&operation, to, [refuse(*first, *done), refuse(*next, *done)])
    });
    left.count()
}

#[test]
fn a_page_that_was_not_moved_gets_write_access_back_before_what_is_next() {
    let to = va(0x80_0000);
    let left = left_write_protected(|edit, pages| edit.remap(pages, to), to);
    assert!(left > 5, "{left} pairs left something");
}

#[test]
fn a_page_that_was_not_cleared_gets_write_access_back_before_what_is_next() {
    let clear =
        |edit: &mut Section<'_, '_, '_, '_>, pages| edit.clear_reading_ad(pages, &mut |_, _| {});
    let left = left_write_protected(clear, va(0x90_0000));
    assert!(left > 5, "{left} pairs left something");
}
