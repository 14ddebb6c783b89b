//! Holes of the map in the window: words that many pfns share, absent or identity, and what is
//! reserved in them.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![cfg(not(loom))]

mod common;

use common::{Storage, audit, opened, split};
use hypercall::middleware::Counting;
use hypercall::{
    BatchStorage, DomId, Frame, FrameAccess as _, FrameSource, Mfn, Pfn, Pte, PteFlags, Uncertain,
    VaFlush, VaMapping,
};
use p2m::runs::Census;
use p2m::{Leaves as _, ListError, P2mEntry, P2mError, Pfns};
use pv_tests::window::{CAPACITY, GIB, LEAF, WindowMachine};
use x86_64::structures::paging::PageTableIndex;
use xen_model::PageType;

/// What most tests begin with, under the names given: a guest of 16 MiB whose map is in its
/// window, frames that are free, a batch, and the guest.
macro_rules! scene {
    ($seed:literal, $machine:ident, $p2m:ident, $window:ident, $pool:ident, $batch:ident,
     $guest:ident) => {
        let $machine = WindowMachine::new($seed);
        let (frames, mut $pool) = split(&$machine);
        let ($p2m, mut $window) = opened(&$machine, frames);
        let mut storage = Storage::new();
        let mut $batch = storage.batch();
        let $guest = $machine.guest(&$machine, &$p2m);
    };
}

#[test]
fn a_hole_takes_no_frame_and_one_hypercall() {
    let machine = WindowMachine::new(3);
    let (frames, pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let (free, counting) = (pool.len(), Counting::new(&machine));
    let mut storage = Storage::new();
    window
        .grow(&machine.guest(&counting, &p2m), None, CAPACITY, &mut storage.batch())
        .expect("grow");
    assert_eq!((pool.len(), counting.counts().hypercalls), (free, 1));
    let last = Pfn::new(CAPACITY - 1);
    assert_eq!(p2m.entry(last), Ok(P2mEntry::Absent));
    // SAFETY: the guest exists only in the model.
    assert_eq!(unsafe { p2m.populate(last, Mfn::new(7)) }, Err(P2mError::NotReserved(last)));
    // SAFETY: as above.
    let foreign = unsafe { p2m.set_foreign(last, DomId(1), Mfn::new(7)) };
    assert_eq!(foreign, Err(P2mError::NotReserved(last)));
    let error =
        window.grow(&machine.guest(&counting, &p2m), None, CAPACITY + 1, &mut storage.batch());
    let capacity = ListError::Capacity { pfns: CAPACITY + 1, capacity: CAPACITY };
    assert_eq!(error.map_err(|error| error.failure), Err(capacity));
    audit(&machine, &p2m);
    machine.check();
}

#[test]
fn identity_holes_share_their_words_whatever_their_borders() {
    scene!(5, machine, p2m, window, pool, batch, guest);
    window.grow(&guest, None, CAPACITY, &mut batch).expect("grow");
    // From the middle of a page over a whole GiB into the middle of another.
    let devices = Pfns::new(Pfn::new(GIB - 1000), 2 * GIB - 777);
    let free = pool.len();
    // SAFETY: as above.
    unsafe { window.reserve_identity(&guest, None, devices, &mut pool, &mut batch) }
        .expect("identity");
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
    window.reserve(&guest, None, inside, &mut pool, &mut batch).expect("reserve");
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count);
    // SAFETY: as above.
    unsafe { p2m.clear_identity(inside) }.expect("private words");
    assert_eq!(Census::of(&p2m, p2m.all()).identity, devices.count - 3);
    machine.check();
}

