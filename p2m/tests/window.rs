//! The window on the model: adopted without a copy, grown, reserved, refused, restored.

#![cfg(not(loom))]

use std::collections::BTreeMap;

use arbtest::arbtest;
use hypercall::{
    ArchSharedInfo, BatchStorage, Counting, DomId, Errno, FailNth, FrameAccess as _, Frames, Mfn,
    PAGE_SIZE, Pfn, Refusal,
};
use p2m::{
    Audit, Census, FrameList, GrowContext, Leaves as _, OpenError, P2m, P2mEntry, P2mError, Pfns,
    Toolstack, Window, WindowFailure,
};
use pv_tests::window::{CAPACITY, GIB, LEAF, Machine, Pool, WINDOW, context};
use xen_model::PageType;

type Storage = BatchStorage<512, 4>;

/// Frames for the window, and a pool of the rest.
fn split(machine: &Machine) -> (Frames, Pool) {
    let needed = Window::frames_needed(machine.boot.pages, machine.capacity);
    let (window, rest) = machine.frames().split(needed).expect("enough frames");
    (window, Pool::new(rest))
}

fn opened<'a>(machine: &'a Machine, frames: Frames) -> (P2m<'a>, Window) {
    machine.open(machine, frames, &mut Storage::new().batch()).expect("open")
}

fn audit(machine: &Machine, p2m: &P2m<'_>) {
    let mut findings = [None; 4];
    let mut audit = Audit::begin(&mut findings);
    audit.run(machine, p2m);
    assert!(audit.report().is_clean(), "{}", audit.report());
}

#[test]
fn the_builders_list_lies_in_the_window_without_a_copy() {
    // One table maps the list of the first GiB, a second one what is behind it.
    adopted_without_a_copy(&Machine::new(1));
    adopted_without_a_copy(&Machine::of(GIB + 3 * LEAF, 1));
}

fn adopted_without_a_copy(machine: &Machine) {
    let (frames, _) = split(machine);
    let counting = Counting::new(machine);
    let (p2m, window) = machine.open(&counting, frames, &mut Storage::new().batch()).expect("open");
    assert_eq!(counting.counts().hypercalls, 2, "one multicall to protect, one to pin and link");
    assert_eq!(p2m.len(), machine.boot.pages);
    for pfn in p2m.all().iter() {
        assert_eq!(p2m.entry(pfn), machine.builder_map().entry(pfn));
    }
    for leaf in 0..p2m.len() / LEAF {
        let builder = machine.builder_list().leaf(machine, &p2m, leaf);
        assert_eq!(window.leaf(machine, &p2m, leaf), builder, "leaf {leaf} is the same frame");
    }
    assert!(machine.is_writable(0) && !machine.is_writable(machine.boot.pages));
    audit(machine, &p2m);
    machine.check();
}

#[test]
fn growth_by_a_gib_takes_at_most_five_hypercalls_wherever_it_begins() {
    for begun in [0, 3 * LEAF, GIB - machine_pages()] {
        let machine = Machine::new(2);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let counting = Counting::new(&machine);
        let mut storage = Storage::new();
        let mut batch = storage.batch();
        let around = context(&counting, &p2m);
        window.grow(around, p2m.len() + begun, &mut batch).expect("grow");
        let before = counting.counts().hypercalls;
        let new = Pfns::new(Pfn::new(p2m.len()), GIB);
        window.grow(around, new.end(), &mut batch).expect("grow");
        window.reserve(around, new, &mut pool, &mut batch).expect("reserve");
        let cost = counting.counts().hypercalls - before;
        assert!(cost <= 5, "{cost} hypercalls from {}", new.start);
        for pfn in new.iter().step_by(100) {
            p2m.populate(pfn, Mfn::new(7)).expect("reserved");
            assert!(machine.is_writable(pfn.raw()));
        }
        machine.check();
    }
}

/// Pages of the guest.
fn machine_pages() -> u64 {
    4096
}

#[test]
fn the_table_of_holes_is_not_validated_again_for_a_gib_that_is_alone() {
    let machine = Machine::new(13);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let around = context(&machine, &p2m);
    // Frames that have been taken into use as L1 tables.
    let validated = || {
        let transitions = machine.model.statistics().transitions;
        transitions.iter().map(|to| to[PageType::L1 as usize]).sum::<u64>()
    };
    for _ in 0..2 {
        let before = validated();
        let len = p2m.len().next_multiple_of(GIB);
        window.grow(around, len + GIB, &mut batch).expect("grow");
        assert_eq!(validated() - before, 0, "no table becomes one when the GiB's hole is linked");
        let gib = Pfns::new(Pfn::new(len), GIB);
        window.reserve(around, gib, &mut pool, &mut batch).expect("reserve");
        assert_eq!(validated() - before, 1, "the table of the GiB's own does");
    }
    machine.check();
}

