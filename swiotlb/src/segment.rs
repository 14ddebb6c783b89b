//! A segment of a pool: 256 KiB, contiguous in the machine, in slots of 2 KiB.
//!
//! It knows its memory only by pfn, and looks the device's address up in P2M whenever slots are
//! taken. So no bus address is older than its mapping.
//!
//! Two words of bits say which slots are taken. One compare-and-exchange takes a run, one atomic
//! `and` gives it back. There is no lock that a descheduled vCPU could hold. A run longer than a
//! word begins at slot 0 and takes both words, or neither.
//!
//! The first slot of a run has a *state*: a word with the run's use, its length, and how often the
//! slot was taken. Who copies a run or gives it back presents the state that it was taken with, and
//! a compare-and-exchange marks it busy. So if two give the same run back, on any vCPUs, one fails
//! at once. An old state fails, because the count has moved on. Safe code has no old states: they
//! arise when unsafe code ends by address what someone else has a token of. The count repeats after
//! 2^28 takings of the slot; such an old state would pass.
//!
//! The word of bits orders the accesses of successive owners: giving back releases, taking
//! acquires. The busy mark orders two vCPUs that copy the same run: [`enter`](Segment::enter)
//! acquires what [`leave`](Segment::leave) released. Everything else is one compare-and-exchange,
//! or written by the owner of the slot.
//!
//! A segment without memory, and one that is leaving, has all slots taken.

use core::fmt;

use hypercall::{PAGE_SIZE, Pfn};

use crate::bits;
use crate::sync::{AtomicU64, Ordering};

const WORD: usize = 64;
const FULL: u64 = u64::MAX;

/// There is no memory, and nobody is adding any.
const NOTHING: u64 = u64::MAX;
/// Someone is adding or removing memory.
const CHANGING: u64 = u64::MAX - 1;

/// The purpose of a run of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// A streaming mapping that the device reads.
    ToDevice = 1,
    /// A streaming mapping that the device writes.
    FromDevice = 2,
    /// A streaming mapping that the device reads and writes.
    Bidirectional = 3,
    /// Coherent memory.
    Coherent = 4,
}

const _: () = assert!(Segment::BYTES == PAGE_SIZE << Segment::ORDER);

/// How a run of slots is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// The purpose.
    pub purpose: Purpose,
    /// Bytes before the first one used, which preserve the low bits of an address.
    pub head_bytes: usize,
    /// Bytes used.
    pub len_bytes: usize,
}

impl fmt::Display for SlotUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = match self.purpose {
            Purpose::ToDevice => "to the device",
            Purpose::FromDevice => "from the device",
            Purpose::Bidirectional => "to and from the device",
            Purpose::Coherent => "of coherent memory",
        };
        write!(f, "{} bytes {purpose}", self.len_bytes)
    }
}

impl SlotUse {
    /// Returns the use of `len_bytes` bytes from the first slot's first byte on.
    pub(crate) const fn whole(purpose: Purpose, len_bytes: usize) -> Self {
        Self { purpose, head_bytes: 0, len_bytes }
    }

    /// Returns the number of slots.
    #[inline]
    pub(crate) const fn slots(self) -> usize {
        (self.head_bytes + self.len_bytes).div_ceil(Segment::SLOT_BYTES)
    }
}

/// The state of a slot, as a word: purpose in bits 0 to 2 (0: free), busy in bit 3, length in bits
/// 4 to 23, head in bits 24 to 35. The bits above count how often the slot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(pub(crate) u64);

impl State {
    const BUSY: u64 = 1 << 3;
    const COUNT: u64 = 1 << 36;

    #[inline]
    pub(crate) const fn is_busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }

    /// Returns the state after the run is given back: free, and taken once more than before.
    #[inline]
    const fn free(self) -> Self {
        Self(self.0 & !(Self::COUNT - 1))
    }

    /// Returns the state of a free slot that is taken again.
    #[inline]
    const fn taken(free: u64, what: SlotUse) -> Self {
        let words = what.purpose as u64 | (what.len_bytes as u64) << 4;
        let head = (what.head_bytes as u64) << 24;
        Self((free & !(Self::COUNT - 1)).wrapping_add(Self::COUNT) | words | head)
    }

    /// Returns what it is taken as, if it is.
    pub(crate) const fn what(self) -> Option<SlotUse> {
        let purpose = match self.0 & 7 {
            1 => Purpose::ToDevice,
            2 => Purpose::FromDevice,
            3 => Purpose::Bidirectional,
            4 => Purpose::Coherent,
            _ => return None,
        };
        let len_bytes = (self.0 >> 4 & 0xf_ffff) as usize;
        let head_bytes = (self.0 >> 24 & 0xfff) as usize;
        Some(SlotUse { purpose, head_bytes, len_bytes })
    }

    /// Returns whether both states are of the same taking.
    pub(crate) const fn same_taking(self, other: Self) -> bool {
        self.0 >> 36 == other.0 >> 36
    }
}

