//! What steps do when nothing is in the way, and what they cost.

mod common;

use balloon::{Balloon, Limit, Moved, Next, Retarget, StepStorage, Wipe};
use common::{FREE, Guest, PAGES, SPAN, begin, settle, step, words};
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{Errno, Frame, FrameAccess as _, Pfn};
use p2m::Pfns;
use p2m::kexec::KexecState;

type Storage = StepStorage<600>;

#[test]
fn frames_go_out_and_come_back() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Always);

    assert_eq!(balloon.set_target(PAGES - 2000), Retarget::Step);
    let mut storage = Storage::new();
    let around = guest.around();
    let first = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((first.moved, first.next), (Moved::Out(563), Next::Again));
    assert!(first.accounts.is_balanced(), "{}", first.accounts);
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((last.moved, last.next), (Moved::Out(311), Next::Idle));
    let line = "1000 populated + 2000 ballooned + 72 reserved == 3072 pfns, Xen agrees";
    assert_eq!(last.accounts.to_string(), line);
    assert_eq!(stack.0.len() as u64, FREE - 2000);
    guest.check();

    assert_eq!(balloon.set_target(PAGES), Retarget::Step);
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(last.next, Next::Idle);
    assert!(last.accounts.is_balanced(), "{}", last.accounts);
    assert_eq!((balloon.ballooned(), stack.0.len() as u64), (0, FREE));
    guest.check();
}

#[test]
fn a_step_is_two_traps_whichever_way() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Always);
    let mut storage = Storage::new();
    let machine = Counting::new(&guest.model);
    for (target, frames) in [(PAGES - 100, 100), (PAGES, 100)] {
        balloon.set_target(target);
        let before = machine.counts();
        let last = settle(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
        let took = machine.counts() - before;
        assert_eq!(last.next, Next::Idle);
        // A flush goes with the unmapping.
        let flush = u64::from(target < PAGES);
        assert_eq!((took.hypercalls, took.entries), (2, 2 * frames + flush), "{target}");
    }
    // With nothing to do, only the count is asked for.
    let before = machine.counts();
    let idle = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
    assert_eq!((idle.moved, idle.next), (Moved::Nothing, Next::Idle));
    assert_eq!((machine.counts() - before).hypercalls, 1);
}

#[test]
fn whole_blocks_come_back_as_one_extent_each() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let mut storage = Storage::new();
    let around = guest.around();
    // The stack gives the highest first: three aligned blocks of 2 MiB and what is around them.
    balloon.set_target(PAGES - 2000);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    balloon.set_target(PAGES);
    let machine = Counting::new(&guest.model);
    for _ in 0..3 {
        let before = machine.counts();
        let moved = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage).moved;
        assert_eq!(moved, Moved::In(512));
        let took = machine.counts() - before;
        assert_eq!((took.hypercalls, took.entries), (2, 1 + 512), "one extent, 512 entries");
    }
    let runs = guest.p2m.runs(Pfns::new(Pfn::new(512), 1536), p2m::runs::Grain::Frames);
    assert!(runs.count() <= 3, "each block is a run of machine frames");
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    guest.check();
}

#[test]
fn frames_are_wiped_before_they_leave_unless_that_is_not_wanted() {
    for (wipe, left) in [(Wipe::Always, 0), (Wipe::Never, 0x5ec2e7)] {
        let guest = Guest::new();
        let (mut words, mut stack) = (words(), guest.stack());
        let secret = guest.p2m.mfn(stack.0.last().expect("one").pfn()).expect("RAM");
        guest.model.poke(secret, 77, 0x5ec2e7);
        let mut balloon = begin(&guest, &mut words, wipe);
        balloon.set_target(PAGES - 1);
        // The frame is ready to leave, and Xen refuses to unmap it.
        let refusal = Refusal { request: 0, errno: Errno::EINVAL, done: 0 };
        let machine = FailNth::new(&guest.model, refusal);
        let mut storage = Storage::new();
        let refused = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
        assert_eq!(refused.moved, Moved::Nothing);
        assert_eq!(guest.model.word(secret, 77), Some(left), "{wipe:?}");
        assert_eq!(guest.model.machine_to_phys(secret), stack.0.last().map(Frame::pfn));
    }
}

#[test]
fn the_guest_grows_beyond_its_size_at_boot() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let (mut balloon, accounts) =
        Balloon::new(&guest.around(), &mut words, 0, Wipe::Always).expect("asked");
    assert_eq!(
        (accounts.populated, accounts.xen, accounts.is_balanced()),
        (PAGES, Some(PAGES), false)
    );
    let around = guest.around();
    let mut storage = Storage::new();

    // Without pfns there is nowhere to grow.
    assert_eq!(balloon.set_target(SPAN), Retarget::Idle);
    assert_eq!(balloon.goal().limit, Some(Limit::Pfns(PAGES)));

    balloon.add_empty(guest.p2m, guest.empty()).expect("empty pfns");
    // The wish was not forgotten.
    assert_eq!(balloon.goal().frames, SPAN);
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((last.moved, last.next), (Moved::In(SPAN - PAGES), Next::Idle));
    assert!(last.accounts.is_balanced(), "{}", last.accounts);
    assert_eq!(last.accounts.xen, Some(SPAN));
    guest.check();

    // What has memory is not empty.
    let refused = balloon.add_empty(guest.p2m, guest.empty()).expect_err("populated by now");
    assert!(refused.to_string().contains("already"), "{refused}");
}

#[test]
fn the_goal_keeps_to_the_floor_and_the_wish_is_remembered() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    assert_eq!(balloon.set_target(0), Retarget::Step);
    let goal = balloon.goal();
    assert_eq!((goal.wanted, goal.frames, goal.limit), (0, 900, Some(Limit::Floor(900))));
    let around = guest.around();
    let last = settle(around, &mut balloon, &mut stack, &mut Storage::new());
    assert_eq!((last.next, last.accounts.xen), (Next::Idle, Some(900)));
    assert_eq!(balloon.set_target(u64::MAX), Retarget::Step);
    assert_eq!(balloon.goal().frames, PAGES);
    guest.check();
}

#[test]
fn a_page_that_is_out_makes_kexec_unsafe_and_is_counted() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let around = guest.around();
    let ram = [Pfns::new(Pfn::new(0), PAGES)];
    let state = KexecState { p2m: guest.p2m, ram: &ram, granted: None, maps: None };
    assert!(state.kexec_is_safe().is_ok());
    balloon.set_target(PAGES - 37);
    let _ = settle(around, &mut balloon, &mut stack, &mut Storage::new());
    let hazards = state.kexec_is_safe().expect_err("pages are out");
    assert_eq!((hazards.ballooned, hazards.total()), (37, 37));
    assert!(hazards.to_string().contains("37 pages of RAM were given back to Xen"), "{hazards}");
    balloon.set_target(PAGES);
    let _ = settle(around, &mut balloon, &mut stack, &mut Storage::new());
    assert!(state.kexec_is_safe().is_ok());
}

#[test]
fn too_few_words_are_refused() {
    let guest = Guest::new();
    let mut words = [0; 47];
    let refused = Balloon::new(&guest.around(), &mut words, 0, Wipe::Never);
    let said = refused.expect_err("48 are needed").to_string();
    assert_eq!(said, "the set of pfns needs 48 words, not 47");
}
