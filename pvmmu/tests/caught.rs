//! Sections that catch the error of an operation and go on: what the operation had pending does not
//! happen, and nothing is done behind it.

mod common;

use std::cell::{Cell, RefCell};

use common::{Pool, TestGuest, guest, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, DomId, Errno, Frame, FrameSource, GuestVa, Level, Mfn, PteFlags};
use pv_tests::account::Account;
use pvmmu::{
    Edit, ForeignFrames, MapError, Mapping, Pages, Pgd, PooledTable, Presence, RangeError,
    TablePool, Tools,
};
use xen_model::Model;

/// What operations get from outside of their section.
struct Hand {
    /// How many frames there are for pages before one is refused, once.
    left: Cell<Option<usize>>,
    /// Frames to be mapped.
    spare: RefCell<Vec<Frame>>,
}

impl Hand {
    fn frame(&self) -> Frame {
        self.spare.borrow_mut().pop().expect("one for each operation")
    }
}

/// The frames of a pool, until they run out.
struct Scarce<'p> {
    pool: &'p RefCell<Pool>,
    hand: &'p Hand,
}

impl FrameSource for Scarce<'_> {
    fn take(&mut self) -> Option<Frame> {
        let left = self.hand.left.get();
        self.hand.left.set(left.and_then(|left| left.checked_sub(1)));
        if left == Some(0) { None } else { self.pool.borrow_mut().take() }
    }

    fn give(&mut self, frame: Frame) {
        self.pool.borrow_mut().give(frame);
    }
}

/// The same frames, for tables: they do not run out.
struct Plenty<'p>(&'p RefCell<Pool>);

impl FrameSource for Plenty<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.0.borrow_mut().take()
    }

    fn give(&mut self, frame: Frame) {
        self.0.borrow_mut().give(frame);
    }
}

/// Knows that whatever is not the guest's is a device's.
struct Devices;

impl ForeignFrames for Devices {
    fn give_foreign(&mut self, _: Mfn) {}

    fn domain_of(&self, _: Mfn) -> DomId {
        DomId::IO
    }
}

