//! What a caller may do wrong: whatever it is, it is named, nothing is lost by it, and no step says
//! that it is worth trying at once again.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

mod common;

use std::sync::atomic::AtomicU64;

use arbtest::arbitrary::{Result, Unstructured};
use balloon::{
    Accounts, Balloon, BalloonObstacle, BalloonStep, Moved, Next, Retarget, StepMemory,
    StepStorage, Wipe,
};
use common::{FREE, Guest, PAGES, Stack, begin, settle, step, words};
use hypercall::memory::Extent;
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{Batch, BatchRuns, Errno, Frame, FrameSource, Machine, MmuExtOp, MmuUpdate, Pfn};
use p2m::P2m;

/// Pfns of a map that is shorter than the guest.
const SHORT: u64 = 1024;

/// The list of the guest's first pfns.
fn short_list(guest: &Guest) -> Vec<AtomicU64> {
    let mfn = |pfn| guest.p2m.mfn(Pfn::new(pfn)).expect("RAM").raw();
    (0..SHORT).map(mfn).map(AtomicU64::new).collect()
}

/// A balloon with bits for the first pfns alone.
fn short_balloon<'w>(guest: &Guest, list: &[AtomicU64], words: &'w mut [u64]) -> Balloon<'w> {
    // SAFETY: the words are those of the guest's own list.
    let short = unsafe { P2m::adopt(list) }.expect("pages");
    let words = &mut words[..usize::try_from(Balloon::words_needed(SHORT)).expect("few")];
    let begun = Balloon::new(&guest.with_map(&short), words, 0, Wipe::Never);
    let (mut balloon, _) = begun.expect("the model answers");
    balloon.set_target(SHORT - 24);
    balloon
}

/// What the balloon waits for.
fn obstacle(step: BalloonStep) -> BalloonObstacle {
    match step.next {
        Next::Wait { why, .. } => why,
        next => panic!("it does not wait: {next:?}"),
    }
}

#[test]
fn a_frame_that_has_no_bit_in_the_set_goes_back_to_the_allocator_and_is_named() {
    let guest = Guest::new();
    let (mut words, list) = (words(), short_list(&guest));
    let mut balloon = short_balloon(&guest, &list, &mut words);
    let mut stack = guest.stack();
    let top = stack.0.last().expect("one").pfn();
    let around = guest.around();
    let first = step(around, &mut balloon, &mut stack, &mut StepStorage::<16>::new());
    let end = Pfn::new(SHORT);
    assert_eq!(
        (first.moved, obstacle(first)),
        (Moved::Nothing, BalloonObstacle::BeyondSet { pfn: top, end })
    );
    assert!(obstacle(first).to_string().contains(&format!("{top}")), "{:?}", first.next);
    assert_eq!((stack.0.len() as u64, balloon.ballooned()), (FREE, 0));
    guest.check();
}

#[test]
fn frames_in_front_of_one_without_a_bit_leave_or_come_back_whatever_is_refused() {
    let refuse = |request| Refusal { request, errno: Errno::EINVAL, done: 1 };
    for (unmapping, undo) in [(99, 99), (0, 99), (0, 2)] {
        let guest = Guest::new();
        let (mut words, list) = (words(), short_list(&guest));
        let mut balloon = short_balloon(&guest, &list, &mut words);
        let mut stack = guest.stack();
        // Three with a bit on top, then one without.
        stack.0.sort_by_key(|frame| frame.pfn().raw() < SHORT);
        let at = stack.0.len() - 3;
        let beyond = stack.0.iter().position(|frame| frame.pfn().raw() >= SHORT).expect("one");
        let frame = stack.0.remove(beyond);
        stack.0.insert(at - 1, frame);
        let inner = FailNth::new(&guest.model, refuse(unmapping));
        let machine = FailNth::new(&inner, refuse(undo));
        let mut storage = StepStorage::<16>::new();
        let first = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
        let held = balloon.ballooned() + first.accounts.set_aside;
        assert_eq!(stack.0.len() as u64 + held, FREE, "{first:?}");
        let aside: Vec<_> = balloon.aside(guest.p2m).collect();
        assert_eq!(aside.len() as u64, first.accounts.set_aside, "each is listed");
        assert!(aside.iter().all(|pfn| balloon.holds(*pfn) && pfn.raw() < SHORT), "{aside:?}");
        assert_eq!(first.accounts.set_aside > 0, undo == 2, "{first:?}");
        let last = settle(guest.around(), &mut balloon, &mut stack, &mut storage);
        assert!(matches!(obstacle(last), BalloonObstacle::BeyondSet { .. }), "{last:?}");
        assert_eq!(stack.0.len() as u64 + balloon.ballooned(), FREE, "{last:?}");
        guest.check();
    }
}

/// A stack that does not see that a frame is given twice.
struct Careless(Stack);

impl FrameSource for Careless {
    fn take(&mut self) -> Option<Frame> {
        self.0.0.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.0.0.push(frame);
    }
}

