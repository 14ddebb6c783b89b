//! `shared_info`: the page where Xen raises events and tells the time, and where a guest tells the
//! toolstack about its frame map.
//!
//! The page belongs to Xen and is shared with the toolstack. Both read and write it at any time, so
//! Rust sees it only as atomic words.
#![expect(unsafe_code, reason = "toolstacks overwrite the pages that the words lead to (I-20)")]

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::version::unchanged;

/// The number of vCPUs that have a place in `shared_info` (`XEN_LEGACY_MAX_VCPUS`).
pub const SHARED_VCPUS: usize = 32;

/// `struct shared_info` of a 64-bit guest (public/xen.h).
#[derive(Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// A part for each of the first vCPUs.
    pub vcpus: [VcpuInfo; SHARED_VCPUS],
    /// A bit for each event channel with a pending event.
    pub pending: [AtomicU64; 64],
    /// A bit for each event channel that is masked.
    pub mask: [AtomicU64; 64],
    /// The time of day when Xen started.
    pub wall_clock: [AtomicU32; 4],
    /// What the toolstack reads.
    pub arch: ArchSharedInfo,
}

/// `struct vcpu_info`.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuInfo {
    /// Not 0: an event is pending.
    pub upcall_pending: AtomicU8,
    /// Not 0: Xen does not interrupt this vCPU for events.
    pub upcall_mask: AtomicU8,
    /// A bit for each word of [`SharedInfo::pending`] with a pending event.
    pub pending_words: AtomicU64,
    /// The address of the last page fault, and a word of padding.
    pub arch: [AtomicU64; 2],
    /// What is needed to read the clock.
    pub time: TimeInfo,
}

/// `struct vcpu_time_info`: what turns the time-stamp counter into nanoseconds.
#[derive(Debug)]
#[repr(C)]
pub struct TimeInfo {
    version: AtomicU32,
    padding: AtomicU32,
    tsc_timestamp: AtomicU64,
    system_time: AtomicU64,
    tsc_to_system_mul: AtomicU32,
    /// Bits to shift by, negative to the right; then flags and padding.
    shift_and_flags: AtomicU32,
}

/// `struct arch_shared_info` of a 64-bit guest (public/arch-x86/xen.h): the part of `shared_info`
/// from [`ArchSharedInfo::OFFSET_BYTES`] on.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct ArchSharedInfo(MapWords);

/// The words of [`ArchSharedInfo`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct MapWords {
    /// How many pfns of the frame map the toolstack may read.
    pub max_pfn: AtomicU64,
    /// mfn of the top of the three-level frame list (`pfn_to_mfn_frame_list_list`); 0 or all ones
    /// if there is none.
    pub frame_list_list: AtomicU64,
    /// For Xen.
    pub nmi_reason: AtomicU64,
    /// A root, as cr3, under which `p2m_vaddr` is mapped; 0 if the linear list is not to be used.
    pub p2m_cr3: AtomicU64,
    /// Address of the linear list.
    pub p2m_vaddr: AtomicU64,
    /// Odd while the *mapping* of the linear list changes.
    pub p2m_generation: AtomicU64,
}

impl TimeInfo {
    /// Returns the nanoseconds since Xen started, when this vCPU's time-stamp counter was
    /// `ticks()`.
    ///
    /// Returns `None` if Xen changes the numbers faster than they can be read, which no Xen does.
    pub fn nanoseconds(&self, ticks: impl Fn() -> u64) -> Option<u64> {
        (0..1000).find_map(|_| {
            // Relaxed: `unchanged` says whether they belong together.
            let read = || {
                let since = ticks().wrapping_sub(self.tsc_timestamp.load(Ordering::Relaxed));
                let start = self.system_time.load(Ordering::Relaxed);
                let scale = self.tsc_to_system_mul.load(Ordering::Relaxed);
                let [shift, ..] = self.shift_and_flags.load(Ordering::Relaxed).to_le_bytes();
                (since, start, scale, shift.cast_signed())
            };
            let (since, start, scale, shift) = unchanged(|order| self.version.load(order), read)?;
            Some(start.wrapping_add(scaled(since, shift, scale)))
        })
    }
}

/// Returns `ticks`, shifted, times a fraction of 2^32.
fn scaled(ticks: u64, shift: i8, scale: u32) -> u64 {
    let distance = u32::from(shift.unsigned_abs()).min(64);
    let ticks = u128::from(ticks);
    let shifted = if shift < 0 { ticks >> distance } else { ticks << distance.min(32) };
    #[expect(clippy::cast_possible_truncation, reason = "as Xen's own clock, which wraps")]
    let nanoseconds = (shifted.wrapping_mul(u128::from(scale)) >> 32) as u64;
    nanoseconds
}

impl ArchSharedInfo {
    /// Its offset in the `shared_info` page.
    pub const OFFSET_BYTES: usize = 3088;

    /// Returns the words, for loads and stores.
    ///
    /// # Safety
    /// Whatever the caller stores is true of the guest's frame map. A toolstack that restores the
    /// guest writes `max_pfn` words into the pages to which `frame_list_list`, and `p2m_vaddr`
    /// under `p2m_cr3`, lead (I-20). Loads need no promise. `p2m::Toolstack` stores only what its
    /// callers vouch for.
    #[must_use]
    pub const unsafe fn map_words(&self) -> &MapWords {
        &self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn clock(version: u32, shift: i8, scale: u32) -> TimeInfo {
        TimeInfo {
            version: AtomicU32::new(version),
            padding: AtomicU32::new(0),
            tsc_timestamp: AtomicU64::new(1000),
            system_time: AtomicU64::new(5_000_000),
            tsc_to_system_mul: AtomicU32::new(scale),
            shift_and_flags: AtomicU32::new(u32::from(shift.cast_unsigned()) | 0x100),
        }
    }

    #[test]
    fn the_clock_counts_on_from_where_xen_looked_at_it() {
        // 1 GHz: half of 2^32, times two.
        assert_eq!(clock(2, 1, 1 << 31).nanoseconds(|| 1500), Some(5_000_500));
        // 4 GHz: half of 2^32, of half of the ticks.
        assert_eq!(clock(2, -1, 1 << 31).nanoseconds(|| 5000), Some(5_001_000));
    }

    #[test]
    fn numbers_that_are_being_changed_are_not_taken() {
        assert_eq!(clock(3, 1, 1 << 31).nanoseconds(|| 1500), None);
    }

    #[test]
    fn no_numbers_make_the_clock_panic() {
        for shift in [i8::MIN, -1, 0, 1, i8::MAX] {
            assert!(clock(0, shift, u32::MAX).nanoseconds(|| 0).is_some());
        }
    }
}