#[test]
fn a_hole_takes_no_frame_and_one_hypercall() {
    let machine = Machine::new(3);
    let (frames, pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (free, counting) = (pool.len(), Counting::new(&machine));
    let mut storage = Storage::new();
    window.grow(context(&counting, &p2m), CAPACITY, &mut storage.batch()).expect("grow");
    assert_eq!((pool.len(), counting.counts().hypercalls), (free, 1));
    let last = Pfn::new(CAPACITY - 1);
    assert_eq!(p2m.entry(last), Ok(P2mEntry::Absent));
    assert_eq!(p2m.populate(last, Mfn::new(7)), Err(P2mError::NotReserved(last)));
    assert_eq!(p2m.set_foreign(last, DomId(1), Mfn::new(7)), Err(P2mError::NotReserved(last)));
    let error = window.grow(context(&counting, &p2m), CAPACITY + 1, &mut storage.batch());
    let capacity = WindowFailure::Capacity { pfns: CAPACITY + 1, capacity: CAPACITY };
    assert_eq!(error.map_err(|error| error.failure), Err(capacity));
    audit(&machine, &p2m);
    machine.check();
}

#[test]
fn a_shorter_length_changes_nothing() {
    let machine = Machine::new(4);
    let (frames, _) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    window.grow(context(&machine, &p2m), 6000, &mut storage.batch()).expect("grow");
    window.grow(context(&machine, &p2m), 5000, &mut storage.batch()).expect("grow");
    assert_eq!(p2m.len(), 6000);
}

#[test]
fn identity_holes_share_their_words_whatever_their_borders() {
    let machine = Machine::new(5);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let around = context(&machine, &p2m);
    window.grow(around, CAPACITY, &mut batch).expect("grow");
    // From the middle of a page over a whole GiB into the middle of another.
    let devices = Pfns::new(Pfn::new(GIB - 1000), 2 * GIB - 777);
    let free = pool.len();
    window.reserve_identity(around, devices, &mut pool, &mut batch).expect("identity");
    assert_eq!(free - pool.len(), 3, "a page at each end, and one table");
    let census = Census::of(&p2m, p2m.all());
    assert_eq!((census.ram, census.identity), (machine.boot.pages, devices.count));
    for pfn in [devices.start.raw(), GIB, 2 * GIB - 1, devices.end() - 1] {
        assert_eq!(p2m.entry(Pfn::new(pfn)), Ok(P2mEntry::Identity), "{pfn:#x}");
        assert_eq!(p2m.machine_frame(Pfn::new(pfn)), Ok(Mfn::new(pfn)));
    }
    for pfn in [devices.start.raw() - 1, devices.end()] {
        assert_eq!(p2m.entry(Pfn::new(pfn)), Ok(P2mEntry::Absent), "{pfn:#x}");
    }
    // Memory for words in the hole keeps what they mean.
    let inside = Pfns::new(Pfn::new(GIB + 5000), 3);
    window.reserve(around, inside, &mut pool, &mut batch).expect("reserve");
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count);
    p2m.clear_identity(inside).expect("private words");
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count - 3);
    machine.check();
}

#[test]
fn a_hole_in_the_middle_of_a_gib_is_no_whole_one() {
    let machine = Machine::new(9);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let around = context(&machine, &p2m);
    window.grow(around, 3 * GIB, &mut batch).expect("grow");
    // As many pages in front of it as behind it.
    for (gib, margin) in [(1, 100 * LEAF), (2, LEAF)] {
        let hole = Pfns::new(Pfn::new(gib * GIB + margin), GIB - 2 * margin);
        window.reserve_identity(around, hole, &mut pool, &mut batch).expect("identity");
        let gib = Pfns::new(Pfn::new(gib * GIB), GIB);
        let census = Census::of(&p2m, gib);
        assert_eq!((census.identity, census.absent), (hole.count, 2 * margin));
    }
    machine.check();
}

