//! What several vCPUs may do at once, in every order that the memory model allows.
#![expect(unsafe_code, reason = "memory whose owner is whoever has the slot")]

use std::sync::Arc;

use super::*;

const WHAT: SlotUse = SlotUse::whole(Purpose::Bidirectional, 2048);

fn segment() -> Arc<Segment> {
    let segment = Segment::new();
    assert!(segment.reserve());
    segment.fill(Pfn::new(64));
    Arc::new(segment)
}

fn beside<T: 'static>(
    segment: &Arc<Segment>,
    work: impl FnOnce(&Segment) -> T + 'static,
) -> loom::thread::JoinHandle<T> {
    let segment = Arc::clone(segment);
    loom::thread::spawn(move || work(&segment))
}

#[test]
fn two_that_take_never_get_the_same_slot() {
    loom::model(|| {
        let segment = segment();
        let other = beside(&segment, |segment| segment.take(3, 1));
        let one = segment.take(2, 1).expect("there is room for both");
        let other = other.join().expect("no panic").expect("there is room for both");
        assert!(one + 2 <= other || other + 3 <= one, "{one} and {other}");
        assert_eq!(segment.free(), Segment::SLOTS - 5);
    });
}

#[test]
fn of_two_that_give_the_same_run_back_one_fails() {
    loom::model(|| {
        let segment = segment();
        let slot = segment.take(1, 1).expect("free");
        let state = segment.open(slot, WHAT);
        let give = move |segment: &Segment| {
            let entered = segment.enter(slot, state);
            if entered.is_ok() {
                segment.close(slot, state, 1);
            }
            entered
        };
        let other = beside(&segment, give);
        let one = give(&segment);
        let other = other.join().expect("no panic");
        assert!(one.is_ok() != other.is_ok(), "{one:?} and {other:?}");
        assert_eq!(segment.free(), Segment::SLOTS, "the slot is free once");
    });
}

#[test]
fn an_old_name_of_a_slot_never_gives_back_what_somebody_else_has_taken() {
    loom::model(|| {
        let segment = segment();
        let slot = segment.take(1, 1).expect("free");
        let old = segment.open(slot, WHAT);
        segment.enter(slot, old).expect("it is taken so");
        segment.close(slot, old, 1);
        // Another vCPU takes the slot and has it, while this one uses the old name.
        let other = beside(&segment, move |segment| {
            let slot = segment.take(1, 1).expect("free");
            (slot, segment.open(slot, WHAT))
        });
        assert!(segment.enter(slot, old).is_err());
        let (taken, state) = other.join().expect("no panic");
        assert_eq!(segment.state(taken), state, "the other one still has it");
    });
}

#[test]
fn what_one_did_to_a_slot_comes_before_what_the_next_one_does() {
    loom::model(|| {
        let segment = segment();
        // All slots but the last are somebody's.
        segment.take(64, 64).expect("free");
        segment.take(63, 1).expect("free");
        let memory = Arc::new(loom::cell::UnsafeCell::new(0));
        let use_it = |segment: &Segment, memory: &loom::cell::UnsafeCell<u32>| {
            let Some(slot) = segment.take(1, 1) else { return };
            let state = segment.open(slot, WHAT);
            // loom panics if two accesses are not ordered.
            // SAFETY: whoever has the slot has the memory.
            memory.with_mut(|value| unsafe { *value += 1 });
            segment.enter(slot, state).expect("it is taken so");
            segment.close(slot, state, 1);
        };
        let other = beside(&segment, {
            let memory = Arc::clone(&memory);
            move |segment| use_it(segment, &memory)
        });
        use_it(&segment, &memory);
        other.join().expect("no panic");
    });
}

#[test]
fn memory_leaves_only_when_nobody_takes_a_slot_of_it() {
    loom::model(|| {
        let segment = segment();
        let other = beside(&segment, Segment::empty);
        let one = segment.take(1, 1);
        let left = other.join().expect("no panic");
        // Both may fail, when each sees the other one at work; both never succeed.
        assert!(one.is_none() || left.is_none(), "a slot of memory that left");
        let free = if left.is_some() { 0 } else { Segment::SLOTS - usize::from(one.is_some()) };
        assert_eq!(segment.free(), free);
    });
}

