//! From loose to pinned and back, and what is left when Xen refuses.
#![expect(unsafe_code, reason = "loads roots and stores into a loose tree; the test is a model")]

#[macro_use]
mod common;

use common::{TestGuest, alias, build, destroy, guest, page};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{
    BatchStorage, Errno, FrameAccess as _, FrameSource as _, Level, Mfn, Pfn, Pte, PteFlags,
    XEN_SLOTS,
};
use p2m::{Guest, walk};
use pvmmu::obstacles::{OBSTACLES_MAX, Obstacle};
use pvmmu::{Pgd, PinFailure, load_root};
use x86_64::structures::paging::PageTableIndex;

#[test]
fn pinning_takes_one_update_run_for_each_full_batch_and_one_operation() {
    // 6 tables, and every size of batch around them: each remainder must be submitted.
    for room in 1..=8 {
        scene!(test, machine, guest, pool);
        let mut storage = BatchStorage::<8, 1>::new();
        let pgd = build(&guest, 16, &mut pool);
        let before = machine.counts();
        let pinned = pin_with(&guest, pgd, room);
        let cost = machine.counts() - before;
        assert_eq!(
            (cost.hypercalls, cost.entries),
            (6_u64.div_ceil(room) + 1, 7),
            "a batch of {room}"
        );
        test.check();
        let loose = pinned.unpin(&guest, &mut storage.batch()).expect("unpinned");
        destroy(&guest, loose, &mut pool);
        test.check();
    }
}

fn pin_with<M: hypercall::Machine>(
    guest: &Guest<'_, M>,
    pgd: Pgd<pvmmu::Loose>,
    room: u64,
) -> Pgd<pvmmu::Pinned> {
    macro_rules! sizes {
        ($($size:literal)*) => {
            match room {
                $($size => pgd.pin(guest, &mut BatchStorage::<$size, 1>::new().batch()),)*
                _ => unreachable!("not tested"),
            }
        };
    }
    sizes!(1 2 3 4 5 6 7 8).expect("pinned")
}

#[test]
fn a_pinned_tree_is_read_only_and_a_released_one_is_writable_and_scrubbed() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<32, 4>::new();
    let pgd = build(&guest, 16, &mut pool);
    let tables = tables(&guest, pgd.root());
    let writable = |pfn: &Pfn| direct(&guest, *pfn).is_writable();
    assert!(tables.iter().all(writable));
    let pinned = pgd.pin(&guest, &mut storage.batch()).expect("pinned");
    assert!(!tables.iter().any(writable));
    let loose = pinned.unpin(&guest, &mut storage.batch()).expect("unpinned");
    assert!(tables.iter().all(writable));
    for index in XEN_SLOTS.map(PageTableIndex::new_truncate) {
        assert_eq!(test.model.read_entry(loose.root(), index), Ok(Pte::ABSENT));
    }
    destroy(&guest, loose, &mut pool);
    test.check();
}

#[test]
fn pin_refuses_a_table_with_a_writable_alias_and_names_it() {
    for level in [Level::L1, Level::L2, Level::L3] {
        scene!(test, guest, pool);
        let free = pool.len();
        let mut storage = BatchStorage::<32, 4>::new();
        let pgd = build(&guest, 16, &mut pool);
        let table = walk(&guest, pgd.root(), page(0)).expect("readable").at(level);
        let table = table.expect("a table").table;
        let window = pool.take().expect("a frame");
        alias(&guest, window.pfn(), table);
        let error = pgd.pin(&guest, &mut storage.batch()).expect_err("must be refused");
        let PinFailure::Table { level: named, pfn, error: refusal, .. } = error.failure else {
            panic!("{error}")
        };
        assert_eq!((named, pfn, refusal.errno), (level, table, Errno::EINVAL));
        assert_eq!(error.undo, Ok(()));
        let window_va = guest.machine().direct_map(window.pfn()).expect("mapped");
        let Some(Obstacle::Writable(place)) = error.obstacles.first().next() else {
            panic!("{error}")
        };
        assert_eq!((place.va, error.obstacles.count()), (window_va, 1), "{error}");
        let told = error.to_string();
        for part in [
            format!("{level} table pfn {table}"),
            "EINVAL".to_owned(),
            format!("{:#018x}", window_va.raw()),
        ] {
            assert!(told.contains(&part), "{part} is not in: {told}");
        }
        test.check();

        alias(&guest, window.pfn(), window.pfn());
        pool.give(window);
        let pinned = error.pgd.pin(&guest, &mut storage.batch()).expect("no alias is left");
        let loose = pinned.unpin(&guest, &mut storage.batch()).expect("unpinned");
        destroy(&guest, loose, &mut pool);
        assert_eq!(pool.len(), free);
        test.check();
    }
}

/// More mappings than an error has places for: all are counted, in the direct mapping and in the
/// tree itself.
#[test]
fn a_pin_error_counts_every_mapping_in_the_way_and_names_the_first_ones() {
    scene!(test, guest, pool);
    let pgd = build(&guest, 16, &mut pool);
    let table = walk(&guest, pgd.root(), page(0)).expect("readable").at(Level::L1);
    let table = table.expect("a table").table;
    let windows: Vec<_> = (0..7).map(|_| pool.take().expect("a frame")).collect();
    for window in &windows {
        alias(&guest, window.pfn(), table);
    }
    let error = pgd.pin(&guest, &mut BatchStorage::<9, 1>::new().batch()).expect_err("in the way");
    assert_eq!((error.obstacles.count(), error.obstacles.first().count()), (7, OBSTACLES_MAX));
    let told = error.to_string();
    assert!(told.contains("7 in the way: ") && told.ends_with("; and 3 more like these"), "{told}");
    test.check();
    for window in windows {
        alias(&guest, window.pfn(), window.pfn());
        pool.give(window);
    }
    destroy(&guest, error.pgd, &mut pool);
    test.check();
}

