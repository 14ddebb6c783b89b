//! What a pool counts, area by area, so that vCPUs do not meet at a counter.

use core::ops::Add;

use crate::direct::Records;
use crate::sync::{AtomicU64, Ordering};

/// A part of a pool that one vCPU, or a few, search first: its counters, in a cache line or two of
/// their own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Area {
    /// Which of the area's segments last had free slots, counted from 0. Whatever it says, a search
    /// looks at each of them once.
    pub(crate) hint: AtomicU64,
    used: AtomicU64,
    high: AtomicU64,
    taken: AtomicU64,
    given: AtomicU64,
    bytes_to: AtomicU64,
    bytes_from: AtomicU64,
    direct_maps: AtomicU64,
    direct_unmaps: AtomicU64,
    failures: [AtomicU64; 4],
    /// Buffers that devices have as they are, if they end by their address.
    pub(crate) direct: Records,
}

/// Why something was refused, as far as it is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure {
    TooLarge,
    OutOfReach,
    Full,
    Misuse,
}

impl Area {
    /// An area in which nothing happened.
    #[must_use]
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            hint: AtomicU64::new(0),
            used: zero(),
            high: zero(),
            taken: zero(),
            given: zero(),
            bytes_to: zero(),
            bytes_from: zero(),
            direct_maps: zero(),
            direct_unmaps: zero(),
            failures: core::array::from_fn(|_| zero()),
            direct: Records::new(),
        }
    }

    #[inline]
    pub(crate) fn took(&self, slots: u64) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let used = self.used.fetch_add(slots, Ordering::Relaxed) + slots;
        if used > self.high.load(Ordering::Relaxed) {
            self.high.fetch_max(used, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn gave(&self, slots: u64) {
        self.given.fetch_add(1, Ordering::Relaxed);
        self.used.fetch_sub(slots, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn copied_to_device(&self, bytes: usize) {
        self.bytes_to.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn copied_from_device(&self, bytes: usize) {
        self.bytes_from.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn mapped_directly(&self) {
        self.direct_maps.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn unmapped_directly(&self) {
        self.direct_unmaps.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = |failure: Failure| read(&self.failures[failure as usize]);
        Counters {
            taken: read(&self.taken),
            given: read(&self.given),
            direct_maps: read(&self.direct_maps),
            direct_unmaps: read(&self.direct_unmaps),
            bytes_to_device: read(&self.bytes_to),
            bytes_from_device: read(&self.bytes_from),
            slots_used: read(&self.used),
            slots_used_most: read(&self.high),
            too_large: failed(Failure::TooLarge),
            out_of_reach: failed(Failure::OutOfReach),
            full: failed(Failure::Full),
            misuse: failed(Failure::Misuse),
        }
    }
}

impl Default for Area {
    fn default() -> Self {
        Self::new()
    }
}

/// What happened in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Runs of slots taken: bounced mappings, and pieces of coherent memory.
    pub taken: u64,
    /// Runs given back.
    pub given: u64,
    /// Buffers mapped as they are.
    pub direct_maps: u64,
    /// Those of them that were unmapped.
    pub direct_unmaps: u64,
    /// Bytes copied into slots.
    pub bytes_to_device: u64,
    /// Bytes copied out of slots.
    pub bytes_from_device: u64,
    /// Slots taken now.
    pub slots_used: u64,
    /// The most slots that were taken at once, area by area, summed: no more than this were taken
    /// at once in the pool.
    pub slots_used_most: u64,
    /// Requests longer than a pool gives.
    pub too_large: u64,
    /// Requests for a device that reaches no segment, or for which none lies together.
    pub out_of_reach: u64,
    /// Requests that found the pool full.
    pub full: u64,
    /// Runs given back twice, with another size, to another pool, and the like.
    pub misuse: u64,
}

impl Counters {
    /// Buffers that are mapped as they are now.
    #[must_use]
    pub const fn direct_now(&self) -> u64 {
        self.direct_maps.saturating_sub(self.direct_unmaps)
    }
}

impl Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            taken: self.taken + other.taken,
            given: self.given + other.given,
            direct_maps: self.direct_maps + other.direct_maps,
            direct_unmaps: self.direct_unmaps + other.direct_unmaps,
            bytes_to_device: self.bytes_to_device + other.bytes_to_device,
            bytes_from_device: self.bytes_from_device + other.bytes_from_device,
            slots_used: self.slots_used + other.slots_used,
            slots_used_most: self.slots_used_most + other.slots_used_most,
            too_large: self.too_large + other.too_large,
            out_of_reach: self.out_of_reach + other.out_of_reach,
            full: self.full + other.full,
            misuse: self.misuse + other.misuse,
        }
    }
}