/// A place for 256 KiB of a pool, with the state of its slots: a little over 1 KiB.
#[derive(Debug)]
#[repr(align(64))]
pub struct Segment {
    taken: [AtomicU64; Segment::SLOTS / WORD],
    /// The pfn of slot 0, or [`NOTHING`] or [`CHANGING`].
    pfn: AtomicU64,
    states: [AtomicU64; Segment::SLOTS],
}

impl Segment {
    /// Bytes in a slot.
    pub const SLOT_BYTES: usize = 2048;
    /// Slots in a segment.
    pub const SLOTS: usize = 128;
    /// log2 of the frames in a segment.
    pub const ORDER: u32 = 6;
    /// Bytes in a segment: the most that a pool gives at once.
    pub const BYTES: usize = Self::SLOTS * Self::SLOT_BYTES;

    /// Creates a place without memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            taken: core::array::from_fn(|_| AtomicU64::new(FULL)),
            pfn: AtomicU64::new(NOTHING),
            states: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Takes a run of slots whose first is a multiple of `stride`. Returns the first.
    #[inline]
    pub(crate) fn take(&self, slots: usize, stride: usize) -> Option<usize> {
        if slots <= WORD && stride <= WORD {
            return (0..self.taken.len()).find_map(|word| {
                let at = self.take_in(word, slots, stride)?;
                Some(word * WORD + at)
            });
        }
        self.take_both(slots)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most 64, as the caller sees to")]
    fn take_in(&self, word: usize, slots: usize, stride: usize) -> Option<usize> {
        let taken = &self.taken[word];
        let mut seen = taken.load(Ordering::Relaxed);
        loop {
            let at = bits::find(seen, slots as u32, stride as u32)?;
            let new = seen | bits::low(slots as u32) << at;
            // Acquire: what the last owner of the slots did to them, and what put memory here,
            // comes before what we do.
            match taken.compare_exchange_weak(seen, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(at as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Takes a run from slot 0 on, which may be longer than a word.
    #[cold]
    fn take_both(&self, slots: usize) -> Option<usize> {
        let first = slots.min(WORD);
        self.take_in(0, first, WORD)?;
        if slots > WORD && self.take_in(1, slots - WORD, WORD).is_none() {
            self.give(0, first);
            return None;
        }
        Some(0)
    }

    /// Gives slots back.
    #[inline]
    pub(crate) fn give(&self, slot: usize, slots: usize) {
        let (word, at) = (slot / WORD, slot % WORD);
        let here = slots.min(WORD - at);
        self.clear(word, at, here);
        if slots > here {
            self.clear(word + 1, 0, slots - here);
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    fn clear(&self, word: usize, at: usize, slots: usize) {
        let bits = bits::low(slots as u32) << at;
        // Release: what we did to the slots comes before what their next owner does.
        self.taken[word].fetch_and(!bits, Ordering::Release);
    }

    /// Records the use of a run that has just been taken.
    #[inline]
    pub(crate) fn open(&self, slot: usize, what: SlotUse) -> State {
        let state = &self.states[slot];
        // Nobody else writes the state of a free slot. The bits' acquire came after what its last
        // owner wrote.
        let taken = State::taken(state.load(Ordering::Relaxed), what);
        // Relaxed: who gives the run back compares only this word, and learnt of the run from its
        // owner, after this.
        state.store(taken.0, Ordering::Relaxed);
        taken
    }

    /// Marks a run busy that is in `state`. Fails with the present state if that is another.
    #[inline]
    pub(crate) fn enter(&self, slot: usize, state: State) -> Result<(), State> {
        let busy = state.0 | State::BUSY;
        // Acquire: what was copied until the last `leave` comes before what is copied now.
        self.states[slot]
            .compare_exchange(state.0, busy, Ordering::Acquire, Ordering::Relaxed)
            .map(drop)
            .map_err(State)
    }

    /// Ends the busy state: the run is taken as before.
    #[inline]
    pub(crate) fn leave(&self, slot: usize, state: State) {
        // Release: see `enter`.
        self.states[slot].store(state.0, Ordering::Release);
    }

    /// Gives back a run that is busy.
    #[inline]
    pub(crate) fn close(&self, slot: usize, state: State, slots: usize) {
        // Relaxed: the next owner of the slot sees this word, because it acquires the bits, which
        // are released behind it. An old state is compared with this word alone.
        self.states[slot].store(state.free().0, Ordering::Relaxed);
        self.give(slot, slots);
    }

    /// Returns the state of a slot.
    pub(crate) fn state(&self, slot: usize) -> State {
        // Relaxed: whoever acts on it presents it to `enter`, which compares it again.
        State(self.states[slot].load(Ordering::Relaxed))
    }

    /// Returns the pfn of slot 0. The caller has a slot of the segment, so the memory stays.
    #[inline]
    pub(crate) fn pfn(&self) -> Pfn {
        // Relaxed: who has a slot acquired its bits, which `fill` released behind this word.
        Pfn::new(self.pfn.load(Ordering::Relaxed))
    }

    /// Returns the pfn of slot 0, if there is memory now.
    pub(crate) fn start(&self) -> Option<Pfn> {
        // Relaxed: the number is only compared. Who acts on it reads bits or states.
        match self.pfn.load(Ordering::Relaxed) {
            NOTHING | CHANGING => None,
            pfn => Some(Pfn::new(pfn)),
        }
    }

    /// Returns how many slots are free.
    pub(crate) fn free(&self) -> usize {
        self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_zeros() as usize).sum()
    }

    /// Claims a place without memory, to add some.
    pub(crate) fn reserve(&self) -> bool {
        // Acquire: all slots were taken before the last memory left, and so before `fill`.
        self.pfn.compare_exchange(NOTHING, CHANGING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Adds memory to a place that was reserved.
    pub(crate) fn fill(&self, pfn: Pfn) {
        // Relaxed: the bits are released behind it, and who takes slots acquires those.
        self.pfn.store(pfn.raw(), Ordering::Relaxed);
        // Release: who takes a slot sees the memory.
        self.taken.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Removes the memory if no slot is taken. Returns its first pfn.
    pub(crate) fn empty(&self) -> Option<Pfn> {
        self.start()?;
        self.take_both(Segment::SLOTS)?;
        let pfn = self.pfn();
        // Release: see `reserve`.
        self.pfn.store(NOTHING, Ordering::Release);
        Some(pfn)
    }
}

impl Default for Segment {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn segment() -> Segment {
        let segment = Segment::new();
        assert!(segment.reserve());
        segment.fill(Pfn::new(64));
        segment
    }

    #[test]
    fn a_run_longer_than_a_word_takes_both_or_none() {
        let segment = segment();
        assert_eq!(segment.take(65, 1), Some(0));
        assert_eq!(segment.take(65, 1), None);
        assert_eq!(segment.free(), 63);
        segment.give(0, 65);
        assert_eq!(segment.free(), Segment::SLOTS);
        let last = segment.take(1, 1).expect("free");
        assert_eq!(segment.take(64, 64), Some(64), "the other word");
        assert_eq!(segment.take(65, 1), None);
        segment.give(last, 1);
        assert_eq!(segment.take(65, 1), None, "the second word is taken");
        assert_eq!(segment.free(), 64, "and the first one was given up again");
    }

    #[test]
    fn a_place_without_memory_and_one_that_leaves_give_nothing() {
        let segment = Segment::new();
        assert_eq!((segment.take(1, 1), segment.start()), (None, None));
        let segment = self::segment();
        assert!(!segment.reserve(), "there is memory already");
        let slot = segment.take(3, 1).expect("free");
        assert_eq!(segment.empty(), None, "something is taken");
        segment.give(slot, 3);
        assert_eq!(segment.empty(), Some(Pfn::new(64)));
        assert_eq!((segment.take(1, 1), segment.empty()), (None, None));
    }

    #[test]
    fn a_state_says_what_it_was_made_of() {
        for purpose in
            [Purpose::ToDevice, Purpose::FromDevice, Purpose::Bidirectional, Purpose::Coherent]
        {
            for (head_bytes, len_bytes) in [(0, 1), (4095, Segment::BYTES), (7, 100)] {
                let what = SlotUse { purpose, head_bytes, len_bytes };
                let state = State::taken(5 * State::COUNT, what);
                assert_eq!(state.what(), Some(what));
                assert_eq!(state.free().what(), None);
                assert!(!state.same_taking(State::taken(state.0, what)), "taken once more");
            }
        }
    }
}

#[cfg(all(test, loom))]
mod tests;
