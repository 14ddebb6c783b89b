//! Records of buffers that devices have as they are, for mappings that end by their address. No
//! slot remembers those. Without a record, a second end of one would pass for the end of another.
//!
//! A record is three words: address, length, and a mark of direction and mapping number. Who
//! changes the mark has the record. The number keeps a late end from ending a later mapping. It has
//! 61 bits: at a mapping each nanosecond none repeats in seventy years.

use crate::address::BusAddr;
use crate::error::DmaError;
use crate::segment::{Purpose, SlotUse};
use crate::sync::{AtomicU64, Ordering};

/// Records of an area.
#[cfg(not(loom))]
const RECORDS: usize = 64;
#[cfg(loom)]
const RECORDS: usize = 1;

/// The low bits of a mark: a purpose, or none, or that the record is being written.
const PURPOSE_BITS: u32 = 3;
const WRITTEN: u64 = 7;
/// The number of the mapping is above them.
const NUMBER_ONE: u64 = 1 << PURPOSE_BITS;

/// The records of one area.
#[derive(Debug)]
pub(crate) struct Records([Record; RECORDS]);

#[derive(Debug)]
struct Record {
    address: AtomicU64,
    len_bytes: AtomicU64,
    mark: AtomicU64,
}

/// What one search found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Ended,
    Otherwise(SlotUse),
    Nothing,
}

impl Records {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let record = |_| Record { address: zero(), len_bytes: zero(), mark: zero() };
        Self(core::array::from_fn(record))
    }

    /// Records a buffer at `address`. Returns false if there is no room.
    pub(crate) fn add(&self, address: BusAddr, what: SlotUse) -> bool {
        self.0.iter().any(|record| record.take(address, what))
    }

    fn end(&self, address: BusAddr, what: SlotUse) -> Found {
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
    fn take(&self, address: BusAddr, what: SlotUse) -> bool {
        let old = self.mark.load(Ordering::Relaxed);
        if old & WRITTEN != 0 {
            return false;
        }
        // INVARIANT: I-11: from here on until the last store the record is this caller's.
        // Acquire: who ended the last mapping read the words before they change.
        let written = old | WRITTEN;
        let acquired =
            self.mark.compare_exchange(old, written, Ordering::Acquire, Ordering::Relaxed);
        if acquired.is_err() {
            return false;
        }
        self.address.store(address.raw(), Ordering::Relaxed);
        self.len_bytes.store(what.len_bytes as u64, Ordering::Relaxed);
        // Release: who sees this mark sees these words, or later ones.
        self.mark.store(old.wrapping_add(NUMBER_ONE) | what.purpose as u64, Ordering::Release);
        true
    }

    fn end(&self, address: BusAddr, what: SlotUse) -> Found {
        match self.look(address, what) {
            Ok(mark) if self.clear(mark) => Found::Ended,
            // Someone else has ended it.
            Ok(_) => Found::Nothing,
            Err(found) => found,
        }
    }

    /// Returns the mark of the mapping that is as asked for.
    fn look(&self, address: BusAddr, what: SlotUse) -> Result<u64, Found> {
        // Acquire: the words are no older than the mark.
        let mark = self.mark.load(Ordering::Acquire);
        let purpose = purpose(mark).ok_or(Found::Nothing)?;
        if self.address.load(Ordering::Relaxed) != address.raw() {
            return Err(Found::Nothing);
        }
        // It was a usize when it was stored.
        let len_bytes =
            usize::try_from(self.len_bytes.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let taken = SlotUse::whole(purpose, len_bytes);
        if taken != what {
            return Err(Found::Otherwise(taken));
        }
        Ok(mark)
    }

    /// Ends the mapping that has this mark. If it still has it, the words read were its own.
    fn clear(&self, mark: u64) -> bool {
        // Release: we looked at the words before who takes the record next changes them.
        let ended = mark & !WRITTEN;
        self.mark.compare_exchange(mark, ended, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

const fn purpose(mark: u64) -> Option<Purpose> {
    match mark & WRITTEN {
        1 => Some(Purpose::ToDevice),
        2 => Some(Purpose::FromDevice),
        3 => Some(Purpose::Bidirectional),
        _ => None,
    }
}

/// Ends the mapping of a buffer at its own address, in whichever of `areas` has the record.
///
/// # Errors
/// [`DmaError::NotTaken`], [`DmaError::TakenOtherwise`].
pub(crate) fn end<'r>(
    areas: impl Iterator<Item = &'r Records>,
    address: BusAddr,
    what: SlotUse,
) -> Result<(), DmaError> {
    let mut error = DmaError::NotTaken { address };
    for records in areas {
        match records.end(address, what) {
            Found::Ended => return Ok(()),
            Found::Nothing => {}
            Found::Otherwise(taken) => {
                error = DmaError::TakenOtherwise { address, taken, given: what };
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
        let to = |len_bytes| SlotUse::whole(Purpose::ToDevice, len_bytes);
        for frame in 0..RECORDS as u64 {
            assert!(records.add(at(frame << 12), to(9)), "record {frame}");
        }
        assert!(!records.add(at(0x99_0000), to(9)), "there is no place for one more");
        let both = SlotUse::whole(Purpose::Bidirectional, 9);
        assert_eq!(records.end(at(0x1000), to(8)), Found::Otherwise(to(9)));
        assert_eq!(records.end(at(0x1000), both), Found::Otherwise(to(9)));
        assert_eq!(records.end(at(0x1001), to(9)), Found::Nothing);
        assert_eq!(records.end(at(0x1000), to(9)), Found::Ended);
        assert_eq!(records.end(at(0x1000), to(9)), Found::Nothing);
        assert!(records.add(at(0x99_0000), to(9)), "a place is free again");
        assert_eq!(records.end(at(0x99_0000), to(9)), Found::Ended);
        assert!(records.add(at(0x1000), to(usize::MAX)));
        assert_eq!(records.end(at(0x1000), to(usize::MAX)), Found::Ended);
    }

    #[test]
    fn an_end_that_comes_late_ends_no_later_mapping_however_often_the_record_was_taken() {
        // As often as sixteen bits count, and more.
        const TIMES: u32 = 0x1_0002;
        let (records, at) = (Records::new(), BusAddr::from_raw(0x1000));
        let (record, what) = (&records.0[0], SlotUse::whole(Purpose::Bidirectional, usize::MAX));
        assert!(records.add(at, what));
        // Whoever does this is descheduled here, and someone else ends the mapping.
        let late = record.look(at, what).expect("it is mapped so");
        assert_eq!(records.end(at, what), Found::Ended);
        for time in 0..TIMES {
            assert!(!record.clear(late), "nothing is mapped, time {time}");
            assert!(records.add(at, what));
            assert!(!record.clear(late), "mapped anew, to the same words, time {time}");
            assert_eq!(records.end(at, what), Found::Ended);
        }
    }
}

#[cfg(all(test, loom))]
mod tests;
