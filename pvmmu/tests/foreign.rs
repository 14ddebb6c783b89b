//! Frames of others: of a domain that dom0 has power over, of Xen, of nobody.

#[macro_use]
mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;

use common::{Pool, TestGuest, build, guest, page, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, DomId, Errno, FrameSource, GuestVa, Machine, Mfn, PteFlags};
use p2m::{Guest, walk};
use pvmmu::{ForeignFrames, MapError, Pages, Pgd, Pinned, Presence, RangeError, TablePool, Tools};
use xen_model::Model;

const NEIGHBOUR: DomId = DomId(1);
const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Behind what `build` maps, so that tables are missing.
const FAR: u64 = 5000;

/// A note of the neighbour's frames that are no longer mapped.
struct Neighbours<'n>(&'n RefCell<Vec<Mfn>>);

impl ForeignFrames for Neighbours<'_> {
    fn give_foreign(&mut self, mfn: Mfn) {
        self.0.borrow_mut().push(mfn);
    }

    fn domain_of(&self, _: Mfn) -> DomId {
        NEIGHBOUR
    }
}

/// The longest run of machine frames that the neighbour has.
fn run_of_the_neighbour(test: &TestGuest) -> (Mfn, u64) {
    let neighbour = test.model.vcpu(NEIGHBOUR.0, 0).expect("built");
    let pfns = (0..1024).map(hypercall::Pfn::new);
    let mfns: BTreeSet<u64> =
        pfns.filter_map(|pfn| neighbour.built_mfn(pfn)).map(Mfn::raw).collect();
    let (mut longest, mut run) = (0..0, 0..0);
    for mfn in mfns {
        run = if run.end == mfn { run.start..mfn + 1 } else { mfn..mfn + 1 };
        if run.end - run.start >= longest.end - longest.start {
            longest = run.clone();
        }
    }
    // Behind them come the neighbour's tables, which nobody may map writable.
    (Mfn::new(longest.start), (longest.end - longest.start).min(12))
}

fn map<M: Machine, F: FrameSource>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Tools<'_, '_, M, F>,
    at: u64,
    count: u64,
    first: Mfn,
    domain: DomId,
) -> Result<(), RangeError> {
    let pages = Pages { start: page(at), count };
    pgd.edit(with, |edit| edit.map_foreign(pages, PteFlags::USER_RW, first, domain))
}

fn leaf<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>, at: u64) -> Option<Mfn> {
    let leaf = walk(guest, pgd.root(), page(at)).expect("readable").leaf()?;
    leaf.1.is_present().then(|| leaf.1.mfn())
}

type With<'a, 't> = Tools<'a, 't, Model, Pool>;

/// dom0, with `count` pages of its own in an address space. Behind `work` that is taken apart, and
/// every frame is back. The frames of others that are told of then.
fn in_dom0<const UPDATES: usize>(
    count: u64,
    work: impl FnOnce(&TestGuest, &mut Pgd<Pinned>, &mut With<'_, '_>, &RefCell<Vec<Mfn>>),
) -> Vec<Mfn> {
    let test = TestGuest::dom0();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let (mut pool, told) = (test.pool(), RefCell::new(Vec::new()));
    let (free, mut neighbours) = (pool.len(), Neighbours(&told));
    let mut storage = BatchStorage::<UPDATES, 8>::new();
    let mut batch = storage.batch();
    let pgd = build(&guest, count, &mut pool);
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let mut with = with.with_foreign(&mut neighbours);
    work(&test, &mut pgd, &mut with, &told);
    told.borrow_mut().clear();
    pgd.destroy(&mut with).expect("destroyed");
    assert_eq!(pool.len(), free, "every frame is back");
    test.check();
    told.into_inner()
}

