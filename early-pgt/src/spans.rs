//! Arithmetic on runs of pfns: what they share, and how many tables of a level they touch.

use hypercall::Pfn;
use p2m::Pfns;

use crate::memory::Region;

/// log2 of the pfns that an L1 table maps.
pub(crate) const CHUNK_SHIFT: u32 = 9;
/// Pfns that an L1 table maps.
pub(crate) const CHUNK_PFNS: u64 = 1 << CHUNK_SHIFT;
/// log2 of the pfns below an L2 table.
pub(crate) const L2_SHIFT: u32 = 18;
/// log2 of the pfns below an L3 table.
pub(crate) const L3_SHIFT: u32 = 27;

/// The pfns in both runs, if there are any.
pub(crate) fn overlap(one: Pfns, other: Pfns) -> Option<Pfns> {
    let start = one.start.max(other.start).raw();
    let end = one.end().min(other.end());
    (start < end).then(|| Pfns::new(Pfn::new(start), end - start))
}

/// How many blocks of 2^`shift` pfns the parts of `regions` below `end` touch.
pub(crate) fn touched(regions: &[Region], shift: u32, end: u64) -> u64 {
    let mut blocks = 0;
    let mut counted_below = 0;
    for region in regions {
        let (start, end) = (region.pfns.start.raw(), region.pfns.end().min(end));
        if start >= end {
            break;
        }
        let first = (start >> shift).max(counted_below);
        let behind = ((end - 1) >> shift) + 1;
        blocks += behind.saturating_sub(first);
        counted_below = counted_below.max(behind);
    }
    blocks
}
