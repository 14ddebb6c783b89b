//! Code of the caller panics in the middle of an operation, and somebody catches it: what is handed
//! on is handed on once.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Pool, TestGuest, guest, page, tools};
use hypercall::middleware::{FailEach, Refusal, Refusals, Traced};
use hypercall::{BatchStorage, Errno, Frame, FrameSource, Level, Pfn, PteFlags, Uncertain};
use p2m::Guest;
use pvmmu::{Edit, MapError, Pages, Pgd, Pinned, Shares, TablePool};
use xen_model::Model;

const LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// Panics once it was called so often.
struct Fuse(Cell<u64>);

impl Fuse {
    fn burn(&self) {
        let left = self.0.get();
        self.0.set(left.wrapping_sub(1));
        assert!(left != 0, "burnt through");
    }
}

/// Frames. What it is given it keeps, and then it may panic.
struct Panicking<'f> {
    pool: Pool,
    doubtful: Vec<Uncertain>,
    fuse: &'f Fuse,
}

impl FrameSource for Panicking<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.fuse.burn();
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        let is_doubtful = self.doubtful.iter().any(|run| run.start() == frame.pfn());
        assert!(!is_doubtful, "{frame:?} is in doubt");
        self.pool.give(frame);
        self.fuse.burn();
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        let mine = self.pool.pfns().chain(self.doubtful.iter().map(Uncertain::start));
        assert!(
            mine.collect::<Vec<_>>().iter().all(|pfn| *pfn != frames.start()),
            "{frames} again"
        );
        self.doubtful.push(frames);
        self.fuse.burn();
    }
}

/// Where a trace goes, until the fuse is burnt.
struct Sink<'f>(&'f Fuse);

impl fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Once for each line.
        if text.ends_with('\n') {
            self.0.burn();
        }
        Ok(())
    }
}

type Machine<'r, 'm> = FailEach<'r, Traced<&'m Model, Sink<'m>>>;
type Section<'e, 'a, 't, 'r, 'm> = Edit<'e, 'a, 't, Machine<'r, 'm>, Panicking<'m>>;

/// Does it, whatever panics.
fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn at(index: u64) -> Pages {
    Pages::one(page(index))
}

/// What a section does when something has panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoesOn,
    Fails,
}

/// A section that catches what panics in each of its operations.
fn section(
    edit: &mut Section<'_, '_, '_, '_, '_>,
    frame: Frame,
    then: Then,
) -> Result<(), MapError> {
    let (flags, mut frame) = (PteFlags::USER_RW, Some(frame));
    let mut does =
        |step: &mut dyn FnMut(&mut Section<'_, '_, '_, '_, '_>) -> Result<(), MapError>| {
            let is_caught = caught(|| step(edit)).is_none();
            if is_caught && then == Then::Fails { Err(MapError::OutOfFrames) } else { Ok(()) }
        };
    does(&mut |edit| edit.unmap(Pages { count: 3, ..at(1) }))?;
    does(&mut |edit| edit.map_pages(at(5000), flags))?;
    does(&mut |edit| edit.submit())?;
    does(&mut |edit| edit.replace(page(90), flags, frame.take().expect("once")))?;
    does(&mut |edit| edit.remap(at(4), page(6000)))?;
    does(&mut |edit| edit.map_pages(at(9000), flags))?;
    does(&mut |edit| edit.submit())?;
    does(&mut |edit| edit.move_table(page(8), page(8 + 512 * 9)))?;
    does(&mut |edit| edit.make_own(page(5)))?;
    // Page 90 is mapped: what is pending when that is found does not happen.
    does(&mut |edit| edit.map_pages(Pages { start: page(20), count: 71 }, flags))?;
    does(&mut |edit| edit.walk(page(0)).map(drop))
}

/// No frame is free that an address space maps.
fn check(plain: &Guest<'_, Model>, spaces: &[&Pgd<Pinned>], frames: &Panicking<'_>, what: &str) {
    let free: BTreeSet<Pfn> = frames.pool.pfns().collect();
    let all = Pages { start: page(0), count: 10_000 };
    for pgd in spaces {
        pgd.walk(plain, all, &mut |step| {
            let pfn = plain.pfn(step.pte.mfn()).expect("all are the guest's");
            assert!(!free.contains(&pfn), "{what}: pfn {pfn} is free: {step:?}");
        })
        .expect("readable");
    }
}

/// Which code of the caller panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Frames,
    Machine,
}

fn run(who: Who, then: Then, fuse: u64, refusals: &[Refusal]) -> bool {
    let what = format!("{who:?} {then:?} {fuse} {refusals:?}");
    let test = TestGuest::small();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let never = || Fuse(Cell::new(u64::MAX));
    let (frames_fuse, sink_fuse) = (never(), never());
    let mut frames = Panicking { pool: test.pool(), doubtful: Vec::new(), fuse: &frames_fuse };
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut places = [const { [const { None }; 4] }; 3];
    let mut tables = TablePool::new(places.each_mut().map(|places| &mut places[..]));
    let mut storage = BatchStorage::<200, 8>::new();
    let mut batch = storage.batch();
    for level in LEVELS {
        tables.fill(&plain, level, 2, &mut frames, &mut batch).expect("filled");
    }
    let mut with = tools(&plain, &mut batch, &mut tables, &mut frames).with_shares(&mut shares);
    let mut pgd = Pgd::new(&mut with).expect("a root");
    pgd.map_pages(&mut with, Pages { count: 10, ..at(0) }, PteFlags::USER_RW).expect("mapped");
    pgd.map_pages(&mut with, Pages { count: 3, ..at(90) }, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut with.batch).expect("pinned");
    let child = pgd.fork(&mut with).expect("forked");
    let frame = with.frames.take().expect("a frame");

    let plan = Refusals::new(refusals, &[]);
    let machine = FailEach::new(Traced::new(&test.model, Sink(&sink_fuse)), &plan);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut frames).with_shares(&mut shares);
    let burning = if who == Who::Frames { &frames_fuse } else { &sink_fuse };
    burning.0.set(fuse);
    let _ = caught(|| pgd.edit(&mut with, |edit| section(edit, frame, then)));
    let is_burnt = burning.0.get() > fuse;
    burning.0.set(u64::MAX);
    check(&plain, &[&pgd, &child], &frames, &what);

    let mut with = tools(&plain, &mut batch, &mut tables, &mut frames).with_shares(&mut shares);
    for pgd in [pgd, child] {
        // The frames panic if one of them comes twice.
        pgd.destroy(&mut with).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    for level in LEVELS {
        with.drain_pool(level, 99).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    test.model.audit().expect("every reference has its holder");
    is_burnt
}

fn refuse(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

/// All places at which the fuse burns through, `each` of them from one to the next.
fn run_all(who: Who, each: usize) {
    for then in [Then::GoesOn, Then::Fails] {
        for fuse in (0..).step_by(each) {
            let is_burnt = run(who, then, fuse, &[]);
            for request in (0..5).filter(|request| (request + fuse) % 5 == 0) {
                run(who, then, fuse, &[refuse(request, 1)]);
                run(who, then, fuse, &[refuse(request, 1), refuse(request + 2, 0)]);
            }
            if !is_burnt {
                assert!(fuse > 50, "{who:?} is asked for nothing");
                break;
            }
        }
    }
}

#[test]
fn what_a_source_of_frames_was_given_when_it_panicked_is_given_once() {
    run_all(Who::Frames, 5);
}

#[test]
fn what_a_machine_did_when_it_panicked_is_done_once() {
    run_all(Who::Machine, 7);
}
