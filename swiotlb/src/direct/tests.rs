//! What two vCPUs may do with one record, in every order that the memory model allows.
#![expect(unsafe_code, reason = "memory whose owner is whoever has the record")]

use loom::sync::Arc;

use super::*;

const WHAT: SlotUse = SlotUse::whole(Purpose::ToDevice, 64);

#[test]
fn two_ends_of_one_mapping_are_one_end_and_one_error() {
    loom::model(|| {
        let records = Arc::new(Records::new());
        let at = BusAddr::from_raw(0x1000);
        assert!(records.add(at, WHAT));
        let other = Arc::clone(&records);
        let other = loom::thread::spawn(move || other.end(at, WHAT) == Found::Ended);
        let mine = records.end(at, WHAT) == Found::Ended;
        assert!(mine ^ other.join().expect("no panic"));
    });
}

// Who only looks first is spawned: loom looks for another order from where a thread stored, not
// from where it loaded.

#[test]
fn an_end_takes_no_mapping_of_another_address() {
    loom::model(|| {
        let records = Arc::new(Records::new());
        let (old, new) = (BusAddr::from_raw(0x1000), BusAddr::from_raw(0x2000));
        assert!(records.add(old, WHAT));
        let other = Arc::clone(&records);
        let late = loom::thread::spawn(move || other.end(old, WHAT) == Found::Ended);
        // Ends it, and the record is for another buffer at once.
        let ended = records.end(old, WHAT) == Found::Ended;
        let added = records.add(new, WHAT);
        assert!(late.join().expect("no panic") ^ ended, "the old mapping ends once");
        assert!(added);
        assert_eq!(records.end(new, WHAT), Found::Ended);
    });
}

#[test]
fn an_end_takes_no_mapping_of_another_length() {
    loom::model(|| {
        let records = Arc::new(Records::new());
        let at = BusAddr::from_raw(0x1000);
        let (short, long) = (WHAT, SlotUse::whole(Purpose::ToDevice, 128));
        assert!(records.add(at, short));
        let other = Arc::clone(&records);
        let late = loom::thread::spawn(move || other.end(at, short) == Found::Ended);
        let ended = records.end(at, short) == Found::Ended;
        let added = records.add(at, long);
        assert!(late.join().expect("no panic") ^ ended, "the short mapping ends once");
        assert!(added);
        assert_eq!(records.end(at, long), Found::Ended);
    });
}

#[test]
fn what_was_done_before_an_end_comes_before_the_record_is_taken_again() {
    loom::model(|| {
        let records = Arc::new(Records::new());
        let at = BusAddr::from_raw(0x1000);
        assert!(records.add(at, WHAT));
        let words = Arc::new(loom::cell::UnsafeCell::new(1));
        let other = loom::thread::spawn({
            let (records, words) = (Arc::clone(&records), Arc::clone(&words));
            move || {
                if records.add(at, WHAT) {
                    // SAFETY: the record is this one's now; loom panics if not.
                    words.with_mut(|word| unsafe { *word = 2 });
                }
            }
        });
        // SAFETY: as above: until the end the words are the mapping's.
        assert_eq!(words.with(|word| unsafe { *word }), 1);
        assert_eq!(records.end(at, WHAT), Found::Ended);
        other.join().expect("no panic");
    });
}
