//! A set of pfns, one bit each, in the caller's memory.

use hypercall::Pfn;

/// Pfns in a word of the set.
const WORD: u64 = u64::BITS as u64;

/// Pfns in a large block, which one extent of the largest order that Xen gives a domU can fill.
pub(crate) const LARGE: u64 = LARGE_FRAMES as u64;
/// The same, as a count of things in memory.
pub(crate) const LARGE_FRAMES: usize = 1 << LARGE_ORDER;
/// log2 of [`LARGE`].
pub(crate) const LARGE_ORDER: u32 = 9;
const BLOCK_WORDS: usize = 8;

const _: () = assert!(BLOCK_WORDS as u64 * WORD == LARGE);

/// A set of pfns from `0..64 * words`.
#[derive(Debug)]
pub(crate) struct PfnSet<'s> {
    words: &'s mut [u64],
    count: u64,
    /// No member is in a word below this one.
    low_word: usize,
    /// No whole block of members begins below this pfn.
    low_block: u64,
}

/// Returns the place of a pfn's bit.
fn place(pfn: Pfn) -> (usize, u64) {
    // A number that no address space can hold is past the end of every set.
    (usize::try_from(pfn.raw() / WORD).unwrap_or(usize::MAX), 1 << (pfn.raw() % WORD))
}

impl<'s> PfnSet<'s> {
    /// Returns how many words a set of the pfns below `end` takes.
    pub(crate) const fn words_needed(end: u64) -> u64 {
        end.div_ceil(WORD)
    }

    /// Creates an empty set.
    pub(crate) fn empty(words: &'s mut [u64]) -> Self {
        words.fill(0);
        Self { low_word: words.len(), words, count: 0, low_block: u64::MAX }
    }

    /// Returns the number of members.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the first pfn that the set has no room for.
    pub(crate) const fn end(&self) -> u64 {
        self.words.len() as u64 * WORD
    }

    /// Returns whether the pfn is a member.
    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        let (word, bit) = place(pfn);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// Adds a pfn. Returns false if it was a member already, or has no bit.
    pub(crate) fn insert(&mut self, pfn: Pfn) -> bool {
        let (word, bit) = place(pfn);
        let Some(bits) = self.words.get_mut(word) else { return false };
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.count += u64::from(is_new);
        self.low_word = self.low_word.min(word);
        // It may complete its block.
        self.low_block = self.low_block.min(pfn.raw());
        is_new
    }

    /// Removes a pfn. Returns false if it was not a member.
    pub(crate) fn remove(&mut self, pfn: Pfn) -> bool {
        let (word, bit) = place(pfn);
        let Some(bits) = self.words.get_mut(word) else { return false };
        let was_there = *bits & bit != 0;
        *bits &= !bit;
        self.count -= u64::from(was_there);
        was_there
    }

    /// Returns the members from `start` on, in order.
    pub(crate) fn iter_from(&self, start: Pfn) -> impl Iterator<Item = Pfn> + '_ {
        let (first, bit) = place(start);
        let words = self.words.iter().enumerate().skip(first.max(self.low_word));
        words.flat_map(move |(word, bits)| {
            let below = if word == first { bit - 1 } else { 0 };
            Ones(bits & !below).map(move |at| Pfn::new(word as u64 * WORD + at))
        })
    }

    /// Returns the lowest members, in order.
    pub(crate) fn lowest(&mut self) -> impl Iterator<Item = Pfn> + '_ {
        let empty = self.words[self.low_word..].iter().take_while(|bits| **bits == 0).count();
        self.low_word += empty;
        self.iter_from(Pfn::new(0))
    }

    /// Returns the lowest aligned block of [`LARGE`] members from `start` on.
    pub(crate) fn next_block(&self, start: u64) -> Option<Pfn> {
        let first = usize::try_from(start.max(self.low_block) / LARGE).ok()?;
        let (blocks, _) = self.words.as_chunks::<BLOCK_WORDS>();
        let is_full = |block: &[u64; BLOCK_WORDS]| block.iter().all(|bits| *bits == u64::MAX);
        let at = first + blocks.get(first..)?.iter().position(is_full)?;
        Some(Pfn::new(at as u64 * LARGE))
    }

    /// Notes that no whole block begins below `pfn`.
    pub(crate) const fn no_block_below(&mut self, pfn: u64) {
        self.low_block = pfn;
    }
}

/// The numbers of the set bits, lowest first.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let lowest = (self.0 != 0).then(|| u64::from(self.0.trailing_zeros()))?;
        self.0 &= self.0 - 1;
        Some(lowest)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn it_holds_what_a_set_holds() {
        arbtest::arbtest(|random| {
            let mut words = [0; 40];
            let mut set = PfnSet::empty(&mut words);
            let mut reference = BTreeSet::new();
            for _ in 0..200 {
                let pfn: u64 = random.int_in_range(0..=set.end() + 3)?;
                let fits = pfn < set.end();
                if random.arbitrary()? {
                    assert_eq!(set.insert(Pfn::new(pfn)), fits && reference.insert(pfn));
                } else {
                    assert_eq!(set.remove(Pfn::new(pfn)), reference.remove(&pfn));
                }
                assert_eq!(set.contains(Pfn::new(pfn)), reference.contains(&pfn));
                assert_eq!(set.count(), reference.len() as u64);
                let lowest: Vec<u64> = set.lowest().take(9).map(Pfn::raw).collect();
                assert!(lowest.iter().eq(reference.iter().take(9)), "{lowest:?}");
                let from: Vec<u64> = set.iter_from(Pfn::new(pfn)).map(Pfn::raw).collect();
                assert!(from.iter().eq(reference.range(pfn..)), "{from:?}");
            }
            Ok(())
        });
    }

    #[test]
    fn a_block_is_found_when_its_last_pfn_comes() {
        let mut words = [0; 32];
        let mut set = PfnSet::empty(&mut words);
        for pfn in (512..1024).rev().chain(1100..2048) {
            assert_eq!(set.next_block(0), (pfn >= 1024).then_some(Pfn::new(512)));
            assert!(set.insert(Pfn::new(pfn)));
        }
        assert_eq!(set.next_block(0), Some(Pfn::new(512)));
        assert_eq!(set.next_block(1024), Some(Pfn::new(1536)));
        set.no_block_below(1536);
        assert!(set.remove(Pfn::new(1537)));
        assert_eq!(set.next_block(0), None);
        set.no_block_below(u64::MAX);
        assert_eq!(set.next_block(0), None);
        assert!(set.insert(Pfn::new(1537)));
        assert_eq!(set.next_block(0), Some(Pfn::new(1536)));
    }
}
