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

/// How many blocks of 2^`shift` pfns the parts of `regions` inside `range` touch.
pub(crate) fn touched(regions: &[Region], shift: u32, range: Pfns) -> u64 {
    let mut blocks = 0;
    let mut counted_below = 0;
    for part in regions.iter().filter_map(|region| overlap(region.pfns, range)) {
        let first = (part.start.raw() >> shift).max(counted_below);
        let behind = ((part.end() - 1) >> shift) + 1;
        blocks += behind.saturating_sub(first);
        counted_below = counted_below.max(behind);
    }
    blocks
}

/// Whether block `number` of 2^`shift` pfns has a part of `regions` that is in one of `ranges`.
pub(crate) fn touches(
    regions: &[Region],
    ranges: impl Iterator<Item = Pfns>,
    (shift, number): (u32, u64),
) -> bool {
    let block = Pfns::new(Pfn::new(number << shift), 1 << shift);
    let mut inside = ranges.filter_map(|range| overlap(range, block));
    inside.any(|part| regions.iter().any(|region| overlap(region.pfns, part).is_some()))
}
