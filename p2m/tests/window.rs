//! The window on the model: adopted without a copy, grown, reserved, refused, restored.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![cfg(not(loom))]

mod common;

use std::collections::BTreeMap;

use arbtest::arbtest;
use common::{Storage, audit, opened, split};
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::shared_info::ArchSharedInfo;
use hypercall::{BatchStorage, DomId, Errno, FrameAccess as _, Full, Mfn, PAGE_SIZE, Pfn, Refused};
use p2m::audit::Audit;
use p2m::runs::Census;
use p2m::{FrameList, Leaves as _, ListError, P2m, P2mEntry, P2mError, Pfns, Toolstack};
use pv_tests::contrary::Contrary;
use pv_tests::window::{CAPACITY, GIB, LEAF, WINDOW, WindowMachine};

#[test]
fn the_builders_list_lies_in_the_window_without_a_copy() {
    // One table maps the list of the first GiB, a second one what is behind it.
    adopted_without_a_copy(&WindowMachine::new(1));
    adopted_without_a_copy(&WindowMachine::of(GIB + 3 * LEAF, 1));
}

fn adopted_without_a_copy(machine: &WindowMachine) {
    let (frames, _) = split(machine);
    let counting = Counting::new(machine);
    let (p2m, window) = machine.open(&counting, frames, &mut Storage::new().batch()).expect("open");
    assert_eq!(counting.counts().hypercalls, 2, "one multicall to protect, one to pin and link");
    assert_eq!(p2m.len(), machine.boot.pages);
    for pfn in p2m.all().iter() {
        assert_eq!(p2m.entry(pfn), machine.builder_map().entry(pfn));
    }
    let guest = machine.guest(machine, &p2m);
    for leaf in 0..p2m.len() / LEAF {
        let builder = machine.builder_list().leaf(&guest, leaf);
        assert_eq!(window.leaf(&guest, leaf), builder, "leaf {leaf} is the same frame");
    }
    assert!(machine.is_writable(0) && !machine.is_writable(machine.boot.pages));
    audit(machine, &p2m);
    machine.check();
}

