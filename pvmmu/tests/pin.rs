//! From loose to pinned and back, and what is left when Xen refuses.
#![expect(unsafe_code, reason = "loads roots and stores into a loose tree; the guest is a model")]

#[macro_use]
mod common;

use common::{Guest, alias, build, context, destroy, page};
use hypercall::{
    BatchStorage, Errno, FailNth, FrameAccess as _, Level, Mfn, Pfn, Pte, PteFlags, Refusal,
    XEN_SLOTS,
};
use pvmmu::{Context, FrameSource as _, OBSTACLES_MAX, Obstacle, Pgd, PinFailure, load_root, walk};
use x86_64::structures::paging::PageTableIndex;

#[test]
fn pinning_takes_one_update_run_for_each_full_batch_and_one_operation() {
    // 6 tables, and every size of batch around them: each remainder must be submitted.
    for room in 1..=8 {
        scene!(guest, machine, context, pool);
        let mut storage = BatchStorage::<8, 1>::new();
        let pgd = build(&context, 16, &mut pool);
        let before = machine.counts();
        let pinned = pin_with(&context, pgd, room);
        let cost = machine.counts() - before;
        assert_eq!(
            (cost.hypercalls, cost.entries),
            (6_u64.div_ceil(room) + 1, 7),
            "a batch of {room}"
        );
        guest.check();
        let loose = pinned.unpin(&context, &mut storage.batch()).expect("unpinned");
        destroy(&context, loose, &mut pool);
        guest.check();
    }
}

fn pin_with<M: hypercall::Machine>(
    context: &Context<'_, M>,
    pgd: Pgd<pvmmu::Loose>,
    room: u64,
) -> Pgd<pvmmu::Pinned> {
    macro_rules! sizes {
        ($($size:literal)*) => {
            match room {
                $($size => pgd.pin(context, &mut BatchStorage::<$size, 1>::new().batch()),)*
                _ => unreachable!("not tested"),
            }
        };
    }
    sizes!(1 2 3 4 5 6 7 8).expect("pinned")
}

#[test]
fn a_pinned_tree_is_read_only_and_a_released_one_is_writable_and_scrubbed() {
    scene!(guest, context, pool);
    let mut storage = BatchStorage::<32, 4>::new();
    let pgd = build(&context, 16, &mut pool);
    let tables = tables(&context, pgd.root());
    let writable = |pfn: &Pfn| direct(&context, *pfn).is_writable();
    assert!(tables.iter().all(writable));
    let pinned = pgd.pin(&context, &mut storage.batch()).expect("pinned");
    assert!(!tables.iter().any(writable));
    let loose = pinned.unpin(&context, &mut storage.batch()).expect("unpinned");
    assert!(tables.iter().all(writable));
    for index in XEN_SLOTS.map(PageTableIndex::new_truncate) {
        assert_eq!(guest.model.read_entry(loose.root(), index), Ok(Pte::ABSENT));
    }
    destroy(&context, loose, &mut pool);
    guest.check();
}

#[test]
fn pin_refuses_a_table_with_a_writable_alias_and_names_it() {
    for level in [Level::L1, Level::L2, Level::L3] {
        scene!(guest, context, pool);
        let free = pool.len();
        let mut storage = BatchStorage::<32, 4>::new();
        let pgd = build(&context, 16, &mut pool);
        let table = walk(&context, pgd.root(), page(0)).expect("readable").at(level);
        let table = table.expect("a table").table;
        let window = pool.take().expect("a frame");
        alias(&context, window.pfn(), table);
        let error = pgd.pin(&context, &mut storage.batch()).expect_err("must be refused");
        let PinFailure::Table { level: named, pfn, error: refusal, .. } = error.failure else {
            panic!("{error}")
        };
        assert_eq!((named, pfn, refusal.errno), (level, table, Errno::EINVAL));
        assert_eq!(error.undo, Ok(()));
        let window_va = context.machine().direct_map(window.pfn()).expect("mapped");
        let Some(Obstacle::Writable(place)) = error.obstacles.first().next() else {
            panic!("{error}")
        };
        assert_eq!((place.va, error.obstacles.count()), (window_va.raw(), 1), "{error}");
        let told = error.to_string();
        for part in [
            format!("{level} table pfn {table}"),
            "EINVAL".to_owned(),
            format!("{:#018x}", window_va.raw()),
        ] {
            assert!(told.contains(&part), "{part} is not in: {told}");
        }
        guest.check();

        alias(&context, window.pfn(), window.pfn());
        pool.give(window);
        let pinned = error.pgd.pin(&context, &mut storage.batch()).expect("no alias is left");
        let loose = pinned.unpin(&context, &mut storage.batch()).expect("unpinned");
        destroy(&context, loose, &mut pool);
        assert_eq!(pool.len(), free);
        guest.check();
    }
}

/// More mappings than an error has places for: all are counted, in the direct mapping and in the
/// tree itself.
#[test]
fn a_pin_error_counts_every_mapping_in_the_way_and_names_the_first_ones() {
    scene!(guest, context, pool);
    let pgd = build(&context, 16, &mut pool);
    let table = walk(&context, pgd.root(), page(0)).expect("readable").at(Level::L1);
    let table = table.expect("a table").table;
    let windows: Vec<_> = (0..7).map(|_| pool.take().expect("a frame")).collect();
    for window in &windows {
        alias(&context, window.pfn(), table);
    }
    let error =
        pgd.pin(&context, &mut BatchStorage::<9, 1>::new().batch()).expect_err("in the way");
    assert_eq!((error.obstacles.count(), error.obstacles.first().count()), (7, OBSTACLES_MAX));
    let told = error.to_string();
    assert!(told.contains("7 in the way: ") && told.ends_with("; and 3 more like these"), "{told}");
    guest.check();
    for window in windows {
        alias(&context, window.pfn(), window.pfn());
        pool.give(window);
    }
    destroy(&context, error.pgd, &mut pool);
    guest.check();
}

