//! Arithmetic on runs of pfns.

use hypercall::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use p2m::Pfns;

/// log2 of the pfns that an L1 table maps.
pub(crate) const CHUNK_SHIFT: u32 = 9;
/// Pfns that an L1 table maps: a chunk.
pub(crate) const CHUNK_PFNS: u64 = 1 << CHUNK_SHIFT;
/// log2 of the pfns below an L2 table.
pub(crate) const L2_SHIFT: u32 = 18;
/// log2 of the pfns below an L3 table.
pub(crate) const L3_SHIFT: u32 = 27;

/// Bytes in a page.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;
/// Bytes in the builder's list for each pfn.
pub(crate) const LIST_WORD_BYTES: u64 = 8;

/// No pfns.
pub(crate) const NO_PFNS: Pfns = Pfns::new(Pfn::new(0), 0);

/// Returns the pfns from `start` up to the number `end`, which is not below it.
pub(crate) const fn run(start: u64, end: u64) -> Pfns {
    Pfns::new(Pfn::new(start), end - start)
}

/// Returns the pfns of L1 table `chunk`.
pub(crate) const fn chunk_pfns(chunk: u64) -> Pfns {
    Pfns::new(Pfn::new(chunk << CHUNK_SHIFT), CHUNK_PFNS)
}

/// Returns the pages of `len_bytes` bytes from `offset` on, counted from offset 0.
pub(crate) const fn pages_of(offset: u64, len_bytes: u64) -> Pfns {
    let first = offset >> PAGE_SHIFT;
    if len_bytes == 0 {
        return Pfns::new(Pfn::new(first), 0);
    }
    let last = offset.saturating_add(len_bytes - 1) >> PAGE_SHIFT;
    run(first, last + 1)
}

/// Returns the pfns in both runs, if there are any.
pub(crate) fn overlap(one: Pfns, other: Pfns) -> Option<Pfns> {
    let start = one.start.max(other.start).raw();
    let end = one.end().min(other.end());
    (start < end).then(|| run(start, end))
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
