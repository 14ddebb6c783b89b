//! The counters of a pool. Each area has its own, so that vCPUs do not share a cache line.

use crate::direct::Records;
use crate::sync::{AtomicU64, Ordering};

/// A part of a pool that one vCPU, or a few, search first. Its counters have cache lines of their
/// own.
#[derive(Debug)]
#[repr(align(64))]
pub struct Area {
    /// The area's segment that last had free slots, counted from 0. A search looks at each segment
    /// once, whatever this says.
    pub(crate) hint: AtomicU64,
    counts: [AtomicU64; COUNTS],
    /// Buffers that devices have as they are and that end by their address.
    pub(crate) direct: Records,
}

/// What an area counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    SlotsUsed,
    SlotsUsedMost,
    Taken,
    Given,
    BytesToDevice,
    BytesFromDevice,
    DirectMaps,
    DirectUnmaps,
    TooLarge,
    OutOfReach,
    Full,
    Misuse,
}

const COUNTS: usize = Count::Misuse as usize + 1;

impl Area {
    /// Creates an area.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hint: AtomicU64::new(0),
            counts: core::array::from_fn(|_| AtomicU64::new(0)),
            direct: Records::new(),
        }
    }

    #[inline]
    const fn counter(&self, count: Count) -> &AtomicU64 {
        &self.counts[count as usize]
    }

    #[inline]
    pub(crate) fn add(&self, count: Count, more: usize) {
        self.counter(count).fetch_add(more as u64, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn add_one(&self, count: Count) {
        self.add(count, 1);
    }

    #[inline]
    pub(crate) fn took(&self, slots: u64) {
        self.add_one(Count::Taken);
        let used = self.counter(Count::SlotsUsed).fetch_add(slots, Ordering::Relaxed) + slots;
        let most = self.counter(Count::SlotsUsedMost);
        if used > most.load(Ordering::Relaxed) {
            most.fetch_max(used, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn gave(&self, slots: u64) {
        self.add_one(Count::Given);
        self.counter(Count::SlotsUsed).fetch_sub(slots, Ordering::Relaxed);
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
    /// The sum of the areas' highest numbers of slots taken at once: at least the pool's own
    /// highest number.
    pub slots_used_most: u64,
    /// Requests longer than a pool gives.
    pub too_large: u64,
    /// Requests for a device that reaches no contiguous segment.
    pub out_of_reach: u64,
    /// Requests that found the pool full.
    pub full: u64,
    /// Runs given back twice, with another size, to another pool, and the like.
    pub misuse: u64,
}

impl Counters {
    /// Returns the sums over some areas.
    pub(crate) fn of(areas: &[Area]) -> Self {
        let sum = |count| {
            areas.iter().map(|area| area.counter(count).load(Ordering::Relaxed)).sum::<u64>()
        };
        Self {
            taken: sum(Count::Taken),
            given: sum(Count::Given),
            direct_maps: sum(Count::DirectMaps),
            direct_unmaps: sum(Count::DirectUnmaps),
            bytes_to_device: sum(Count::BytesToDevice),
            bytes_from_device: sum(Count::BytesFromDevice),
            slots_used: sum(Count::SlotsUsed),
            slots_used_most: sum(Count::SlotsUsedMost),
            too_large: sum(Count::TooLarge),
            out_of_reach: sum(Count::OutOfReach),
            full: sum(Count::Full),
            misuse: sum(Count::Misuse),
        }
    }

    /// Returns the number of buffers mapped as they are now.
    #[must_use]
    pub const fn direct_now(&self) -> u64 {
        self.direct_maps.saturating_sub(self.direct_unmaps)
    }
}