#[test]
fn a_pin_error_names_the_entries_of_the_table_itself_that_are_at_fault() {
    for maps_a_table in [true, false] {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let guest = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let pgd = build(&guest, 16, &mut pool);
        let path = walk(&guest, pgd.root(), page(3)).expect("readable");
        let (l1, l2) = (path.at(Level::L1).expect("L1"), path.at(Level::L2).expect("L2"));
        let nobodys = Mfn::new(test.model.ram_end().raw() - 1);
        let mfn = if maps_a_table { p2m.mfn(l2.table).expect("RAM") } else { nobodys };
        let bad = Pte::new(mfn, PteFlags::USER_RW);
        // SAFETY: the test exists only in the model.
        unsafe { test.model.write_entry(l1.table, l1.slot.index, bad) }.expect("loose");
        let error = pgd.pin(&guest, &mut BatchStorage::<9, 1>::new().batch());
        let error = error.map(drop).expect_err("Xen takes no such tree");
        let found: Vec<_> = error.obstacles.first().collect();
        let place = match found[..] {
            // The L1 table maps the L2 table above it, which is refused for it or refuses it.
            [Obstacle::MapsTable(place, _) | Obstacle::Writable(place)] if maps_a_table => place,
            [Obstacle::UnknownFrame(place)] if !maps_a_table => place,
            _ => panic!("{error}"),
        };
        assert_eq!((place.va, place.pte.mfn()), (page(3), mfn), "{error}");
        assert!(matches!(error.failure, PinFailure::Table { .. }), "{error}");
        // SAFETY: as above.
        unsafe { test.model.write_entry(l1.table, l1.slot.index, path.leaf().expect("L1").1) }
            .expect("loose again");
        destroy(&guest, error.pgd, &mut pool);
        test.check();
    }
}

#[test]
fn a_tree_that_runs_is_not_unpinned_and_stays_as_it_was() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<32, 4>::new();
    let pinned = build(&guest, 16, &mut pool).pin(&guest, &mut storage.batch()).expect("pinned");
    // SAFETY: the model runs no code.
    unsafe { pinned.load(&guest) }.expect("loaded");
    let error = pinned.unpin(&guest, &mut storage.batch()).expect_err("it runs");
    assert!(
        matches!(error.failure, PinFailure::Protect { error, .. } if error.errno == Errno::EBUSY)
    );
    assert_eq!(error.undo, Ok(()));
    test.check();
    // SAFETY: as above.
    unsafe { load_root(&guest, test.root) }.expect("the kernel's root");
    let loose = error.pgd.unpin(&guest, &mut storage.batch()).expect("it runs no more");
    destroy(&guest, loose, &mut pool);
    test.check();
}

#[test]
fn whichever_request_of_pin_or_unpin_is_refused_all_is_as_before() {
    for request in 0..8 {
        for done in 0..4 {
            let test = TestGuest::new();
            let p2m = test.p2m();
            let plain = guest(&test, &test.model, &p2m);
            let mut pool = test.pool();
            let free = pool.len();
            let mut storage = BatchStorage::<4, 1>::new();
            let pgd = build(&plain, 16, &mut pool);
            let tables = tables(&plain, pgd.root());
            let machine =
                FailNth::new(&test.model, Refusal { request, errno: Errno::ENOMEM, done });
            let guest = guest(&test, &machine, &p2m);
            let pinned = match pgd.pin(&guest, &mut storage.batch()) {
                Ok(pinned) => pinned,
                Err(error) => {
                    assert_eq!(error.undo, Ok(()), "{error}");
                    assert!(error.to_string().contains("ENOMEM"), "{error}");
                    assert!(tables.iter().all(|pfn| direct(&plain, *pfn).is_writable()));
                    test.check();
                    error.pgd.pin(&plain, &mut storage.batch()).expect("nothing stands in the way")
                }
            };
            let loose = match pinned.unpin(&guest, &mut storage.batch()) {
                Ok(loose) => loose,
                Err(error) => {
                    assert_eq!(error.undo, Ok(()), "{error}");
                    assert!(tables.iter().all(|pfn| !direct(&plain, *pfn).is_writable()));
                    test.check();
                    error.pgd.unpin(&plain, &mut storage.batch()).expect("nothing in the way")
                }
            };
            destroy(&plain, loose, &mut pool);
            assert_eq!(pool.len(), free, "request {request} refused after {done}");
            test.check();
        }
    }
}

/// Every table of the tree under `root`, by what a walk of its pages meets.
fn tables<M: hypercall::Machine>(guest: &Guest<'_, M>, root: Pfn) -> Vec<Pfn> {
    let mut tables = Vec::new();
    for index in 0..16 {
        let walk = walk(guest, root, page(index)).expect("readable");
        tables.extend(walk.steps().map(|step| step.table));
    }
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// The entry that maps `pfn` in the direct mapping.
fn direct<M: hypercall::Machine>(guest: &Guest<'_, M>, pfn: Pfn) -> Pte {
    let va = guest.machine().direct_map(pfn).expect("mapped");
    walk(guest, guest.kernel_root(), va).expect("readable").leaf().expect("an L1 table").1
}