#[test]
fn words_that_have_memory_of_their_own_become_identity_too() {
    let machine = Machine::new(10);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let around = context(&machine, &p2m);
    window.grow(around, 3 * GIB, &mut batch).expect("grow");
    let own = Pfns::new(Pfn::new(2 * GIB + 4 * LEAF), 2 * LEAF);
    window.reserve(around, own, &mut pool, &mut batch).expect("reserve");
    let free = pool.len();
    let hole = Pfns::new(Pfn::new(2 * GIB + 3 * LEAF), 4 * LEAF);
    window.reserve_identity(around, hole, &mut pool, &mut batch).expect("identity");
    assert_eq!(pool.len(), free);
    let census = Census::of(&p2m, Pfns::new(Pfn::new(GIB), 2 * GIB));
    assert_eq!((census.identity, census.absent), (hole.count, 2 * GIB - hole.count));
    assert_eq!(Census::of(&p2m, hole).identity, hole.count);
    // What stands for something does not.
    p2m.clear_identity(own).expect("words of their own");
    p2m.set_foreign(own.start, DomId(1), Mfn::new(7)).expect("absent");
    let error = window.reserve_identity(around, own, &mut pool, &mut batch);
    let entry = P2mEntry::Foreign { owner: DomId(1), mfn: Mfn::new(7) };
    let occupied = P2mError::Occupied { pfn: own.start, entry };
    assert_eq!(error.map_err(|error| error.failure), Err(WindowFailure::P2m(occupied)));
    machine.check();
}

#[test]
fn a_window_of_many_tables_that_is_refused_one_gets_all_of_them_back() {
    // With those that every window has, more tables than go out in one multicall.
    let machine = Machine::of(13 * GIB, 11);
    let (mut frames, _) = split(&machine);
    let count = frames.count();
    let mut named = Vec::new();
    for request in [0, 15, 16] {
        let refusal = Refusal { request, errno: Errno::EBUSY, done: 0 };
        let around = FailNth::new(&machine, refusal);
        let error = machine.open(&around, frames, &mut Storage::new().batch()).map(drop);
        let OpenError { frames: back, failure, undo } = error.expect_err("refused");
        assert_eq!((undo, back.count()), (Ok(()), count), "{request}");
        let WindowFailure::Protect { table, .. } = failure else { panic!("{failure}") };
        named.push(table);
        frames = back;
    }
    // They are protected one after the other.
    let [first, fifteenth, sixteenth] = named[..] else { panic!("{named:?}") };
    assert!(first < fifteenth);
    assert_eq!(fifteenth.checked_add(1), Some(sixteenth));
    // All of them are as they were: the window opens once nothing is refused.
    let (p2m, _) = opened(&machine, frames);
    audit(&machine, &p2m);
    machine.check();
}

#[test]
fn what_a_restore_wrote_into_holes_is_mended() {
    let machine = Machine::new(6);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let around = context(&machine, &p2m);
    window.grow(around, 3 * GIB, &mut batch).expect("grow");
    let devices = Pfns::new(Pfn::new(GIB), GIB);
    window.reserve_identity(around, devices, &mut pool, &mut batch).expect("identity");
    // The toolstack writes absent words over every page of the list that it did not fill.
    for leaf in [GIB / LEAF, 2 * GIB / LEAF] {
        let frame = window.leaf(&machine, &p2m, leaf).expect("a page");
        (0..512).for_each(|at| machine.model.poke(frame, at, u64::MAX));
    }
    machine.show_frames();
    assert_eq!(p2m.entry(devices.start), Ok(P2mEntry::Absent), "the mark is lost");
    window.refill_holes(&machine).expect("refill");
    machine.show_frames();
    assert_eq!(p2m.entry(devices.start), Ok(P2mEntry::Identity));
    let absent = Pfn::new(2 * GIB);
    assert_eq!(p2m.populate(absent, Mfn::new(7)), Err(P2mError::NotReserved(absent)));
    machine.check();
}

/// Requests of a life, each refused at its first and at its second element.
const REFUSALS: u64 = 56;

