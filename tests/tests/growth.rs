//! A guest grows above its size at boot, up to the maximum that a toolstack sets and moves: the
//! frame map in its window, the direct mapping and the balloon together, on the model.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use balloon::{Balloon, BalloonObstacle, BalloonStep, Limit, Moved, Next, StepStorage, Wipe};
use hypercall::{
    BatchStorage, Frame, FrameAccess as _, FrameSource, Frames, Level, MmuUpdate, Pfn, Pte,
    PteFlags,
};
use p2m::audit::Audit;
use p2m::{DirectEntries, FrameList, Guest, P2m, Pfns, Window, walk};
use pv_tests::window::{CAPACITY, WindowMachine, WindowPool};

/// Pfns at boot, and beyond them.
const BOOT: u64 = 4096;
const NEW: u64 = 3 * TABLE + 100;
/// Pfns that an L1 table maps.
const TABLE: u64 = 512;

/// What is free, and belongs to the balloon as far as it wants it.
struct Free<'p>(&'p mut WindowPool, Vec<Frame>);

impl FrameSource for Free<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.1.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.1.push(frame);
    }
}

/// Makes empty tables of the direct mapping for `new`.
fn extend_direct_map(guest: Guest<'_, WindowMachine>, new: Pfns, pool: &mut WindowPool) {
    let start = guest.machine().direct_map(Pfn::new(0)).expect("mapped");
    for pfn in (new.start.raw()..new.end()).step_by(512) {
        let va = start.checked_add_pages(pfn).expect("a guest address");
        let path = walk(&guest, guest.kernel_root(), va).expect("tables that can be read");
        let Some(above) = path.at(Level::L2) else { panic!("{va} has no L2 table") };
        if path.at(Level::L1).is_some() {
            continue;
        }
        let table = pool.take().expect("a frame").pfn();
        // SAFETY: the frame has just left the pool.
        unsafe { guest.machine().clear_frame(table) }.expect("mapped");
        let (slot, pte) = DirectEntries::new(guest).find(table).expect("mapped");
        let link = Pte::new(guest.p2m().mfn(table).expect("RAM"), PteFlags::TABLE);
        let mut storage = BatchStorage::<2, 1>::new();
        let mut batch = storage.batch();
        batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).expect("room");
        batch.update(MmuUpdate::set(above.slot, link), above.pte.raw()).expect("room");
        // SAFETY: an empty table where there was none.
        unsafe { batch.submit(guest.machine()) }.expect("allowed");
    }
    guest.machine().model.guest().set_direct_map(start, new.end());
}

/// Steps until the balloon has nothing more to do, or has to wait.
fn settle(
    guest: Guest<'_, WindowMachine>,
    balloon: &mut Balloon<'_>,
    free: &mut Free<'_>,
) -> BalloonStep {
    let mut storage = StepStorage::<600>::new();
    loop {
        let step = storage.with(|work| balloon.step(&guest, free, work));
        assert!(step.accounts.is_balanced(), "{}", step.accounts);
        if step.next != Next::Again {
            return step;
        }
    }
}

/// What the map says is true, and what a toolstack reads of it says the same.
fn audit(machine: &WindowMachine, p2m: &P2m<'_>, list: &FrameList<'_>, window: &Window) {
    let mut places = [None; 8];
    let mut audit = Audit::begin(&mut places);
    let guest = machine.guest(machine, p2m);
    audit.run(&guest);
    audit.check_frame_list(&guest, list, window);
    audit.compare_reservation(machine.model.guest().total_pages());
    assert!(audit.report().is_clean(), "{}", audit.report());
    machine.check();
}

#[test]
fn a_guest_grows_above_its_size_at_boot_as_far_as_the_toolstack_lets_it_and_shrinks_again() {
    let machine = WindowMachine::new(5);
    let mut frames = machine.frames();
    let needed = Window::frames_needed(BOOT, CAPACITY);
    let (window_frames, rest) = frames.split(needed).expect("enough");
    frames = rest;
    let mut storage = BatchStorage::<512, 8>::new();
    let mut batch = storage.batch();
    let (p2m, mut window) = machine.open(&machine, window_frames, &mut batch).expect("a window");
    let mut pool = WindowPool::new(frames);
    let mut places = [const { None }; 4];
    let mut list = FrameList::new(pool.take().expect("a frame"), &mut places);
    let guest = machine.guest(&machine, &p2m);
    list.build(&guest, &window, &mut pool).expect("a frame list");

    let new = Pfns::new(Pfn::new(BOOT), NEW);
    window.grow(&guest, None, new.end(), &mut batch).expect("the map grows");
    window.reserve(&guest, None, new, &mut pool, &mut batch).expect("its words have memory");
    list.refresh(&guest, &window, new, &mut pool).expect("the frame list follows");
    extend_direct_map(guest, new, &mut pool);
    audit(&machine, &p2m, &list, &window);

    let mut words = vec![0; usize::try_from(Balloon::words_needed(new.end())).expect("small")];
    let begun = Balloon::new(&guest, &mut words, 0, Wipe::Always);
    let (mut balloon, _) = begun.expect("the model answers");
    assert_eq!((balloon.goal().frames, p2m.len()), (BOOT, new.end()));
    // SAFETY: the map ended before them until now.
    balloon.add_empty(&p2m, unsafe { Frames::claim(new.start, NEW) }).expect("empty pfns");
    let mut free = Free(&mut pool, Vec::new());

    // The toolstack lets it have the half of what it has pfns for, and then all.
    for maximum in [BOOT + NEW / 2, new.end()] {
        machine.model.guest().set_maximum(maximum);
        let _ = balloon.set_target(u64::MAX);
        assert_eq!(balloon.goal().limit, Some(Limit::Pfns(new.end())));
        let last = settle(guest, &mut balloon, &mut free);
        assert_eq!(last.accounts.xen, Some(maximum), "{last:?}");
        match last.next {
            Next::Wait { why, .. } => assert_eq!(why, BalloonObstacle::Maximum { frames: maximum }),
            next => assert_eq!((next, maximum), (Next::Idle, new.end())),
        }
        audit(&machine, &p2m, &list, &window);
    }
    let grown: Vec<Pfn> = free.1.iter().map(Frame::pfn).collect();
    assert_eq!(grown.len() as u64, NEW);
    for pfn in &grown {
        // SAFETY: the frame is the test's by its token.
        unsafe { machine.write_bytes(*pfn, 8, &pfn.raw().to_le_bytes()) }.expect("mapped");
    }
    for pfn in &grown {
        let mut found = [0; 8];
        machine.read_bytes(*pfn, 8, &mut found).expect("mapped");
        assert_eq!(u64::from_le_bytes(found), pfn.raw());
    }

    let _ = balloon.set_target(BOOT);
    let last = settle(guest, &mut balloon, &mut free);
    assert_eq!((last.next, last.accounts.xen), (Next::Idle, Some(BOOT)));
    assert!(matches!(last.moved, Moved::Out(_)) && free.1.is_empty() && !free.0.is_empty());
    audit(&machine, &p2m, &list, &window);
}