#[test]
fn a_pin_error_names_the_entries_of_the_table_itself_that_are_at_fault() {
    for maps_a_table in [true, false] {
        let guest = Guest::new();
        let p2m = guest.p2m();
        let context = context(&guest, &guest.model, &p2m);
        let mut pool = guest.pool();
        let pgd = build(&context, 16, &mut pool);
        let path = walk(&context, pgd.root(), page(3)).expect("readable");
        let (l1, l2) = (path.at(Level::L1).expect("L1"), path.at(Level::L2).expect("L2"));
        let nobodys = Mfn::new(guest.model.ram_end().raw() - 1);
        let mfn = if maps_a_table { p2m.mfn(l2.table).expect("RAM") } else { nobodys };
        let bad = Pte::new(mfn, PteFlags::USER_RW);
        // SAFETY: the guest exists only in the model.
        unsafe { guest.model.write_entry(l1.table, l1.slot.index, bad) }.expect("loose");
        let error = pgd.pin(&context, &mut BatchStorage::<9, 1>::new().batch());
        let error = error.map(drop).expect_err("Xen takes no such tree");
        let found: Vec<_> = error.obstacles.first().collect();
        let place = match found[..] {
            // The L1 table maps the L2 table above it, which is refused for it or refuses it.
            [Obstacle::MapsTable(place, _) | Obstacle::Writable(place)] if maps_a_table => place,
            [Obstacle::UnknownFrame(place)] if !maps_a_table => place,
            _ => panic!("{error}"),
        };
        assert_eq!((place.va, place.pte.mfn()), (page(3).raw(), mfn), "{error}");
        assert!(matches!(error.failure, PinFailure::Table { .. }), "{error}");
        // SAFETY: as above.
        unsafe { guest.model.write_entry(l1.table, l1.slot.index, path.leaf().expect("L1").1) }
            .expect("loose again");
        destroy(&context, error.pgd, &mut pool);
        guest.check();
    }
}

#[test]
fn a_tree_that_runs_is_not_unpinned_and_stays_as_it_was() {
    scene!(guest, context, pool);
    let mut storage = BatchStorage::<32, 4>::new();
    let pinned =
        build(&context, 16, &mut pool).pin(&context, &mut storage.batch()).expect("pinned");
    // SAFETY: the model runs no code.
    unsafe { pinned.load(&context) }.expect("loaded");
    let error = pinned.unpin(&context, &mut storage.batch()).expect_err("it runs");
    assert!(
        matches!(error.failure, PinFailure::Protect { error, .. } if error.errno == Errno::EBUSY)
    );
    assert_eq!(error.undo, Ok(()));
    guest.check();
    // SAFETY: as above.
    unsafe { load_root(&context, guest.root) }.expect("the kernel's root");
    let loose = error.pgd.unpin(&context, &mut storage.batch()).expect("it runs no more");
    destroy(&context, loose, &mut pool);
    guest.check();
}

#[test]
fn whichever_request_of_pin_or_unpin_is_refused_all_is_as_before() {
    for request in 0..8 {
        for done in 0..4 {
            let guest = Guest::new();
            let p2m = guest.p2m();
            let plain = context(&guest, &guest.model, &p2m);
            let mut pool = guest.pool();
            let free = pool.len();
            let mut storage = BatchStorage::<4, 1>::new();
            let pgd = build(&plain, 16, &mut pool);
            let tables = tables(&plain, pgd.root());
            let machine =
                FailNth::new(&guest.model, Refusal { request, errno: Errno::ENOMEM, done });
            let context = context(&guest, &machine, &p2m);
            let pinned = match pgd.pin(&context, &mut storage.batch()) {
                Ok(pinned) => pinned,
                Err(error) => {
                    assert_eq!(error.undo, Ok(()), "{error}");
                    assert!(error.to_string().contains("ENOMEM"), "{error}");
                    assert!(tables.iter().all(|pfn| direct(&plain, *pfn).is_writable()));
                    guest.check();
                    error.pgd.pin(&plain, &mut storage.batch()).expect("nothing stands in the way")
                }
            };
            let loose = match pinned.unpin(&context, &mut storage.batch()) {
                Ok(loose) => loose,
                Err(error) => {
                    assert_eq!(error.undo, Ok(()), "{error}");
                    assert!(tables.iter().all(|pfn| !direct(&plain, *pfn).is_writable()));
                    guest.check();
                    error.pgd.unpin(&plain, &mut storage.batch()).expect("nothing in the way")
                }
            };
            destroy(&plain, loose, &mut pool);
            assert_eq!(pool.len(), free, "request {request} refused after {done}");
            guest.check();
        }
    }
}

/// Every table of the tree under `root`, by what a walk of its pages meets.
fn tables<M: hypercall::Machine>(context: &Context<'_, M>, root: Pfn) -> Vec<Pfn> {
    let mut tables = Vec::new();
    for index in 0..16 {
        let walk = walk(context, root, page(index)).expect("readable");
        tables.extend(walk.steps().map(|step| step.table));
    }
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// The entry that maps `pfn` in the direct mapping.
fn direct<M: hypercall::Machine>(context: &Context<'_, M>, pfn: Pfn) -> Pte {
    let va = context.machine().direct_map(pfn).expect("mapped");
    walk(context, context.kernel_root(), va).expect("readable").leaf().expect("an L1 table").1
}
