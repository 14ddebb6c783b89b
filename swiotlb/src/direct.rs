//! Buffers that a device has as they are, and that end by their address: no slot remembers those,
//! so a record does. Without it a second end of one would pass for the end of another.
//!
//! A record is two words: the address, and what is mapped there with the number of the mapping. The
//! second word says whether there is one; whoever changes it has it. The number keeps an end that
//! comes late from taking the mapping that came after it.

use crate::address::BusAddr;
use crate::error::Error;
use crate::segment::{Purpose, Use};
use crate::sync::{AtomicU64, Ordering};

/// Records of an area: two words each.
#[cfg(not(loom))]
const RECORDS: usize = 64;
#[cfg(loom)]
const RECORDS: usize = 1;

/// Low bits of the second word: a purpose, or none, or that a record is being written.
const PURPOSE_BITS: u32 = 3;
const WRITTEN: u64 = 7;
/// Bits of a length, above them; then the number of the mapping.
const LENGTH_BITS: u32 = 45;
const NUMBER_ONE: u64 = 1 << (PURPOSE_BITS + LENGTH_BITS);

/// Who has which buffer, for one area.
#[derive(Debug)]
pub(crate) struct Records([Record; RECORDS]);

#[derive(Debug)]
struct Record {
    address: AtomicU64,
    what: AtomicU64,
}

/// What one search found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Ended,
    Otherwise(Use),
    Nothing,
}

impl Records {
    pub(crate) fn new() -> Self {
        let record = |_| Record { address: AtomicU64::new(0), what: AtomicU64::new(0) };
        Self(core::array::from_fn(record))
    }

    /// Remembers a buffer of `len_bytes` at `address`. False if there is no place for it.
    pub(crate) fn add(&self, address: BusAddr, (purpose, len_bytes): (Purpose, usize)) -> bool {
        let len_bytes = len_bytes as u64;
        if len_bytes >> LENGTH_BITS != 0 {
            return false;
        }
        let what = len_bytes << PURPOSE_BITS | purpose as u64;
        self.0.iter().any(|record| record.take(address, what))
    }

    fn end(&self, address: BusAddr, what: (Purpose, usize)) -> Found {
        let mut found = Found::Nothing;
        for record in &self.0 {
            match record.end(address, what) {
                Found::Ended => return Found::Ended,
                Found::Nothing => {}
                otherwise @ Found::Otherwise(_) => found = otherwise,
            }
        }
        found
    }
}

impl Record {
    fn take(&self, address: BusAddr, what: u64) -> bool {
        let old = self.what.load(Ordering::Relaxed);
        if old & WRITTEN != 0 {
            return false;
        }
        // INVARIANT: I-11: from here on until the last store the record is this caller's.
        let number = old & !(NUMBER_ONE - 1);
        let order = (Ordering::Acquire, Ordering::Relaxed);
        if self.what.compare_exchange(old, number | WRITTEN, order.0, order.1).is_err() {
            return false;
        }
        self.address.store(address.raw(), Ordering::Relaxed);
        self.what.store(number.wrapping_add(NUMBER_ONE) | what, Ordering::Release);
        true
    }

    fn end(&self, address: BusAddr, (purpose, len_bytes): (Purpose, usize)) -> Found {
        let now = self.what.load(Ordering::Acquire);
        let Some(taken) = as_use(now) else { return Found::Nothing };
        if self.address.load(Ordering::Relaxed) != address.raw() {
            return Found::Nothing;
        }
        if (taken.purpose, taken.len_bytes) != (purpose, len_bytes) {
            return Found::Otherwise(taken);
        }
        let none = now & !(NUMBER_ONE - 1);
        match self.what.compare_exchange(now, none, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Found::Ended,
            // Somebody else has ended it.
            Err(_) => Found::Nothing,
        }
    }
}

const fn as_use(what: u64) -> Option<Use> {
    let purpose = match what & WRITTEN {
        1 => Purpose::ToDevice,
        2 => Purpose::FromDevice,
        3 => Purpose::Both,
        _ => return None,
    };
    // A length that was a usize when it was put in.
    let len_bytes = ((what & (NUMBER_ONE - 1)) >> PURPOSE_BITS) as usize;
    Some(Use { purpose, head_bytes: 0, len_bytes })
}

/// Ends the mapping of a buffer at its own address, in whichever of `areas` it is remembered.
///
/// # Errors
/// [`Error::NotTaken`], [`Error::TakenOtherwise`].
pub(crate) fn end<'r>(
    areas: impl Iterator<Item = &'r Records>,
    address: BusAddr,
    what: (Purpose, usize),
) -> Result<(), Error> {
    let mut error = Error::NotTaken { address };
    for records in areas {
        match records.end(address, what) {
            Found::Ended => return Ok(()),
            Found::Nothing => {}
            Found::Otherwise(taken) => {
                let given = Use { purpose: what.0, head_bytes: 0, len_bytes: what.1 };
                error = Error::TakenOtherwise { address, taken, given };
            }
        }
    }
    Err(error)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_once_and_only_as_what_it_was() {
        let records = Records::new();
        let at = BusAddr::from_raw;
        let to = |len_bytes| (Purpose::ToDevice, len_bytes);
        for frame in 0..RECORDS as u64 {
            assert!(records.add(at(frame << 12), to(9)), "record {frame}");
        }
        assert!(!records.add(at(0x99_0000), to(9)), "there is no place for one more");
        let taken = Use { purpose: Purpose::ToDevice, head_bytes: 0, len_bytes: 9 };
        assert_eq!(records.end(at(0x1000), to(8)), Found::Otherwise(taken));
        assert_eq!(records.end(at(0x1000), (Purpose::Both, 9)), Found::Otherwise(taken));
        assert_eq!(records.end(at(0x1001), to(9)), Found::Nothing);
        assert_eq!(records.end(at(0x1000), to(9)), Found::Ended);
        assert_eq!(records.end(at(0x1000), to(9)), Found::Nothing);
        assert!(records.add(at(0x99_0000), to(9)), "a place is free again");
        assert_eq!(records.end(at(0x99_0000), to(9)), Found::Ended);
        let longest = (1 << LENGTH_BITS) - 1;
        assert!(!records.add(at(0x1000), to(longest + 1)));
        assert!(records.add(at(0x1000), to(longest)));
        assert_eq!(records.end(at(0x1000), to(longest)), Found::Ended);
    }

    #[test]
    fn the_number_of_a_mapping_comes_again_after_all_others() {
        let records = Records::new();
        let what = (Purpose::Both, (1 << LENGTH_BITS) - 1);
        for _ in 0..0x1_0002 {
            assert!(records.add(BusAddr::from_raw(0x1000), what));
            assert_eq!(records.end(BusAddr::from_raw(0x1000), what), Found::Ended);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    const WHAT: (Purpose, usize) = (Purpose::ToDevice, 64);

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

    #[test]
    fn an_end_takes_no_mapping_of_another_address() {
        loom::model(|| {
            let records = Arc::new(Records::new());
            let (old, new) = (BusAddr::from_raw(0x1000), BusAddr::from_raw(0x2000));
            assert!(records.add(old, WHAT));
            let other = Arc::clone(&records);
            // Ends it, and the record is for another buffer at once.
            let other = loom::thread::spawn(move || {
                (other.end(old, WHAT) == Found::Ended, other.add(new, WHAT))
            });
            let late = records.end(old, WHAT) == Found::Ended;
            let (ended, added) = other.join().expect("no panic");
            assert!(late ^ ended);
            assert!(added);
            assert_eq!(records.end(new, WHAT), Found::Ended);
        });
    }
}