#[test]
fn a_frame_that_the_balloon_holds_already_is_named() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Always);
    let top = stack.0.last().expect("one").pfn();
    // SAFETY: it is the mistake that is tried: two tokens of a frame, in the model alone.
    stack.0.push(unsafe { Frame::claim(top) });
    balloon.set_target(PAGES - 10);
    let mut careless = Careless(stack);
    let around = guest.around();
    let first = step(around, &mut balloon, &mut careless, &mut StepStorage::<16>::new());
    assert_eq!((first.moved, obstacle(first)), (Moved::Out(1), BalloonObstacle::Held(top)));
    assert_eq!((careless.0.0.len() as u64, balloon.ballooned()), (FREE, 1));
    assert!(first.accounts.is_balanced(), "{}", first.accounts);
    guest.check();
}

/// Memory for a step, each part as large as it says.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    updates: usize,
    flushes: usize,
    extents: usize,
    pfns: usize,
    out_max: usize,
    in_max: usize,
}

const PLENTY: Sizes = Sizes { updates: 8, flushes: 1, extents: 8, pfns: 8, out_max: 8, in_max: 8 };

fn step_in<M: Machine>(
    sizes: Sizes,
    guest: p2m::Guest<'_, M>,
    balloon: &mut Balloon<'_>,
    stack: &mut Stack,
) -> BalloonStep {
    let (mut updates, mut old) = (vec![MmuUpdate::EMPTY; sizes.updates], vec![0; sizes.updates]);
    let (mut ops, mut runs) = (vec![MmuExtOp::EMPTY; sizes.flushes], BatchRuns::new());
    let mut batch = Batch::within(&mut updates, &mut old, &mut ops, &mut runs);
    let mut extents = vec![Extent::default(); sizes.extents];
    let mut pfns = vec![Pfn::new(0); sizes.pfns];
    let Sizes { out_max, in_max, .. } = sizes;
    let mut work =
        StepMemory { batch: &mut batch, extents: &mut extents, pfns: &mut pfns, out_max, in_max };
    balloon.step(&guest, stack, &mut work)
}

#[test]
fn a_batch_without_room_for_the_flush_is_refused_before_anything_is_changed() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Always);
    balloon.set_target(PAGES - 100);
    let top = guest.p2m.mfn(stack.0.last().expect("one").pfn()).expect("RAM");
    guest.model.poke(top, 5, 0x77);
    let sizes = Sizes { flushes: 0, ..PLENTY };
    let first = step_in(sizes, guest.around(), &mut balloon, &mut stack);
    assert_eq!(first.moved, Moved::Nothing);
    assert_eq!(obstacle(first), BalloonObstacle::NoRoom { frames: 8, flushes: 0 });
    assert_eq!((stack.0.len() as u64, balloon.ballooned()), (FREE, 0));
    assert_eq!(guest.model.word(top, 5), Some(0x77), "no frame was wiped");
    guest.check();
    let flushes = guest.model.statistics().asked_flushes;
    let second = step_in(PLENTY, guest.around(), &mut balloon, &mut stack);
    assert_eq!((second.moved, second.next), (Moved::Out(8), Next::Again));
    assert_eq!(guest.model.statistics().asked_flushes, flushes + 1);
}

#[test]
fn a_step_that_can_never_move_anything_waits() {
    let without = [
        Sizes { updates: 0, ..PLENTY },
        Sizes { extents: 0, ..PLENTY },
        Sizes { pfns: 0, ..PLENTY },
        Sizes { out_max: 0, in_max: 0, ..PLENTY },
    ];
    for sizes in without {
        let guest = Guest::new();
        let (mut words, mut stack) = (words(), guest.stack());
        let mut balloon = begin(&guest, &mut words, Wipe::Never);
        balloon.set_target(PAGES - 8);
        let out = step_in(sizes, guest.around(), &mut balloon, &mut stack);
        assert!(matches!(obstacle(out), BalloonObstacle::NoRoom { .. }), "{sizes:?}: {out:?}");
        // Set aside: the unmapping is refused, and its undo.
        let refusal = |request| Refusal { request, errno: Errno::EINVAL, done: 3 };
        let inner = FailNth::new(&guest.model, refusal(0));
        let machine = FailNth::new(&inner, refusal(2));
        let aside = step_in(PLENTY, guest.on(&machine), &mut balloon, &mut stack);
        assert_eq!(aside.accounts.set_aside, 8, "{aside:?}");
        let back = step_in(sizes, guest.around(), &mut balloon, &mut stack);
        let has_room = sizes.updates.min(sizes.extents).min(sizes.pfns) > 0;
        assert_eq!(back.accounts.set_aside == 0, has_room, "{sizes:?}: {back:?}");
        assert!(has_room || matches!(obstacle(back), BalloonObstacle::NoRoom { .. }), "{back:?}");
        let _ = step_in(PLENTY, guest.around(), &mut balloon, &mut stack);
        let out = step_in(PLENTY, guest.around(), &mut balloon, &mut stack);
        assert_eq!((out.accounts.set_aside, balloon.ballooned()), (0, 8), "{out:?}");
        balloon.set_target(PAGES);
        let back = step_in(sizes, guest.around(), &mut balloon, &mut stack);
        assert!(matches!(obstacle(back), BalloonObstacle::NoRoom { .. }), "{sizes:?}: {back:?}");
        guest.check();
    }
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    balloon.set_target(2000);
    let around = guest.around();
    let none = step(around, &mut balloon, &mut stack, &mut StepStorage::<0>::new());
    assert_eq!(obstacle(none), BalloonObstacle::NoRoom { frames: 0, flushes: 1 });
}