/// Opens, grows, reserves and marks, as far as it gets; frames that are in use at the end.
fn live<M: hypercall::Machine>(
    machine: &Machine,
    around: &M,
    toolstack: Toolstack<'_>,
) -> Result<(), String> {
    let (frames, mut pool) = split(machine);
    let mut storage = BatchStorage::<3, 4>::new();
    let mut batch = storage.batch();
    let say = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let needed = frames.count();
    let (p2m, mut window) = match machine.open(around, frames, &mut batch) {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(error.undo, Ok(()), "one refusal leaves the way back open: {error}");
            assert_eq!(error.frames.count(), needed, "the frames come back");
            for frame in 0..needed {
                let pfn = Pfn::new(error.frames.start().raw() + frame);
                assert_writable(machine, pfn);
            }
            return Err(say("open", &error));
        }
    };
    let context = GrowContext { machine: around, p2m: &p2m, toolstack: Some(toolstack) };
    let (len, free) = (p2m.len(), pool.len());
    let census = Census::of(&p2m, p2m.all());
    if let Err(error) = window.grow(context, len + 2 * GIB, &mut batch) {
        assert_eq!((p2m.len(), error.undo), (len, Ok(())));
        window.grow(context, len + 2 * GIB, &mut batch).expect("the second attempt");
        return Err(say("grow", &error));
    }
    // Pages in the builder's last table, and in two that have none yet.
    let wanted = Pfns::new(Pfn::new(GIB - 4 * LEAF), 8 * LEAF);
    if let Err(error) = window.reserve(context, wanted, &mut pool, &mut batch) {
        assert_eq!(error.undo, Ok(()), "{error}");
        let grown = Census::of(&p2m, p2m.all());
        assert_eq!((grown.ram, grown.foreign), (census.ram, 0), "no pfn stands for anything new");
        window.reserve(context, wanted, &mut pool, &mut batch).expect("the second attempt");
        assert_eq!(free - pool.len(), 9, "eight pages and a table are in use, none is lost");
        return Err(say("reserve", &error));
    }
    assert_eq!(free - pool.len(), 9);
    let devices = Pfns::new(Pfn::new(GIB + 40 * LEAF), 20 * LEAF);
    if let Err(error) = window.reserve_identity(context, devices, &mut pool, &mut batch) {
        assert_eq!(error.undo, Ok(()), "{error}");
        return Err(say("identity", &error));
    }
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count);
    audit(machine, &p2m);
    Ok(())
}

/// The direct mapping shows the frame writable.
fn assert_writable(machine: &Machine, pfn: Pfn) {
    let va = machine.direct_map(pfn).expect("mapped").raw();
    let (_, pte) = machine.model.guest().l1_slot(va).expect("mapped");
    assert_eq!(pte, pte.writable(), "pfn {pfn} is writable again");
}

#[test]
fn every_refusal_is_undone_and_the_generation_is_even_again() {
    let mut refused: u64 = 0;
    for done in [0, 1] {
        for request in 0.. {
            let machine = Machine::new(request);
            let arch = ArchSharedInfo::default();
            let toolstack = Toolstack::new(&arch);
            let refusal = Refusal { request, errno: Errno::EBUSY, done };
            let around = FailNth::new(&machine, refusal);
            let lived = live(&machine, &around, toolstack);
            machine.check();
            assert!(toolstack.read().generation.is_multiple_of(2), "request {request}: {lived:?}");
            assert_eq!(lived.is_err(), around.has_refused(), "request {request}: {lived:?}");
            if lived.is_ok() {
                break;
            }
            refused += 1;
        }
    }
    assert_eq!(refused, REFUSALS, "a life of another length: is every request still refused?");
}

#[test]
fn the_frame_list_leads_where_the_list_is_and_is_rebuilt() {
    let machine = Machine::new(7);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (arch, mut storage) = (ArchSharedInfo::default(), Storage::new());
    let toolstack = Toolstack::new(&arch);
    let mut batch = storage.batch();
    let around = GrowContext { machine: &machine, p2m: &p2m, toolstack: Some(toolstack) };
    let mut places: Vec<_> = (0..CAPACITY / GIB).map(|_| None).collect();
    let top = p2m::LeafSource::take(&mut pool).expect("a frame");
    let mut list = FrameList::new(top, &mut places);
    list.build((&machine, &p2m), &window, &mut pool).expect("build");
    toolstack.publish_frame_list(&p2m, list.top(&p2m).ok());
    assert_eq!(toolstack.read().max_pfn, p2m.len());

    window.grow(around, 3 * GIB, &mut batch).expect("grow");
    assert_eq!(toolstack.read().max_pfn, 3 * GIB);
    let new = Pfns::new(Pfn::new(2 * GIB + 7), 2000);
    window.reserve(around, new, &mut pool, &mut batch).expect("reserve");
    // Each page of the list is where the guest's own tables have it, and none is behind the last.
    let mapped = |index| machine.model.guest().l1_slot(WINDOW + index * PAGE_SIZE as u64);
    let pages = 3 * GIB / LEAF;
    for index in 0..pages {
        let leaf = window.leaf(&machine, &p2m, index).ok();
        assert_eq!(leaf, mapped(index).map(|(_, pte)| pte.mfn()), "page {index}");
    }
    assert_eq!(mapped(pages), None);
    let findings = |list: &FrameList<'_>| {
        let mut places = [None; 4];
        let mut audit = Audit::begin(&mut places);
        audit.run(&machine, &p2m);
        audit.check_frame_list((&machine, &p2m), list, &window);
        audit.check_toolstack(&toolstack, &p2m, None);
        audit.report().to_string()
    };
    assert!(findings(&list).contains("the frame list leads"), "{}", findings(&list));
    let all = p2m.all();
    list.refresh((&machine, &p2m), &window, all, &mut pool).expect("refresh");
    assert!(findings(&list).ends_with("nothing is wrong"), "{}", findings(&list));

    // After a restore every number in it is stale.
    let free = pool.len();
    let stale = list.top(&p2m).expect("its frame");
    (0..512).for_each(|at| machine.model.poke(stale, at, 0xdead));
    assert!(findings(&list).contains("leads nowhere"), "{}", findings(&list));
    list.build((&machine, &p2m), &window, &mut pool).expect("build");
    assert!(findings(&list).ends_with("nothing is wrong"), "{}", findings(&list));
    assert_eq!(pool.len(), free, "rebuilding takes no frame");
    machine.check();
}

