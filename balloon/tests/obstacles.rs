//! What is in the way, by name; how long to wait; and that nothing is lost meanwhile.
#![expect(unsafe_code, reason = "bare requests to the model")]

mod common;

use balloon::{Balloon, BalloonObstacle, Moved, Next, PAUSE_MAX, Retarget, StepStorage, Wipe};
use common::{FREE, Guest, PAGES, Stack, begin, config, settle, step, words};
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{BatchStorage, DomId, Hypercalls as _, MmuUpdate, Pfn, Pte, PteFlags};
use p2m::DirectEntries;
use xen_model::{DomainConfig, Model, Role};

type Storage = StepStorage<600>;

/// What the balloon waits for, and how long.
fn waits(next: Next) -> (BalloonObstacle, u32) {
    match next {
        Next::Wait { why, pause } => (why, pause),
        next => panic!("it does not wait: {next:?}"),
    }
}

/// A guest with `out` frames with Xen.
fn smaller(guest: &Guest, stack: &mut Stack, balloon: &mut Balloon<'_>, out: u64) {
    balloon.set_target(PAGES - out);
    let last = settle(guest.around(), balloon, stack, &mut Storage::new());
    assert_eq!(last.next, Next::Idle);
}

/// Sets the entry of `pfn` in the direct mapping.
fn set_entry(guest: &Guest, pfn: Pfn, pte: Pte) {
    let (slot, old) = DirectEntries::new(guest.around()).find(pfn).expect("an entry");
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    batch.update(MmuUpdate::set(slot, pte), old.raw()).expect("room");
    batch.op(hypercall::MmuExtOp::tlb_flush_all()).expect("room");
    // SAFETY: the guest exists only in the model.
    unsafe { batch.submit(&guest.model) }.expect("allowed");
}

#[test]
fn a_maximum_that_a_toolstack_lowers_is_named_and_waited_for() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    smaller(&guest, &mut stack, &mut balloon, 700);
    guest.model.guest().set_maximum(PAGES - 650);
    balloon.set_target(PAGES);
    let around = guest.around();
    let mut storage = Storage::new();
    // No extent of 2 MiB fits below the maximum; 50 frames do.
    let first = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(first.moved, Moved::In(50));
    assert_eq!(waits(first.next), (BalloonObstacle::Maximum { frames: PAGES - 650 }, 1));
    for pause in [2, 4, 8, 16, PAUSE_MAX, PAUSE_MAX] {
        let step = step(around, &mut balloon, &mut stack, &mut storage);
        assert_eq!(step.moved, Moved::Nothing);
        assert!(step.accounts.is_balanced(), "{}", step.accounts);
        assert_eq!(waits(step.next).1, pause, "{step:?}");
    }
    // Another target in the same direction is no reason to hurry; one in the other is.
    assert_eq!(balloon.set_target(PAGES - 1), Retarget::KeepWaiting);
    assert_eq!(balloon.set_target(PAGES - 900), Retarget::Step);
    assert_eq!(balloon.set_target(PAGES), Retarget::KeepWaiting);
    guest.check();
    guest.model.guest().set_maximum(PAGES);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    assert_eq!(stack.0.len() as u64, FREE);
    guest.check();
}

#[test]
fn a_xen_without_memory_is_asked_again_later() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    smaller(&guest, &mut stack, &mut balloon, 300);
    guest.model.leave_free(120);
    balloon.set_target(PAGES);
    let around = guest.around();
    let mut storage = Storage::new();
    let first = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(first.moved, Moved::In(120));
    assert_eq!(waits(first.next), (BalloonObstacle::XenHasNoMore { asked: 300, came: 120 }, 1));
    let again = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(waits(again.next), (BalloonObstacle::XenHasNoMore { asked: 180, came: 0 }, 2));
    assert!(again.accounts.is_balanced(), "{}", again.accounts);
    guest.check();
    guest.model.leave_free(500);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    guest.check();
}

#[test]
fn a_guest_that_has_nothing_to_spare_keeps_what_it_has() {
    let guest = Guest::new();
    let mut words = words();
    let mut few = Stack(guest.stack().0.split_off(usize::try_from(FREE).expect("small") - 5));
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    balloon.set_target(PAGES - 10);
    let around = guest.around();
    let mut storage = Storage::new();
    let first = step(around, &mut balloon, &mut few, &mut storage);
    assert_eq!(
        (first.moved, waits(first.next)),
        (Moved::Out(5), (BalloonObstacle::NothingToSpare, 1))
    );
    let second = step(around, &mut balloon, &mut few, &mut storage);
    assert_eq!(waits(second.next).0, BalloonObstacle::NothingToSpare);
    guest.check();
}

