//! Xen refuses the links of tables that come from the pool, and then the undo.

mod common;

use common::{Pool, TestGuest, guest, page, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, DomId, Errno, Frame, FrameSource, Level, PteFlags, Uncertain};
use p2m::Guest;
use pvmmu::{Pages, Pgd, Pinned, TablePool, Tools};
use xen_model::Model;

const LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// Frames, and those that are in doubt, which never come back.
struct Kept {
    pool: Pool,
    doubtful: Vec<Uncertain>,
}

impl FrameSource for Kept {
    fn take(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        let is_doubtful = self.doubtful.iter().any(|run| run.start() == frame.pfn());
        assert!(!is_doubtful, "{frame:?} is in doubt");
        self.pool.give(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.doubtful.push(frames);
    }
}

type Twice<'m> = FailNth<&'m FailNth<&'m Model>>;
type With<'a, 't, 'm> = Tools<'a, 't, Twice<'m>, Kept>;

/// Does `refused` with an address space and a pool while two requests are refused, and `after` it
/// something with another one, with Xen well again. Then all is taken apart, and no frame is lost.
fn refused_twice(
    test: &TestGuest,
    refusals: [Refusal; 2],
    refused: impl FnOnce(&mut Pgd<Pinned>, &mut With<'_, '_, '_>),
    after: impl FnOnce(&mut Pgd<Pinned>, &Guest<'_, Model>, &mut Tools<'_, '_, Model, Kept>),
) {
    let p2m = test.p2m();
    let plain = guest(test, &test.model, &p2m);
    let mut kept = Kept { pool: test.pool(), doubtful: Vec::new() };
    let free = kept.pool.len() as u64;
    let mut places = [const { [const { None }; 4] }; 3];
    let mut tables = TablePool::new(places.each_mut().map(|places| &mut places[..]));
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    for level in LEVELS {
        tables.fill(&plain, level, 2, &mut kept, &mut batch).expect("filled");
    }
    let [mut one, mut other] = [0, 1].map(|_| {
        let pgd = Pgd::new(&mut Tools::new(plain, &mut kept)).expect("a root");
        pgd.pin(&plain, &mut batch).expect("pinned")
    });
    let inner = FailNth::new(&test.model, refusals[1]);
    let machine = FailNth::new(&inner, refusals[0]);
    let around = guest(test, &machine, &p2m);
    refused(&mut one, &mut tools(&around, &mut batch, &mut tables, &mut kept));
    let mut with = tools(&plain, &mut batch, &mut tables, &mut kept);
    after(&mut other, &plain, &mut with);
    for pgd in [one, other] {
        pgd.destroy(&mut with).expect("destroyed");
    }
    for level in LEVELS {
        with.drain_pool(level, 99).expect("drained");
    }
    let doubtful: u64 = kept.doubtful.iter().map(Uncertain::count).sum();
    assert_eq!(kept.pool.len() as u64 + doubtful, free, "a frame is lost: {refusals:?}");
    test.check();
}

fn pairs(elements: usize) -> impl Iterator<Item = [Refusal; 2]> {
    let refuse = |request, done| Refusal { request, errno: Errno::ENOMEM, done };
    let first = (0..3).flat_map(move |request| (0..elements).map(move |done| (request, done)));
    first.flat_map(move |(request, done)| {
        let next = (request..6).flat_map(move |next| (0..elements).map(move |done| (next, done)));
        next.map(move |(next, undone)| [refuse(request, done), refuse(next, undone)])
    })
}

/// Each page of another domain is a request of its own, which Xen does even if it refuses the one
/// before it, with the links.
#[test]
fn a_table_that_was_not_linked_goes_back_to_the_pool_empty_or_not_at_all() {
    let at = |index: u64| Pages::one(page(5000 + index));
    for refusals in pairs(4) {
        let test = TestGuest::dom0();
        let neighbour = test.model.vcpu(1, 0).expect("built");
        let theirs = (700..1024).find_map(|pfn| neighbour.built_mfn(hypercall::Pfn::new(pfn)));
        let theirs = theirs.expect("it has memory");
        refused_twice(
            &test,
            refusals,
            |pgd, with| {
                let _ = pgd.edit(with, |edit| {
                    edit.map_pages(at(0), PteFlags::USER_RW)?;
                    edit.map_foreign(at(1), PteFlags::USER_RW, theirs, DomId(1))?;
                    edit.map_pages(at(2), PteFlags::USER_RW)
                });
            },
            |pgd, guest, with| {
                pgd.map_pages(with, at(7), PteFlags::USER_RW).expect("mapped");
                let mut mapped = Vec::new();
                let around = Pages { count: 512, ..at(0) };
                pgd.translate_pages(guest, around, &mut |page| mapped.push(page.va))
                    .expect("readable");
                assert_eq!(mapped, [at(7).start], "pages of another one: {refusals:?}");
            },
        );
    }
}

#[test]
fn tables_that_are_in_doubt_are_all_counted_when_one_frame_was_to_be_mapped() {
    for refusals in pairs(5) {
        refused_twice(
            &TestGuest::small(),
            refusals,
            |pgd, with| {
                let frame = with.frames.take().expect("a frame");
                let mapped = pgd.map(with, page(5000), PteFlags::USER_RW, frame);
                let frame = mapped.err().and_then(|failed| failed.value);
                frame.into_iter().for_each(|frame| with.frames.give(frame));
            },
            |_, _, _| {},
        );
    }
}