#[test]
fn growth_by_a_gib_takes_at_most_five_hypercalls_wherever_it_begins() {
    for begun in [0, 3 * LEAF, GIB - machine_pages()] {
        let machine = WindowMachine::new(2);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let counting = Counting::new(&machine);
        let mut storage = Storage::new();
        let mut batch = storage.batch();
        let guest = machine.guest(&counting, &p2m);
        window.grow(&guest, None, p2m.len() + begun, &mut batch).expect("grow");
        let before = counting.counts().hypercalls;
        let new = Pfns::new(Pfn::new(p2m.len()), GIB);
        window.grow(&guest, None, new.end(), &mut batch).expect("grow");
        window.reserve(&guest, None, new, &mut pool, &mut batch).expect("reserve");
        let cost = counting.counts().hypercalls - before;
        assert!(cost <= 5, "{cost} hypercalls from {}", new.start);
        for pfn in new.iter().step_by(100) {
            // SAFETY: the guest exists only in the model.
            unsafe { p2m.populate(pfn, Mfn::new(7)) }.expect("reserved");
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
fn a_shorter_length_changes_nothing() {
    let machine = WindowMachine::new(4);
    let (frames, _) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    window.grow(&machine.guest(&machine, &p2m), None, 6000, &mut storage.batch()).expect("grow");
    window.grow(&machine.guest(&machine, &p2m), None, 5000, &mut storage.batch()).expect("grow");
    assert_eq!(p2m.len(), 6000);
}

#[test]
fn a_batch_without_room_is_full_and_nothing_grows() {
    let machine = WindowMachine::new(4);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (guest, len) = (machine.guest(&machine, &p2m), p2m.len());
    let mut storage = BatchStorage::<0, 0>::new();
    let grown = window.grow(&guest, None, GIB + 1, &mut storage.batch());
    let pfns = Pfns::new(Pfn::new(0), len);
    window.reserve(&guest, None, pfns, &mut pool, &mut storage.batch()).expect("they have words");
    assert_eq!(grown, Err(ListError::Full(Full).into()));
    assert_eq!(p2m.len(), len);
}

#[test]
fn a_window_of_many_tables_that_is_refused_one_gets_all_of_them_back() {
    // With those that every window has, more tables than go out in one multicall.
    let machine = WindowMachine::of(13 * GIB, 11);
    let (mut frames, _) = split(&machine);
    let count = frames.count();
    let mut named = Vec::new();
    for request in [0, 15, 16] {
        let refusal = Refusal { request, errno: Errno::EBUSY, done: 0 };
        let refusing = FailNth::new(&machine, refusal);
        let error = machine.open(&refusing, frames, &mut Storage::new().batch()).map(drop);
        let Refused { value: back, error } = error.expect_err("refused");
        let back = back.expect("all was undone");
        assert_eq!((error.undo, back.count()), (Ok(()), count), "{request}");
        let ListError::Protect { table, .. } = error.failure else { panic!("{error}") };
        named.push(table);
        frames = back;
    }
    // They are protected one after the other.
    let [first, fifteenth, sixteenth] = named[..] else { panic!("{named:?}") };
    assert!(first < fifteenth);
    assert_eq!(fifteenth.checked_add(1), Some(sixteenth));
    // The first 16, though each of them is done.
    let contrary = Contrary::new(&machine, 0);
    let error = machine.open(&contrary, frames, &mut Storage::new().batch()).map(drop);
    let Refused { value: frames, error } = error.expect_err("refused");
    let ListError::Protect { table, .. } = error.failure else { panic!("{error}") };
    assert_eq!((error.undo, table), (Ok(()), fifteenth), "the last of them");
    let frames = frames.expect("all was undone");
    // All of them are as they were: the window opens once nothing is refused.
    let (p2m, _) = opened(&machine, frames);
    audit(&machine, &p2m);
    machine.check();
}

/// Requests of a life, each refused at its first and at its second element.
const REFUSALS: u64 = 56;

/// Opens, grows, reserves and marks, as far as it gets; frames that are in use at the end.
fn live<M: hypercall::Machine>(
    machine: &WindowMachine,
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
            assert_eq!(error.error.undo, Ok(()), "one refusal leaves the way back open: {error}");
            let frames = error.value.as_ref().expect("all was undone");
            assert_eq!(frames.count(), needed, "the frames come back");
            for frame in 0..needed {
                let pfn = Pfn::new(frames.start().raw() + frame);
                assert_writable(machine, pfn);
            }
            return Err(say("open", &error));
        }
    };
    let (guest, toolstack) = (machine.guest(around, &p2m), Some(&toolstack));
    let (len, free) = (p2m.len(), pool.len());
    let census = Census::of(&p2m, p2m.all());
    if let Err(error) = window.grow(&guest, toolstack, len + 2 * GIB, &mut batch) {
        assert_eq!((p2m.len(), error.undo), (len, Ok(())));
        window.grow(&guest, toolstack, len + 2 * GIB, &mut batch).expect("the second attempt");
        return Err(say("grow", &error));
    }
    // Pages in the builder's last table, and in two that have none yet.
    let wanted = Pfns::new(Pfn::new(GIB - 4 * LEAF), 8 * LEAF);
    if let Err(error) = window.reserve(&guest, toolstack, wanted, &mut pool, &mut batch) {
        assert_eq!(error.undo, Ok(()), "{error}");
        let grown = Census::of(&p2m, p2m.all());
        assert_eq!((grown.ram, grown.foreign), (census.ram, 0), "no pfn stands for anything new");
        window
            .reserve(&guest, toolstack, wanted, &mut pool, &mut batch)
            .expect("the second attempt");
        assert_eq!(free - pool.len(), 9, "eight pages and a table are in use, none is lost");
        return Err(say("reserve", &error));
    }
    assert_eq!(free - pool.len(), 9);
    let devices = Pfns::new(Pfn::new(GIB + 40 * LEAF), 20 * LEAF);
    // SAFETY: as above.
    let marked =
        unsafe { window.reserve_identity(&guest, toolstack, devices, &mut pool, &mut batch) };
    if let Err(error) = marked {
        assert_eq!(error.undo, Ok(()), "{error}");
        return Err(say("identity", &error));
    }
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count);
    audit(machine, &p2m);
    Ok(())
}

/// The direct mapping shows the frame writable.
fn assert_writable(machine: &WindowMachine, pfn: Pfn) {
    let va = machine.direct_map(pfn).expect("mapped").raw();
    let (_, pte) = machine.model.guest().l1_slot(va).expect("mapped");
    assert_eq!(pte, pte.writable(), "pfn {pfn} is writable again");
}