#[test]
fn whole_blocks_come_without_room_for_single_frames() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let large = Sizes { updates: 600, extents: 600, pfns: 600, out_max: 600, ..PLENTY };
    balloon.set_target(PAGES - 1100);
    for _ in 0..2 {
        let _ = step_in(large, guest.around(), &mut balloon, &mut stack);
    }
    assert_eq!(balloon.ballooned(), 1100);
    balloon.set_target(PAGES);
    let large = Sizes { in_max: 0, ..large };
    let first = step_in(large, guest.around(), &mut balloon, &mut stack);
    assert_eq!((first.moved, first.next), (Moved::In(512), Next::Again));
    let last = (0..3).map(|_| step_in(large, guest.around(), &mut balloon, &mut stack));
    let last = last.last().expect("three");
    assert!(matches!(obstacle(last), BalloonObstacle::NoRoom { .. }), "{last:?}");
    guest.check();
}

#[test]
fn a_map_that_does_not_know_what_is_set_aside_ends_no_step_in_a_panic_or_an_endless_search() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let mut storage = StepStorage::<600>::new();
    let around = guest.around();
    balloon.set_target(PAGES - 1500);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    balloon.set_target(PAGES - 1508);
    let refusal = |request| Refusal { request, errno: Errno::EINVAL, done: 3 };
    let inner = FailNth::new(&guest.model, refusal(0));
    let machine = FailNth::new(&inner, refusal(2));
    let aside = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
    assert_eq!(aside.accounts.set_aside, 8);
    // Another map: of these pfns all have memory, or none has.
    for word in [0x1234, u64::MAX] {
        let list: Vec<_> = (0..common::SPAN).map(|_| AtomicU64::new(word)).collect();
        // SAFETY: it is the mistake that is tried; only the model's memory is at stake.
        let other = unsafe { P2m::adopt(&list) }.expect("pages");
        let around = guest.with_map(&other);
        let last = settle(around, &mut balloon, &mut stack, &mut storage);
        assert_eq!(obstacle(last), BalloonObstacle::SetAside(8), "{last:?}");
        let _ = (balloon.ballooned(), balloon.goal());
    }
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((last.next, last.accounts.set_aside), (Next::Idle, 0));
    guest.check();
}

#[test]
fn more_pfns_left_out_than_there_are_numbers_are_no_panic() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    balloon.leave_out(u64::MAX);
    balloon.leave_out(u64::MAX);
    assert_eq!(balloon.set_target(PAGES), Retarget::Idle);
    let around = guest.around();
    let idle = step(around, &mut balloon, &mut stack, &mut StepStorage::<16>::new());
    assert!(!idle.accounts.is_balanced() && idle.accounts.to_string().contains("!="));
}

/// Steps in memory of any size, whatever is refused.
fn steps_of_any_size(random: &mut Unstructured<'_>) -> Result<()> {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    for _ in 0..12 {
        balloon.set_target(random.int_in_range(PAGES - 30..=PAGES)?);
        let mut size = || random.int_in_range(0..=9usize);
        let sizes = Sizes {
            updates: size()?,
            flushes: size()?.min(2),
            extents: size()?,
            pfns: size()?,
            out_max: size()?,
            in_max: size()?,
        };
        let mut refusal = || {
            let (request, done) = (random.int_in_range(0..=6)?, random.int_in_range(0..=8)?);
            Ok(Refusal { request, errno: Errno::ENOMEM, done })
        };
        let inner = FailNth::new(&guest.model, refusal()?);
        let machine = FailNth::new(&inner, refusal()?);
        let aside = balloon.aside(guest.p2m).count() as u64;
        let step = step_in(sizes, guest.on(&machine), &mut balloon, &mut stack);
        let accounts = Accounts { xen: Some(guest.model.guest().total_pages()), ..step.accounts };
        assert!(accounts.is_balanced(), "{sizes:?}: {step:?}");
        let held = balloon.ballooned() + accounts.set_aside;
        assert_eq!(stack.0.len() as u64 + held, FREE, "{sizes:?}: {step:?}");
        let progress = step.moved != Moved::Nothing || accounts.set_aside < aside;
        assert!(step.next != Next::Again || progress, "{sizes:?}: {step:?} in vain");
        guest.check();
    }
    Ok(())
}

#[test]
fn a_step_in_memory_of_any_size_moves_something_or_waits() {
    arbtest::arbtest(steps_of_any_size);
}