#[test]
fn a_hole_in_the_middle_of_a_gib_is_no_whole_one() {
    scene!(9, machine, p2m, window, pool, batch, guest);
    window.grow(&guest, None, 3 * GIB, &mut batch).expect("grow");
    // As many pages in front of it as behind it.
    for (gib, margin) in [(1, 100 * LEAF), (2, LEAF)] {
        let hole = Pfns::new(Pfn::new(gib * GIB + margin), GIB - 2 * margin);
        // SAFETY: as above.
        unsafe { window.reserve_identity(&guest, None, hole, &mut pool, &mut batch) }
            .expect("identity");
        let gib = Pfns::new(Pfn::new(gib * GIB), GIB);
        let census = Census::of(&p2m, gib);
        assert_eq!((census.identity, census.absent), (hole.count, 2 * margin));
    }
    machine.check();
}

#[test]
fn words_that_have_memory_of_their_own_become_identity_too() {
    scene!(10, machine, p2m, window, pool, batch, guest);
    window.grow(&guest, None, 3 * GIB, &mut batch).expect("grow");
    let own = Pfns::new(Pfn::new(2 * GIB + 4 * LEAF), 2 * LEAF);
    window.reserve(&guest, None, own, &mut pool, &mut batch).expect("reserve");
    let free = pool.len();
    let hole = Pfns::new(Pfn::new(2 * GIB + 3 * LEAF), 4 * LEAF);
    // SAFETY: as above.
    unsafe { window.reserve_identity(&guest, None, hole, &mut pool, &mut batch) }
        .expect("identity");
    assert_eq!(pool.len(), free);
    let census = Census::of(&p2m, Pfns::new(Pfn::new(GIB), 2 * GIB));
    assert_eq!((census.identity, census.absent), (hole.count, 2 * GIB - hole.count));
    assert_eq!(Census::of(&p2m, hole).identity, hole.count);
    // What stands for something does not.
    // SAFETY: as above.
    unsafe { p2m.clear_identity(own) }.expect("words of their own");
    // SAFETY: as above.
    unsafe { p2m.set_foreign(own.start, DomId(1), Mfn::new(7)) }.expect("absent");
    // SAFETY: as above.
    let error = unsafe { window.reserve_identity(&guest, None, own, &mut pool, &mut batch) };
    let entry = P2mEntry::Foreign { owner: DomId(1), mfn: Mfn::new(7) };
    let occupied = P2mError::Occupied { pfn: own.start, entry };
    assert_eq!(error.map_err(|error| error.failure), Err(ListError::P2m(occupied)));
    machine.check();
}

#[test]
fn what_a_restore_wrote_into_holes_is_mended() {
    scene!(6, machine, p2m, window, pool, batch, guest);
    window.grow(&guest, None, 3 * GIB, &mut batch).expect("grow");
    let devices = Pfns::new(Pfn::new(GIB), GIB);
    // SAFETY: as above.
    unsafe { window.reserve_identity(&guest, None, devices, &mut pool, &mut batch) }
        .expect("identity");
    // The toolstack writes absent words over every page of the list that it did not fill.
    for leaf in [GIB / LEAF, 2 * GIB / LEAF] {
        let frame = window.leaf(&machine.guest(&machine, &p2m), leaf).expect("a page");
        (0..512).for_each(|at| machine.model.poke(frame, at, u64::MAX));
    }
    machine.show_frames();
    assert_eq!(p2m.entry(devices.start), Ok(P2mEntry::Absent), "the mark is lost");
    window.refill_holes(&machine).expect("refill");
    machine.show_frames();
    assert_eq!(p2m.entry(devices.start), Ok(P2mEntry::Identity));
    let absent = Pfn::new(2 * GIB);
    // SAFETY: as above.
    assert_eq!(unsafe { p2m.populate(absent, Mfn::new(7)) }, Err(P2mError::NotReserved(absent)));
    machine.check();
}