#[test]
fn a_frame_that_serves_as_something_else_does_not_leave() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Always);
    let pfn = stack.0.last().expect("one").pfn();
    let mfn = guest.p2m.mfn(pfn).expect("RAM");
    set_entry(&guest, pfn, Pte::new(mfn, PteFlags::KERNEL_RW).read_only());
    balloon.set_target(PAGES - 10);
    let around = guest.around();
    let step = step(around, &mut balloon, &mut stack, &mut Storage::new());
    assert!(matches!(waits(step.next).0, BalloonObstacle::InUse { pfn: used, .. } if used == pfn));
    assert_eq!((step.moved, stack.0.len() as u64), (Moved::Nothing, FREE));
    guest.check();
}

#[test]
fn a_frame_that_is_used_elsewhere_stays_until_that_ends_and_is_counted() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    // Somebody maps the first frame that will leave a second time, and nobody told the allocator.
    let mfn = guest.p2m.mfn(stack.0.last().expect("one").pfn()).expect("RAM");
    let alias = stack.0.remove(0);
    let old = guest.p2m.mfn(alias.pfn()).expect("RAM");
    set_entry(&guest, alias.pfn(), Pte::new(mfn, PteFlags::KERNEL_RW));
    balloon.set_target(PAGES - 3);
    let around = guest.around();
    let mut storage = Storage::new();
    let out = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((out.moved, out.accounts.surplus()), (Moved::Out(3), 1));
    assert!(!out.accounts.is_balanced());
    set_entry(&guest, alias.pfn(), Pte::new(old, PteFlags::KERNEL_RW));
    assert!(step(around, &mut balloon, &mut stack, &mut storage).accounts.is_balanced());
    guest.check();
}

#[test]
fn a_place_in_the_direct_mapping_that_is_taken_is_named_and_what_came_for_it_goes_back() {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    smaller(&guest, &mut stack, &mut balloon, 20);
    // In the middle of what is out.
    let taken = Pfn::new(common::FREE_FROM + FREE - 10);
    assert!(balloon.holds(taken));
    let other = guest.p2m.mfn(stack.0[0].pfn()).expect("RAM");
    set_entry(&guest, taken, Pte::new(other, PteFlags::KERNEL_RW));
    balloon.set_target(PAGES);
    let around = guest.around();
    let mut storage = Storage::new();
    for (moved, populated) in [(10, PAGES - 10), (0, PAGES - 10)] {
        let step = step(around, &mut balloon, &mut stack, &mut storage);
        assert_eq!(step.accounts.xen, Some(populated), "{step:?}");
        assert!(step.accounts.is_balanced(), "{}", step.accounts);
        let came = if moved == 0 { Moved::Nothing } else { Moved::In(moved) };
        assert_eq!(step.moved, came);
        assert!(
            matches!(waits(step.next).0, BalloonObstacle::Occupied { pfn, .. } if pfn == taken)
        );
    }
    set_entry(&guest, taken, Pte::ABSENT);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    assert_eq!(stack.0.len() as u64, FREE);
    guest.check();
}

/// A toolstack takes a frame that is to leave after `before` others have left.
fn lose_a_frame_to_the_toolstack(before: u64) {
    let mut guests = Model::builder().seed(3).guest(config());
    guests = guests.other(DomainConfig::new(Role::Dom0, 1024));
    let guest = Guest::of(guests);
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    // The lowest leave first, so that the lost one is behind them.
    stack.0.reverse();
    let around = guest.around();
    let mut storage = Storage::new();
    balloon.set_target(PAGES - before);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    // dom0 gives up the third frame that will leave, behind the guest's back. It stays as long as
    // the guest maps it.
    let third = stack.0[stack.0.len() - 3].pfn();
    let mut extents = [Extent::from_mfn(guest.p2m.mfn(third).expect("RAM"))];
    let domain = DomId(guest.model.guest().domain());
    let list = Reservation { extents: &mut extents, order: 0, flags: 0, domain };
    let dom0 = guest.model.vcpu(0, 0).expect("dom0");
    // SAFETY: only the model's memory is at stake.
    assert_eq!(unsafe { dom0.memory_op(&mut MemoryOp::Decrease(list)) }, Ok(1));

    balloon.set_target(PAGES - before - 10);
    let first = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(first.moved, Moved::Out(2));
    assert_eq!(waits(first.next).0, BalloonObstacle::XenTookFewer { offered: 10, taken: 2 });
    assert_eq!((first.accounts.set_aside, first.accounts.surplus()), (1, -1));
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(last.next, Next::Idle);
    assert!(last.accounts.is_balanced(), "{}", last.accounts);
    assert_eq!((last.accounts.set_aside, last.accounts.xen), (0, Some(PAGES - before - 10)));
    guest.check();
    balloon.set_target(PAGES);
    assert_eq!(settle(around, &mut balloon, &mut stack, &mut storage).next, Next::Idle);
    assert_eq!(stack.0.len() as u64, FREE);
    guest.check();
}

#[test]
fn a_frame_that_a_toolstack_took_is_found_out_and_written_off() {
    lose_a_frame_to_the_toolstack(0);
}

#[test]
fn a_frame_behind_more_pfns_than_a_step_looks_at_is_found_out_as_well() {
    lose_a_frame_to_the_toolstack(1500);
}