#[test]
fn dom0_maps_a_neighbours_frames_and_is_told_when_they_go() {
    let mut left = 0;
    let told = in_dom0::<40>(4, |test, pgd, with, told| {
        let (first, count) = run_of_the_neighbour(test);
        assert!(count > 1, "frames that follow one another");
        for at in [6, FAR] {
            map(pgd, with, at, count, first, NEIGHBOUR).expect("dom0 may");
            for index in 0..count {
                assert_eq!(leaf(&with.guest, pgd, at + index), first.checked_add(index));
            }
            test.check();
            let half = Pages { start: page(at), count: count / 2 };
            pgd.unmap(with, half).expect("unmapped");
            assert_eq!(told.borrow().len() as u64, count / 2);
            told.borrow_mut().clear();
            test.check();
            left += count - count / 2;
        }
    });
    assert_eq!(told.len() as u64, left);
}

#[test]
fn a_neighbours_pages_are_protected_in_its_name_and_stay_when_that_is_refused() {
    let mut refusals = 0;
    for (request, done) in (0..6).flat_map(|request| [0, 1, 5].map(|done| (request, done))) {
        in_dom0::<40>(4, |test, pgd, with, _| {
            let (first, count) = run_of_the_neighbour(test);
            map(pgd, with, 4, count, first, NEIGHBOUR).expect("dom0 may");
            let before: Vec<_> = (0..4 + count).map(|at| leaf(&with.guest, pgd, at)).collect();
            let machine =
                FailNth::new(&test.model, Refusal { request, errno: Errno::ENOMEM, done });
            let _around = guest(test, &machine, with.guest.p2m());
            let mut refusing = with.on_machine(&machine);
            let all = Pages { start: page(0), count: 4 + count };
            let protected = pgd.protect(&mut refusing, all, READ_ONLY);
            let unmapped = protected.and_then(|()| pgd.unmap(&mut refusing, all));
            assert_eq!(unmapped.is_err(), machine.has_refused(), "{unmapped:?}");
            let gone = unmapped.map_or_else(|error| error.done, |()| all.count);
            refusals += u64::from(machine.has_refused());
            if let Err(error) = unmapped {
                assert!(!matches!(error.error, MapError::NotUndone { .. }), "{error}");
            }
            if machine.has_refused() && leaf(&with.guest, pgd, 0).is_some() {
                let now: Vec<_> = (0..4 + count).map(|at| leaf(&with.guest, pgd, at)).collect();
                assert_eq!(now, before, "done {gone}");
            }
            test.check();
        });
    }
    assert!(refusals > 3, "{refusals}");
}

/// Xen would not take the table back: it checks its entries as the test's own.
#[test]
fn a_table_with_a_neighbours_frame_in_it_is_never_taken_out() {
    in_dom0::<700>(0, |test, pgd, with, _| {
        let table = Pages { start: GuestVa::new(1 << 30).expect("user half"), count: 512 };
        let (first, _) = run_of_the_neighbour(test);
        let own = Pages { start: table.start, count: 511 };
        pgd.map_pages(with, own, PteFlags::USER_RW).expect("mapped");
        let last = Pages::one(table.at(511).expect("user half"));
        pgd.edit(with, |edit| edit.map_foreign(last, PteFlags::USER_RW, first, NEIGHBOUR))
            .expect("mapped");
        with.presence = Presence::MayVanish;
        for flags in [READ_ONLY, PteFlags::USER_RW] {
            pgd.protect(with, table, flags).expect("protected");
            let mut seen = 0;
            let guest = with.guest;
            pgd.translate_pages(&guest, table, &mut |mapping| {
                assert_eq!(mapping.flags.contains(PteFlags::WRITABLE), flags == PteFlags::USER_RW);
                seen += 1;
            })
            .expect("readable");
            assert_eq!(seen, 512);
            test.check();
        }
        pgd.unmap(with, Pages { start: table.start, count: 500 }).expect("unmapped");
        test.check();
    });
}

