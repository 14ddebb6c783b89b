//! Frames of others: of a domain that dom0 has power over, of Xen, of nobody.

mod common;

use std::collections::BTreeSet;

use common::{Guest, Pool, build, context, page, tools};
use hypercall::{BatchStorage, DomId, Errno, FailNth, Frame, Machine, Mfn, PteFlags, Refusal};
use pvmmu::{
    Context, FrameSource, MapError, Pages, Pgd, Pinned, RangeError, TablePool, Tools, walk,
};

const NEIGHBOUR: DomId = DomId(1);
/// Behind what `build` maps, so that tables are missing.
const FAR: u64 = 5000;

/// Free frames, and a note of what came back that was never free.
struct Noting {
    pool: Pool,
    foreign: Vec<Mfn>,
}

impl FrameSource for Noting {
    fn take(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        self.pool.give(frame);
    }

    fn give_foreign(&mut self, mfn: Mfn) {
        self.foreign.push(mfn);
    }
}

/// The longest run of machine frames that the neighbour has.
fn run_of_the_neighbour(guest: &Guest) -> (Mfn, u64) {
    let neighbour = guest.model.vcpu(NEIGHBOUR.0, 0).expect("built");
    let pfns = (0..1024).map(hypercall::Pfn::new);
    let mfns: BTreeSet<u64> =
        pfns.filter_map(|pfn| neighbour.built_mfn(pfn)).map(Mfn::raw).collect();
    let run = |first: &u64| (*first..).take_while(|mfn| mfns.contains(mfn)).count() as u64;
    let first = mfns.iter().max_by_key(|first| run(first)).expect("it has frames");
    // Behind them come the neighbour's tables, which nobody may map writable.
    (Mfn::new(*first), run(first).min(12))
}

fn map<M: Machine, F: FrameSource>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Tools<'_, '_, '_, M, F>,
    (at, count): (u64, u64),
    frames: (Mfn, DomId),
) -> Result<(), RangeError> {
    let pages = Pages { start: page(at), count };
    pgd.edit(with, |edit| edit.map_foreign((pages, PteFlags::USER_RW), frames))
}

fn leaf<M: Machine>(context: &Context<'_, M>, pgd: &Pgd<Pinned>, at: u64) -> Option<Mfn> {
    let leaf = walk(context, pgd.root(), page(at)).expect("readable").leaf()?;
    leaf.1.is_present().then(|| leaf.1.mfn())
}

#[test]
fn dom0_maps_a_neighbours_frames_and_is_told_when_they_go() {
    let guest = Guest::dom0();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut frames = Noting { pool: guest.pool(), foreign: Vec::new() };
    let free = frames.pool.len();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&context, 4, &mut frames.pool).pin(&context, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let (first, count) = run_of_the_neighbour(&guest);
    assert!(count > 1, "frames that follow one another");
    for at in [6, FAR] {
        let mut with = tools(&context, &mut batch, &mut tables, &mut frames);
        map(&mut pgd, &mut with, (at, count), (first, NEIGHBOUR)).expect("dom0 may");
        for index in 0..count {
            assert_eq!(leaf(&context, &pgd, at + index), first.checked_add(index));
        }
        guest.check();
        let half = Pages { start: page(at), count: count / 2 };
        pgd.unmap(&mut with, half).expect("unmapped");
        assert_eq!(frames.foreign.len() as u64, count / 2);
        frames.foreign.clear();
        guest.check();
    }
    let mut with = tools(&context, &mut batch, &mut tables, &mut frames);
    pgd.destroy(&mut with).expect("destroyed");
    assert_eq!(frames.foreign.len() as u64, 2 * (count - count / 2));
    assert_eq!(frames.pool.len(), free);
    guest.check();
}

#[test]
fn what_is_not_the_neighbours_is_refused_and_no_page_behind_it_is_mapped() {
    let guest = Guest::dom0();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&context, 4, &mut pool).pin(&context, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
    let (first, _) = run_of_the_neighbour(&guest);
    let own = p2m.mfn(hypercall::Pfn::new(9)).expect("RAM");
    let mut refused = |count, frames| {
        let error = map(&mut pgd, &mut with, (6, count), frames).expect_err("not allowed");
        for at in 0..count {
            assert_eq!(leaf(&context, &pgd, 6 + at).is_some(), at < error.done, "{error}");
        }
        let mapped = Pages { start: page(6), count: error.done };
        pgd.unmap(&mut with, mapped).expect("only what was mapped before");
        guest.check();
        error.error
    };
    // The guest's own frame, whatever it is called: it would be mapped without its token.
    for domain in [DomId::SELF, DomId(0), NEIGHBOUR, DomId::IO] {
        assert_eq!(refused(1, (own, domain)), MapError::Own(hypercall::Pfn::new(9)));
    }
    // The neighbour's root, which nobody may map writable, and frames in front of it.
    let neighbour = guest.model.vcpu(NEIGHBOUR.0, 0).expect("built");
    let root = neighbour.kernel_root().expect("it has one").raw();
    match refused(4, (Mfn::new(root - 2), NEIGHBOUR)) {
        MapError::Refused { va, error } => {
            assert!((page(6)..=page(8)).contains(&va), "{va}");
            assert_eq!(error.error.errno, Errno::EBUSY);
        }
        other => panic!("{other}"),
    }
    let errno = |error| match error {
        MapError::Refused { error, .. } | MapError::RefusedCall(error) => error.error.errno,
        other => panic!("{other}"),
    };
    assert_eq!(errno(refused(2, (first, DomId(77)))), Errno::ESRCH, "no such domain");
    pgd.destroy(&mut tools(&context, &mut batch, &mut tables, &mut pool)).expect("destroyed");
    guest.check();
}