type Section<'e, 'a, 't, 'p> = Edit<'e, 'a, 't, Model, Scarce<'p>>;
type Done = Result<(), MapError>;
/// An operation, by its name.
#[derive(Clone, Copy)]
struct Operation(&'static str, fn(&mut Section<'_, '_, '_, '_>, &Hand) -> Done);

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Of a page that can be written and is clean.
const CLEAN: PteFlags = PteFlags::USER_RW.difference(PteFlags::DIRTY);
const VGA: Mfn = Mfn::new(0xb8);

fn pages(address: u64, count: u64) -> Pages {
    Pages { start: GuestVa::new(address).expect("user half"), count }
}

/// Where 66 pages are mapped and no more, beside one of another domain's, if there is one.
fn full(first: u64, count: u64) -> Pages {
    pages(0x40_0000 + (first << 12), count)
}

/// Where 66 pages are free, and the next one is mapped.
fn free(first: u64, count: u64) -> Pages {
    pages(0x80_0000 + (first << 12), count)
}

/// Where there are no tables.
fn nowhere(first: u64, count: u64) -> Pages {
    pages(0x4000_0000 + (first << 12), count)
}

/// How the address space is, and how it is edited.
#[derive(Clone, Copy, Debug)]
struct World {
    has_foreign: bool,
    is_pooled: bool,
    presence: Presence,
    /// Updates that a batch takes.
    room: usize,
}

/// Each thing with each other one.
const WORLDS: [World; 4] = [
    World { has_foreign: true, is_pooled: false, presence: Presence::Steady, room: 200 },
    World { has_foreign: false, is_pooled: true, presence: Presence::Steady, room: 6 },
    World { has_foreign: true, is_pooled: true, presence: Presence::MayVanish, room: 200 },
    World { has_foreign: false, is_pooled: false, presence: Presence::MayVanish, room: 6 },
];

/// Each fails, most of them behind some of their pages.
const FAILING: &[Operation] = &[
    Operation("unmap", |edit, _| edit.unmap(full(0, 70))),
    Operation("unmap some", |edit, _| edit.unmap(full(30, 50))),
    Operation("protect", |edit, _| edit.protect(full(0, 70), READ_ONLY)),
    Operation("unmap and look", |edit, _| edit.unmap_reading_ad(full(0, 70), &mut |_, _| {})),
    Operation("clear", |edit, _| edit.clear_reading_ad(full(0, 70), &mut |_, _| {})),
    Operation("map", |edit, _| edit.map_pages(free(0, 70), CLEAN)),
    Operation("map what is mapped", |edit, _| edit.map_pages(full(0, 3), CLEAN)),
    Operation("map without frames", |edit, hand| {
        hand.left.set(Some(5));
        edit.map_pages(free(0, 20), CLEAN)
    }),
    Operation("map elsewhere without frames", |edit, hand| {
        hand.left.set(Some(5));
        edit.map_pages(nowhere(0, 20), CLEAN)
    }),
    Operation("map another's", |edit, _| {
        edit.map_foreign(free(0, 70), PteFlags::USER_RW, VGA, DomId::IO)
    }),
    Operation("move", |edit, _| edit.remap(full(0, 70), free(0, 1).start)),
    Operation("move elsewhere", |edit, _| edit.remap(full(0, 70), nowhere(0, 1).start)),
    Operation("replace", |edit, hand| edit.replace(full(66, 1).start, CLEAN, hand.frame())),
    Operation("flags of no table", |edit, _| {
        edit.set_table_flags(Level::L2, nowhere(0, 1).start, PteFlags::TABLE)
    }),
    Operation("own", |edit, _| edit.make_own(free(0, 1).start)),
    Operation("move no table", |edit, _| edit.move_table(nowhere(0, 1).start, free(0, 1).start)),
];

/// What comes next: on the first page and the last one that those may have behind them.
const NEXT: &[Operation] = &[
    Operation("unmap the first", |edit, _| edit.unmap(full(0, 1))),
    Operation("unmap the last", |edit, _| edit.unmap(full(65, 1))),
    Operation("unmap all", |edit, _| edit.unmap(full(0, 66))),
    Operation("unmap what may be mapped", |edit, _| edit.unmap(free(0, 1))),
    Operation("unmap what may be mapped elsewhere", |edit, _| edit.unmap(nowhere(0, 1))),
    Operation("protect", |edit, _| edit.protect(full(0, 66), READ_ONLY)),
    Operation("unmap and look", |edit, _| edit.unmap_reading_ad(full(0, 66), &mut |_, _| {})),
    Operation("clear", |edit, _| edit.clear_reading_ad(full(0, 66), &mut |_, _| {})),
    Operation("map", |edit, _| edit.map_pages(free(0, 8), CLEAN)),
    Operation("map the last", |edit, _| edit.map_pages(free(65, 1), CLEAN)),
    Operation("map elsewhere", |edit, _| edit.map_pages(nowhere(0, 20), CLEAN)),
    Operation("map again", |edit, _| edit.map_pages(full(0, 1), CLEAN)),
    Operation("map another's", |edit, _| {
        edit.map_foreign(free(0, 2), PteFlags::USER_RW, VGA, DomId::IO)
    }),
    Operation("replace the first", |edit, hand| {
        edit.replace(full(0, 1).start, CLEAN, hand.frame())
    }),
    Operation("replace the last", |edit, hand| {
        edit.replace(full(63, 1).start, CLEAN, hand.frame())
    }),
    Operation("move", |edit, _| edit.remap(full(0, 4), free(0, 1).start)),
    Operation("move what may be mapped", |edit, _| edit.remap(free(0, 1), full(69, 1).start)),
    Operation("move elsewhere", |edit, _| edit.remap(full(0, 66), nowhere(0, 1).start)),
    Operation("move the table", |edit, _| edit.move_table(full(0, 1).start, nowhere(0, 1).start)),
    Operation("flags of the table", |edit, _| {
        edit.set_table_flags(Level::L2, full(0, 1).start, READ_ONLY)
    }),
    Operation("own", |edit, _| edit.make_own(full(0, 1).start)),
    Operation("walk", |edit, _| edit.walk(full(0, 1).start).map(drop)),
    Operation("submit", |edit, _| edit.submit()),
];

/// What a section came to.
struct Outcome {
    first: Done,
    section: Result<(), RangeError>,
    /// Which pages of [`full`] and [`free`] are mapped, and which of those can be written.
    mapped: [Vec<bool>; 2],
    writable: Vec<bool>,
}

/// A section of two operations in an address space, and its end; everything is accounted for.
fn section(test: &TestGuest, world: World, first: Operation, next: Option<Operation>) -> Outcome {
    let World { has_foreign, is_pooled, presence, room } = world;
    let p2m = test.p2m();
    let guest = guest(test, &test.model, &p2m);
    let mut pool = test.pool();
    let _aside = pool.keep(200);
    let mut account = Account::of(pool.pfns());
    let mut places = [const { None::<PooledTable> }; 6];
    let (l1, rest) = places.split_at_mut(2);
    let (l2, l3) = rest.split_at_mut(2);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = BatchStorage::<200, 12>::new();
    let mut batch = storage.batch_of(room, 12);
    if is_pooled {
        for level in [Level::L1, Level::L2, Level::L3] {
            tables.fill(&guest, level, 2, &mut pool, &mut batch).expect("filled");
        }
    }
    let mut pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    for pages in [full(0, 66), free(66, 1)] {
        pgd.map_pages(&mut Tools::new(guest, &mut pool), pages, CLEAN).expect("mapped");
    }
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let spare = (0..2).filter_map(|_| pool.take()).collect();
    let hand = Hand { left: Cell::new(None), spare: RefCell::new(spare) };
    let pool = RefCell::new(pool);
    let (mut plenty, mut devices) = (Plenty(&pool), Devices);
    let mut frames = Scarce { pool: &pool, hand: &hand };
    let with = tools(&guest, &mut batch, &mut tables, &mut frames);
    let mut with = with.with_table_frames(&mut plenty).with_foreign(&mut devices);
    with.presence = presence;
    if has_foreign {
        let page = full(100, 1);
        pgd.edit(&mut with, |edit| edit.map_foreign(page, CLEAN, VGA, DomId::IO))
            .expect("a device's");
    }
    let mut failed = Ok(());
    let section = pgd.edit(&mut with, |edit| {
        failed = first.1(edit, &hand);
        hand.left.set(None);
        next.map_or(failed, |next| next.1(edit, &hand))
    });
    let seen = |pages: Pages| {
        let mut seen = vec![None; 66];
        let start = pages.start.raw();
        let mut note = |page: Mapping| {
            let at = usize::try_from((page.va.raw() - start) >> 12).expect("few");
            seen[at] = Some(page.flags.contains(PteFlags::WRITABLE));
        };
        pgd.translate_pages(&guest, pages, &mut note).expect("readable");
        seen
    };
    let seen = [full(0, 66), free(0, 66)].map(seen);
    let writable = seen[0].iter().map(|page| *page == Some(true)).collect();
    let mapped = seen.map(|pages| pages.iter().map(Option::is_some).collect());
    pgd.destroy(&mut with).expect("destroyed");
    for level in [Level::L1, Level::L2, Level::L3] {
        with.drain_pool(level, 2).expect("drained");
    }
    let mut pool = pool.into_inner();
    hand.spare.into_inner().into_iter().for_each(|frame| pool.give(frame));
    account.found("free", pool.pfns());
    account.assert_balanced();
    Outcome { first: failed, section, mapped, writable }
}

/// With each of the operations that fail, and each that may follow.
#[test]
fn whatever_a_section_does_behind_an_error_each_frame_is_found_once() {
    let mut ended = 0;
    for world in WORLDS {
        let test = TestGuest::dom0();
        for first in FAILING {
            for next in NEXT {
                println!("{world:?}: {}, {}", first.0, next.0);
                let Outcome { first, section, .. } = section(&test, world, *first, Some(*next));
                let error = first.expect_err("it is one of those that fail");
                ended += u32::from(section.is_err_and(|refused| refused.error == error));
            }
            test.check();
        }
    }
    assert!(ended > 200, "{ended} sections ended with the first error");
}

/// The error of a section counts the pages for which it is in effect: these and no others.
#[test]
fn an_operation_that_fails_is_in_effect_for_the_pages_that_are_counted_and_no_others() {
    for world in WORLDS {
        let test = TestGuest::dom0();
        let after = |name| {
            let operation = FAILING.iter().find(|known| known.0 == name).expect("listed");
            let Outcome { section, mapped, writable, .. } = section(&test, world, *operation, None);
            let done = section.expect_err("it fails").done;
            (usize::try_from(done).expect("few"), mapped, writable)
        };
        let first = |done: usize| (0..66).map(|at| at < done).collect::<Vec<_>>();
        let behind = |done: usize| (0..66).map(|at| at >= done).collect::<Vec<_>>();
        for name in ["unmap", "unmap and look"] {
            let (done, [full, _], _) = after(name);
            assert_eq!(full, behind(done), "{world:?}: {name}, {done} done");
        }
        let (done, [full, _], writable) = after("protect");
        assert_eq!((full, writable), (first(66), behind(done)), "{world:?}: {done} done");
        for name in ["map", "map another's", "map without frames"] {
            let (done, [_, free], _) = after(name);
            assert_eq!(free, first(done), "{world:?}: {name}, {done} done");
        }
        let (done, [full, free], _) = after("move");
        assert_eq!((full, free), (behind(done), first(done)), "{world:?}: {done} done");
    }
}

/// What earlier operations had pending does not happen either, and the section cannot end well.
#[test]
fn a_section_whose_pending_changes_were_dropped_fails_even_if_it_catches_the_error() {
    let test = TestGuest::dom0();
    let first = Operation("unmap, and map without frames", |edit, hand| {
        edit.unmap(full(0, 1))?;
        hand.left.set(Some(5));
        edit.map_pages(free(0, 20), CLEAN)
    });
    let next = Operation("nothing", |edit, _| {
        assert_eq!(edit.submit(), Err(MapError::OutOfFrames), "it has ended");
        Ok(())
    });
    let Outcome { section, mapped, .. } = section(&test, WORLDS[0], first, Some(next));
    assert_eq!(section, Err(RangeError { done: 0, error: MapError::OutOfFrames }));
    assert_eq!(mapped, [vec![true; 66], vec![false; 66]]);
}

/// The same after a refusal of Xen's: what it has undone is not forgotten.
#[test]
fn a_section_whose_submit_was_refused_fails_even_if_it_catches_the_error() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let plain = guest(&test, &test.model, &p2m);
    let mut storage = BatchStorage::<200, 12>::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    pgd.map_pages(&mut Tools::new(plain, &mut pool), full(0, 2), CLEAN).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let refusal = Refusal { request: 0, errno: Errno::ENOMEM, done: 1 };
    let machine = FailNth::new(&test.model, refusal);
    let around = guest(&test, &machine, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
    let ended = pgd.edit(&mut with, |edit| {
        edit.unmap(full(0, 2))?;
        let refused = edit.submit().expect_err("refused");
        assert!(matches!(refused, MapError::Refused { .. }), "{refused}");
        assert_eq!(edit.unmap(full(1, 1)), Err(refused), "the section has ended");
        Ok(())
    });
    let ended = ended.expect_err("its pages are not unmapped");
    assert!(matches!(ended, RangeError { done: 0, error: MapError::Refused { .. } }), "{ended}");
    for page in [full(0, 1), full(1, 1)] {
        assert!(pgd.translate(&plain, page.start).expect("readable").is_some());
    }
    pgd.destroy(&mut with).expect("destroyed");
    test.check();
}