#[test]
fn random_changes_agree_with_a_plain_map() {
    arbtest(|u| {
        let machine = Machine::new(8);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let mut storage = BatchStorage::<8, 2>::new();
        let mut batch = storage.batch();
        let around = context(&machine, &p2m);
        let mut plain: BTreeMap<u64, P2mEntry> = BTreeMap::new();
        let mut reserved = std::collections::BTreeSet::new();
        let built = p2m.len();
        for _ in 0..u.int_in_range(1..=60)? {
            let pfn = u.int_in_range(built..=built + 4 * LEAF)?;
            let (at, leaf) = (Pfn::new(pfn), pfn / LEAF);
            let known = plain.get(&pfn).copied();
            let fillable = pfn < p2m.len() && known.is_none() && reserved.contains(&leaf);
            let mfn = Mfn::new(u.int_in_range(1..=0xffff)?);
            match u.int_in_range(0..=6)? {
                0 => {
                    let len = u.int_in_range(built..=built + 5 * LEAF)?;
                    window.grow(around, len, &mut batch).expect("grow");
                }
                1 if pfn < p2m.len() => {
                    let pfns = Pfns::new(at, 1);
                    window.reserve(around, pfns, &mut pool, &mut batch).expect("reserve");
                    reserved.insert(leaf);
                }
                2 => {
                    assert_eq!(p2m.populate(at, mfn).is_ok(), fillable, "{pfn:#x}");
                    fillable.then(|| plain.insert(pfn, P2mEntry::Ram(mfn)));
                }
                3 => {
                    let owner = DomId(u.int_in_range(0..=3)?);
                    assert_eq!(p2m.set_foreign(at, owner, mfn).is_ok(), fillable, "{pfn:#x}");
                    fillable.then(|| plain.insert(pfn, P2mEntry::Foreign { owner, mfn }));
                }
                4 => match known {
                    Some(P2mEntry::Ram(mfn)) => {
                        assert_eq!(p2m.depopulate(at), Ok(mfn));
                        plain.remove(&pfn);
                    }
                    _ => assert!(p2m.depopulate(at).is_err(), "{pfn:#x}"),
                },
                5 => match known {
                    Some(P2mEntry::Foreign { owner, mfn }) => {
                        assert_eq!(p2m.clear_foreign(at), Ok((owner, mfn)));
                        plain.remove(&pfn);
                    }
                    _ => assert!(p2m.clear_foreign(at).is_err(), "{pfn:#x}"),
                },
                _ => {
                    let done = p2m.set_identity(Pfns::new(at, 1)).is_ok();
                    assert_eq!(done, fillable, "{pfn:#x}");
                    fillable.then(|| plain.insert(pfn, P2mEntry::Identity));
                }
            }
            let expected = plain.get(&pfn).copied().unwrap_or(P2mEntry::Absent);
            match p2m.entry(at) {
                Ok(entry) => assert_eq!(entry, expected, "{pfn:#x}"),
                Err(error) => assert_eq!(error, P2mError::OutOfRange { pfn: at, len: p2m.len() }),
            }
        }
        let count =
            |kind: fn(&P2mEntry) -> bool| plain.values().filter(|entry| kind(entry)).count() as u64;
        let census = Census::of(&p2m, p2m.all());
        assert_eq!(census.ram, built + count(|entry| matches!(entry, P2mEntry::Ram(_))));
        assert_eq!(census.foreign, count(|entry| matches!(entry, P2mEntry::Foreign { .. })));
        assert_eq!(census.identity, count(|entry| *entry == P2mEntry::Identity));
        machine.check();
        Ok(())
    });
}