#[test]
fn what_is_not_the_neighbours_is_refused_and_no_page_behind_it_is_mapped() {
    let test = TestGuest::dom0();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 4, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let (first, _) = run_of_the_neighbour(&test);
    let own = p2m.mfn(hypercall::Pfn::new(9)).expect("RAM");
    let mut refused = |count, first, domain| {
        let error = map(&mut pgd, &mut with, 6, count, first, domain).expect_err("not allowed");
        for at in 0..count {
            assert_eq!(leaf(&guest, &pgd, 6 + at).is_some(), at < error.done, "{error}");
        }
        let mapped = Pages { start: page(6), count: error.done };
        pgd.unmap(&mut with, mapped).expect("only what was mapped before");
        test.check();
        error.error
    };
    // The test's own frame, whatever it is called: it would be mapped without its token.
    for domain in [DomId::SELF, DomId(0), NEIGHBOUR, DomId::IO] {
        assert_eq!(refused(1, own, domain), MapError::Own(hypercall::Pfn::new(9)));
    }
    // The neighbour's root, which nobody may map writable, and frames in front of it.
    let neighbour = test.model.vcpu(NEIGHBOUR.0, 0).expect("built");
    let root = neighbour.kernel_root().expect("it has one").raw();
    match refused(4, Mfn::new(root - 2), NEIGHBOUR) {
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
    assert_eq!(errno(refused(2, first, DomId(77))), Errno::ESRCH, "no such domain");
    pgd.destroy(&mut tools(&guest, &mut batch, &mut tables, &mut pool)).expect("destroyed");
    test.check();
}

#[test]
fn a_domu_has_no_power_over_its_neighbours() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 4, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    for domain in [DomId::IO, DomId::XEN, DomId(0)] {
        let somewhere = Mfn::new(test.model.ram_end().raw() - 1);
        let error = map(&mut pgd, &mut with, 6, 1, somewhere, domain).expect_err("no power");
        let is_refused = matches!(error.error, MapError::Refused { .. } | MapError::RefusedCall(_));
        assert!(is_refused, "{domain:?}: {error}");
    }
    pgd.destroy(&mut with).expect("destroyed");
    test.check();
}

#[test]
fn whichever_request_is_refused_no_foreign_frame_stays_mapped_untold() {
    let mut refusals = 0;
    for request in 0..40 {
        let mut reached = false;
        for done in [0, 1, 3] {
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let mut expected = 0;
            let told = in_dom0::<6>(4, |test, pgd, with, _| {
                let plain = with.guest;
                let (first, count) = run_of_the_neighbour(test);
                let machine = FailNth::new(&test.model, refusal);
                let _around = guest(test, &machine, plain.p2m());
                let mut refusing = with.on_machine(&machine);
                for at in [6, FAR] {
                    let mapped = map(pgd, &mut refusing, at, count, first, NEIGHBOUR);
                    expected += mapped.map_or_else(|error| error.done, |()| count);
                }
                let present = |at: &u64| leaf(&plain, pgd, *at).is_some();
                let here = (6..6 + count).chain(FAR..FAR + count).filter(present).count() as u64;
                assert_eq!(here, expected, "{refusal:?}");
                test.check();
                reached |= machine.has_refused();
                refusals += u64::from(machine.has_refused());
            });
            assert_eq!(told.len() as u64, expected, "{refusal:?}");
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
    let mut last = None;
    let told = in_dom0::<80>(40, |test, pgd, with, _| {
        let (first, _) = run_of_the_neighbour(test);
        last = Some(first);
        for at in 0..20 {
            pgd.unmap(with, Pages::one(page(2 * at + 1))).expect("unmapped");
        }
        pgd.edit(with, |edit| {
            (0..20).try_for_each(|at| {
                edit.unmap(Pages::one(page(2 * at)))?;
                let pages = Pages::one(page(2 * at + 1));
                edit.map_foreign(pages, PteFlags::USER_RW, first, NEIGHBOUR)
            })
        })
        .expect("as many traps as it takes");
        for at in 0..40 {
            let expected = (at % 2 == 1).then_some(first);
            assert_eq!(leaf(&with.guest, pgd, at), expected, "page {at}");
        }
    });
    assert_eq!(Some(told), last.map(|first| vec![first; 20]));
}