#[test]
fn the_table_of_holes_is_not_validated_again_for_a_gib_that_is_alone() {
    scene!(13, machine, p2m, window, pool, batch, guest);
    // Frames that have been taken into use as L1 tables.
    let validated = || {
        let transitions = machine.model.statistics().transitions;
        transitions.iter().map(|to| to[PageType::L1 as usize]).sum::<u64>()
    };
    for _ in 0..2 {
        let before = validated();
        let len = p2m.len().next_multiple_of(GIB);
        window.grow(&guest, None, len + GIB, &mut batch).expect("grow");
        assert_eq!(validated() - before, 0, "no table becomes one when the GiB's hole is linked");
        let gib = Pfns::new(Pfn::new(len), GIB);
        window.reserve(&guest, None, gib, &mut pool, &mut batch).expect("reserve");
        assert_eq!(validated() - before, 1, "the table of the GiB's own does");
    }
    machine.check();
}

/// Hands out these frames, the last one first, and keeps apart what comes back.
#[derive(Default)]
struct Few {
    frames: Vec<Frame>,
    given: Vec<Frame>,
    uncertain: Vec<Uncertain>,
}

impl FrameSource for Few {
    fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.given.push(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.uncertain.push(frames);
    }
}

/// Makes a page read-only in the direct mapping.
fn make_read_only(machine: &WindowMachine, pfn: Pfn) {
    let va = machine.direct_map(pfn).expect("mapped").addr();
    let (_, old) = machine.model.guest().l1_slot(va.as_u64()).expect("mapped");
    let mut few = BatchStorage::<0, 0>::new();
    let mut batch = few.batch();
    let change = VaMapping { va, pte: old.read_only(), flush: VaFlush::PageAll };
    batch.va_mapping(change, old).expect("room");
    // SAFETY: the guest exists only in the model.
    unsafe { batch.submit(machine) }.expect("made read-only");
}

/// What becomes of frames of which one cannot be written: number `unwritable` of those taken. The
/// first is full of entries that lead to a frame of another's.
fn reserved_with(unwritable: usize) -> (Few, [Pfn; 3]) {
    scene!(19, machine, p2m, window, pool, batch, guest);
    window.grow(&guest, None, 2 * GIB, &mut batch).expect("grow");
    let frames = [(); 3].map(|()| FrameSource::take(&mut pool).expect("free"));
    let pfns = frames.each_ref().map(Frame::pfn);
    let anothers = FrameSource::take(&mut pool).expect("free");
    let pte = Pte::new(p2m.mfn(anothers.pfn()).expect("RAM"), PteFlags::KERNEL_RW);
    for at in 0..512 {
        // SAFETY: nobody else uses it.
        unsafe { machine.write_entry(pfns[0], PageTableIndex::new(at), pte) }.expect("writable");
    }
    make_read_only(&machine, pfns[unwritable]);
    let mut few = Few { frames: frames.into_iter().rev().collect(), ..Few::default() };
    let wanted = Pfns::new(Pfn::new(GIB), 512 * 2);
    let failed = window.reserve(&guest, None, wanted, &mut few, &mut batch).expect_err("read-only");
    assert!(matches!(failed.failure, ListError::Access(_)), "{failed}");
    assert_eq!(failed.undo, Ok(()));
    audit(&machine, &p2m);
    (few, pfns)
}

#[test]
fn a_table_that_cannot_be_filled_names_no_frame_to_give_back_and_is_given_to_nobody() {
    let (few, [table, ..]) = reserved_with(0);
    assert_eq!(few.given, [], "a second token for what the table names");
    let uncertain = few.uncertain.iter().map(|run| (run.start(), run.count()));
    assert_eq!(uncertain.collect::<Vec<_>>(), [(table, 1)]);
    assert_eq!(few.frames.len(), 2, "the others were not taken");
}

#[test]
fn a_page_that_cannot_be_filled_is_given_to_nobody_and_what_was_taken_before_is_given_back() {
    let (few, [table, first, second]) = reserved_with(2);
    let given = few.given.iter().map(Frame::pfn).collect::<Vec<_>>();
    assert_eq!(given, [first, table]);
    let uncertain = few.uncertain.iter().map(|run| (run.start(), run.count()));
    assert_eq!(uncertain.collect::<Vec<_>>(), [(second, 1)]);
}