#[test]
fn who_takes_a_slot_sees_the_memory_that_was_put_there() {
    loom::model(|| {
        let segment = Arc::new(Segment::new());
        let other = beside(&segment, |segment| {
            assert!(segment.reserve());
            segment.fill(Pfn::new(64));
        });
        if segment.take(1, 1).is_some() {
            assert_eq!(segment.pfn(), Pfn::new(64));
        }
        other.join().expect("no panic");
    });
}

#[test]
fn who_takes_a_slot_while_the_memory_is_replaced_sees_one_memory() {
    loom::model(|| {
        let segment = segment();
        let other = beside(&segment, |segment| {
            if segment.empty().is_some() && segment.reserve() {
                segment.fill(Pfn::new(128));
            }
        });
        if let Some(slot) = segment.take(1, 1) {
            let start = segment.pfn().raw();
            assert!(start == 64 || start == 128, "{start}");
            let state = segment.open(slot, WHAT);
            assert_eq!(segment.pfn().raw(), start, "it stays");
            segment.enter(slot, state).expect("it is taken so");
            segment.close(slot, state, 1);
        }
        other.join().expect("no panic");
    });
}

#[test]
fn an_end_by_address_and_one_by_token_end_a_taking_once_and_never_the_next_one() {
    loom::model(|| {
        let segment = segment();
        segment.take(64, 64).expect("free");
        segment.take(63, 1).expect("free");
        let slot = segment.take(1, 1).expect("free");
        let state = segment.open(slot, WHAT);
        let by_address = beside(&segment, move |segment| {
            let found = segment.state(slot);
            let is_taken = found.what().is_some() && !found.is_busy();
            let ended = is_taken && segment.enter(slot, found).is_ok();
            if ended {
                segment.close(slot, found, 1);
            }
            (ended, found)
        });
        let again =
            beside(&segment, |segment| segment.take(1, 1).map(|slot| segment.open(slot, WHAT)));
        let by_token = segment.enter(slot, state).is_ok();
        if by_token {
            segment.close(slot, state, 1);
        }
        let (by_address, found) = by_address.join().expect("no panic");
        let again = again.join().expect("no panic");
        let old = by_address && found.same_taking(state);
        assert!(by_token ^ old, "the old taking ends once");
        let next = again.is_some_and(|next| by_address && found.same_taking(next));
        assert!(again.is_none_or(|next| !next.same_taking(state)));
        assert_eq!(segment.free(), usize::from(again.is_none() || next));
    });
}

#[test]
fn of_two_that_copy_one_run_at_once_the_second_sees_what_the_first_has_copied() {
    loom::model(|| {
        let segment = segment();
        let slot = segment.take(1, 1).expect("free");
        let state = segment.open(slot, WHAT);
        let memory = Arc::new(loom::cell::UnsafeCell::new(0));
        let copy = move |segment: &Segment, memory: &loom::cell::UnsafeCell<u32>| {
            let entered = segment.enter(slot, state).is_ok();
            if entered {
                // SAFETY: whoever has entered has the memory; loom panics if that is not so.
                memory.with_mut(|value| unsafe { *value += 1 });
                segment.leave(slot, state);
            }
            u32::from(entered)
        };
        let other = beside(&segment, {
            let memory = Arc::clone(&memory);
            move |segment| copy(segment, &memory)
        });
        let mine = copy(&segment, &memory);
        let copies = mine + other.join().expect("no panic");
        segment.enter(slot, state).expect("nobody is busy any more");
        // SAFETY: as above.
        assert_eq!(memory.with(|value| unsafe { *value }), copies);
        segment.close(slot, state, 1);
    });
}

#[test]
fn what_was_done_before_memory_left_comes_before_its_place_is_reserved_again() {
    loom::model(|| {
        let segment = segment();
        let place = Arc::new(loom::cell::UnsafeCell::new(64));
        let other = beside(&segment, {
            let place = Arc::clone(&place);
            move |segment| {
                // SAFETY: until the memory leaves, nobody else looks at its place; loom panics
                // if that is not so.
                place.with_mut(|pfn| unsafe { *pfn = 0 });
                segment.empty()
            }
        });
        if segment.reserve() {
            // SAFETY: as above: the place is reserved now.
            place.with_mut(|pfn| unsafe { *pfn = 128 });
            segment.fill(Pfn::new(128));
        }
        assert_eq!(other.join().expect("no panic"), Some(Pfn::new(64)));
    });
}