#[test]
fn a_domu_has_no_power_over_its_neighbours() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&context, 4, &mut pool).pin(&context, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
    for domain in [DomId::IO, DomId::XEN, DomId(0)] {
        let somewhere = Mfn::new(guest.model.ram_end().raw() - 1);
        let error = map(&mut pgd, &mut with, (6, 1), (somewhere, domain)).expect_err("no power");
        let is_refused = matches!(error.error, MapError::Refused { .. } | MapError::RefusedCall(_));
        assert!(is_refused, "{domain:?}: {error}");
    }
    pgd.destroy(&mut with).expect("destroyed");
    guest.check();
}

#[test]
fn whichever_request_is_refused_no_foreign_frame_stays_mapped_untold() {
    let mut refusals = 0;
    for request in 0..40 {
        let mut reached = false;
        for done in [0, 1, 3] {
            let guest = Guest::dom0();
            let p2m = guest.p2m();
            let plain = context(&guest, &guest.model, &p2m);
            let mut frames = Noting { pool: guest.pool(), foreign: Vec::new() };
            let free = frames.pool.len();
            let mut storage = BatchStorage::<6, 8>::new();
            let mut batch = storage.batch();
            let mut pgd = build(&plain, 4, &mut frames.pool).pin(&plain, &mut batch).expect("pin");
            let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
            let (first, count) = run_of_the_neighbour(&guest);

            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&guest.model, refusal);
            let around = context(&guest, &machine, &p2m);
            let mut with = tools(&around, &mut batch, &mut tables, &mut frames);
            let mut expected = 0;
            for at in [6, FAR] {
                let mapped = map(&mut pgd, &mut with, (at, count), (first, NEIGHBOUR));
                expected += mapped.map_or_else(|error| error.done, |()| count);
            }
            let present = |at: &u64| leaf(&plain, &pgd, *at).is_some();
            let here = (6..6 + count).chain(FAR..FAR + count).filter(present).count() as u64;
            assert_eq!(here, expected, "{refusal:?}");
            guest.check();
            let mut with = tools(&plain, &mut batch, &mut tables, &mut frames);
            pgd.destroy(&mut with).expect("destroyed");
            assert_eq!(frames.foreign.len() as u64, expected, "{refusal:?}");
            assert_eq!(frames.pool.len(), free, "{refusal:?}");
            guest.check();
            reached |= machine.has_refused();
            refusals += u64::from(machine.has_refused());
        }
        if !reached {
            assert!(refusals > 6, "{refusals}");
            return;
        }
    }
    panic!("more than 40 requests");
}

/// More runs than one trap takes, each with a flush to follow.
#[test]
fn own_and_foreign_pages_change_in_turn_in_one_section() {
    let guest = Guest::dom0();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut frames = Noting { pool: guest.pool(), foreign: Vec::new() };
    let mut storage = BatchStorage::<80, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&context, 40, &mut frames.pool).pin(&context, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let (first, _) = run_of_the_neighbour(&guest);
    let mut with = tools(&context, &mut batch, &mut tables, &mut frames);
    for at in 0..20 {
        pgd.unmap(&mut with, Pages::one(page(2 * at + 1))).expect("unmapped");
    }
    pgd.edit(&mut with, |edit| {
        (0..20).try_for_each(|at| {
            edit.unmap(Pages::one(page(2 * at)))?;
            let pages = Pages::one(page(2 * at + 1));
            edit.map_foreign((pages, PteFlags::USER_RW), (first, NEIGHBOUR))
        })
    })
    .expect("as many traps as it takes");
    for at in 0..40 {
        assert_eq!(leaf(&context, &pgd, at), (at % 2 == 1).then_some(first), "page {at}");
    }
    let mut with = tools(&context, &mut batch, &mut tables, &mut frames);
    pgd.destroy(&mut with).expect("destroyed");
    assert_eq!(frames.foreign, [first; 20]);
    guest.check();
}
