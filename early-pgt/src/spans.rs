//! Arithmetic on runs of pfns: what they share, how many tables of a level they touch, and which
//! pages bytes are in.

use hypercall::{PAGE_SHIFT, PAGE_SIZE, Pfn};
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

/// Bytes in a page.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// Bytes in the builder's list for each pfn.
pub(crate) const LIST_WORD_BYTES: u64 = 8;

/// The pages that `len_bytes` bytes from `offset` on are in, counted from where offsets begin: all
/// of them, wherever in a page the bytes begin and end.
pub(crate) const fn pages_of(offset: u64, len_bytes: u64) -> Pfns {
    let first = offset >> PAGE_SHIFT;
    if len_bytes == 0 {
        return Pfns::new(Pfn::new(first), 0);
    }
    let last = offset.saturating_add(len_bytes - 1) >> PAGE_SHIFT;
    Pfns::new(Pfn::new(first), last - first + 1)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_every_page_that_one_of_them_is_in() {
        arbtest::arbtest(|random| {
            let offset: u64 = random.int_in_range(0..=0x3_0000)?;
            let len_bytes: u64 = random.int_in_range(0..=0x3_0000)?;
            let pages = pages_of(offset, len_bytes);
            let is_in = |page: u64| {
                let bytes = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                len_bytes > 0 && offset < bytes.end && bytes.start < offset + len_bytes
            };
            for page in 0..0x70 {
                let taken = pages.start.raw() <= page && page < pages.end();
                assert_eq!(taken, is_in(page), "{len_bytes:#x} bytes from {offset:#x}: {page:#x}");
            }
            Ok(())
        });
        assert_eq!(pages_of(u64::MAX - 1, u64::MAX), pages_of(u64::MAX, 1));
    }
}