#[test]
fn every_refusal_is_undone_and_the_generation_is_even_again() {
    let mut refused: u64 = 0;
    for done in [0, 1] {
        for request in 0.. {
            let machine = WindowMachine::new(request);
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
fn what_is_refused_as_a_whole_and_done_nevertheless_is_undone() {
    let mut refused: u64 = 0;
    for trap in 0.. {
        let machine = WindowMachine::new(trap);
        let arch = ArchSharedInfo::default();
        let around = Contrary::new(&machine, trap);
        let lived = live(&machine, &around, Toolstack::new(&arch));
        machine.check();
        assert_eq!(lived.is_err(), around.has_refused(), "trap {trap}: {lived:?}");
        if lived.is_ok() {
            break;
        }
        refused += 1;
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn the_frame_list_leads_where_the_list_is_and_is_rebuilt() {
    let machine = WindowMachine::new(7);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (arch, mut storage) = (ArchSharedInfo::default(), Storage::new());
    let toolstack = Toolstack::new(&arch);
    let mut batch = storage.batch();
    let guest = machine.guest(&machine, &p2m);
    let mut places: Vec<_> = (0..CAPACITY / GIB).map(|_| None).collect();
    let top = hypercall::FrameSource::take(&mut pool).expect("a frame");
    let mut list = FrameList::new(top, &mut places);
    list.build(&guest, &window, &mut pool).expect("build");
    // SAFETY: the guest exists only in the model.
    unsafe { toolstack.publish_frame_list(&p2m, list.top(&p2m).ok()) };
    assert_eq!(toolstack.read().max_pfn, p2m.len());

    window.grow(&guest, Some(&toolstack), 3 * GIB, &mut batch).expect("grow");
    assert_eq!(toolstack.read().max_pfn, 3 * GIB);
    let new = Pfns::new(Pfn::new(2 * GIB + 7), 2000);
    window.reserve(&guest, Some(&toolstack), new, &mut pool, &mut batch).expect("reserve");
    // Each page of the list is where the guest's own tables have it, and none is behind the last.
    let mapped = |index| machine.model.guest().l1_slot(WINDOW + index * PAGE_SIZE as u64);
    let pages = 3 * GIB / LEAF;
    for index in 0..pages {
        let leaf = window.leaf(&guest, index).ok();
        assert_eq!(leaf, mapped(index).map(|(_, pte)| pte.mfn()), "page {index}");
    }
    assert_eq!(mapped(pages), None);
    let findings = |list: &FrameList<'_>| {
        let mut places = [None; 4];
        let mut audit = Audit::begin(&mut places);
        audit.run(&guest);
        audit.check_frame_list(&guest, list, &window);
        audit.check_toolstack(&toolstack, &p2m, None);
        audit.report().to_string()
    };
    assert!(findings(&list).contains("the frame list leads"), "{}", findings(&list));
    let all = p2m.all();
    list.refresh(&guest, &window, all, &mut pool).expect("refresh");
    assert!(findings(&list).ends_with("nothing is wrong"), "{}", findings(&list));

    // After a restore every number in it is stale.
    let free = pool.len();
    let stale = list.top(&p2m).expect("its frame");
    (0..512).for_each(|at| machine.model.poke(stale, at, 0xdead));
    assert!(findings(&list).contains("leads nowhere"), "{}", findings(&list));
    list.build(&guest, &window, &mut pool).expect("build");
    assert!(findings(&list).ends_with("nothing is wrong"), "{}", findings(&list));
    assert_eq!(pool.len(), free, "rebuilding takes no frame");
    machine.check();
}

/// Gives a pfn something, or takes away what it has. Whether the map took it.
fn change(p2m: &P2m<'_>, at: Pfn, known: Option<P2mEntry>, to: P2mEntry) -> bool {
    let only = Pfns::new(at, 1);
    // SAFETY: as above.
    let depopulate = || unsafe { p2m.depopulate(at) };
    // SAFETY: as above.
    let clear_foreign = || unsafe { p2m.clear_foreign(at) };
    // SAFETY: as above.
    let clear_identity = || unsafe { p2m.clear_identity(only) }.is_ok();
    match (to, known) {
        // SAFETY: as above.
        (P2mEntry::Ram(mfn), _) => unsafe { p2m.populate(at, mfn) }.is_ok(),
        (P2mEntry::Foreign { owner, mfn }, _) => {
            // SAFETY: as above.
            unsafe { p2m.set_foreign(at, owner, mfn) }.is_ok()
        }
        // SAFETY: as above.
        (P2mEntry::Identity, _) => unsafe { p2m.set_identity(only) }.is_ok(),
        (P2mEntry::Absent, Some(P2mEntry::Ram(mfn))) => depopulate() == Ok(mfn),
        (P2mEntry::Absent, Some(P2mEntry::Foreign { owner, mfn })) => {
            clear_foreign() == Ok((owner, mfn))
        }
        (P2mEntry::Absent, Some(_)) => clear_identity(),
        (P2mEntry::Absent, None) => {
            depopulate().is_ok() || clear_foreign().is_ok() || clear_identity()
        }
    }
}

#[test]
fn random_changes_agree_with_a_plain_map() {
    arbtest(|u| {
        let machine = WindowMachine::new(8);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let mut storage = BatchStorage::<8, 2>::new();
        let mut batch = storage.batch();
        let guest = machine.guest(&machine, &p2m);
        let mut plain: BTreeMap<u64, P2mEntry> = BTreeMap::new();
        let mut reserved = std::collections::BTreeSet::new();
        let built = p2m.len();
        for _ in 0..u.int_in_range(1..=60)? {
            let pfn = u.int_in_range(built..=built + 4 * LEAF)?;
            let (at, leaf) = (Pfn::new(pfn), pfn / LEAF);
            let known = plain.get(&pfn).copied();
            let fillable = pfn < p2m.len() && known.is_none() && reserved.contains(&leaf);
            match u.int_in_range(0..=6)? {
                0 => {
                    let len = u.int_in_range(built..=built + 5 * LEAF)?;
                    window.grow(&guest, None, len, &mut batch).expect("grow");
                }
                1 if pfn < p2m.len() => {
                    let pfns = Pfns::new(at, 1);
                    window.reserve(&guest, None, pfns, &mut pool, &mut batch).expect("reserve");
                    reserved.insert(leaf);
                }
                what => {
                    let mfn = Mfn::new(u.int_in_range(1..=0xffff)?);
                    let to = match what {
                        2 => P2mEntry::Ram(mfn),
                        3 => P2mEntry::Foreign { owner: DomId(u.int_in_range(0..=3)?), mfn },
                        4 => P2mEntry::Identity,
                        _ => P2mEntry::Absent,
                    };
                    let done = change(&p2m, at, known, to);
                    let right = if to == P2mEntry::Absent { known.is_some() } else { fillable };
                    assert_eq!(done, right, "{pfn:#x}: {known:?} to {to:?}");
                    match to {
                        _ if !done => None,
                        P2mEntry::Absent => plain.remove(&pfn),
                        to => plain.insert(pfn, to),
                    };
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

#[test]
fn a_window_grows_no_map_but_its_own_and_none_without_end() {
    let (machine, other) = (WindowMachine::new(9), WindowMachine::new(10));
    let (frames, mut pool) = split(&machine);
    let (_p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    // A map whose list ends where it is, and one that may grow in another window.
    let (frames, _) = split(&other);
    let (growing, _other_window) = opened(&other, frames);
    for stranger in [machine.builder_map(), growing] {
        let (guest, len) = (machine.guest(&machine, &stranger), stranger.len());
        let pfns = Pfns::new(Pfn::new(0), 1);
        let grown = window.grow(&guest, None, len + LEAF, &mut batch);
        let reserved = window.reserve(&guest, None, pfns, &mut pool, &mut batch);
        // SAFETY: as above.
        let identity =
            unsafe { window.reserve_identity(&guest, None, pfns, &mut pool, &mut batch) };
        for refused in [grown, reserved, identity] {
            assert_eq!(
                refused.map_err(|error| error.failure),
                Err(ListError::OtherMap(window.va()))
            );
        }
        assert_eq!(stranger.len(), len);
    }
    let mut endless = WindowMachine::new(11);
    endless.capacity = u64::MAX;
    let frames = endless.frames();
    let refused = endless.open(&endless, frames, &mut batch).expect_err("no window is so long");
    assert!(matches!(refused.error.failure, ListError::Frames { .. }), "{refused}");
    machine.check();
}
