//! The list: words in virtual memory, of which a prefix exists.
//!
//! A reader loads the length and then a word below it. The writer maps memory for more words, fills
//! them, and then raises the length. That store releases what the reader's load acquires. The
//! length never falls, so a word once readable stays so.
#![expect(unsafe_code, reason = "the list may reach over memory that is not there yet")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::entry::{ABSENT, NOT_RAM};
use crate::sync::{AtomicU64, Ordering};

/// # Invariants
/// I-8: the words from `words` up to `len` are mapped, readable and aligned for `'a`, and `len <=
/// capacity`.
#[derive(Debug)]
pub(crate) struct List<'a> {
    words: NonNull<AtomicU64>,
    len: AtomicU64,
    capacity: u64,
    /// Words from here up are not RAM. Comparing with a 64-bit number in memory costs an
    /// instruction less.
    not_ram: u64,
    memory: PhantomData<&'a [AtomicU64]>,
}

// SAFETY: the words are atomic, and the rest is only read or atomic.
unsafe impl Send for List<'_> {}
// SAFETY: as above.
unsafe impl Sync for List<'_> {}

impl<'a> List<'a> {
    /// Returns a list of the words of a slice, which cannot grow.
    pub(crate) fn of(words: &'a [AtomicU64]) -> Self {
        let len = words.len() as u64;
        // INVARIANT: I-8: a slice is all there.
        Self {
            words: NonNull::from(words).cast(),
            len: AtomicU64::new(len),
            capacity: len,
            not_ram: NOT_RAM,
            memory: PhantomData,
        }
    }

    /// Returns a list of `len` words now and up to `capacity` later.
    ///
    /// # Safety
    /// I-8 holds for `len`, and the caller preserves it when it raises the length.
    pub(crate) unsafe fn growing(words: NonNull<AtomicU64>, len: u64, capacity: u64) -> Self {
        let len = AtomicU64::new(len);
        Self { words, len, capacity, not_ram: NOT_RAM, memory: PhantomData }
    }

    /// Returns the number of words.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Returns the most words there can be.
    pub(crate) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the address of the first word.
    pub(crate) fn addr(&self) -> usize {
        self.words.addr().get()
    }

    /// Returns whether a word is RAM.
    #[inline]
    pub(crate) const fn is_ram(&self, word: u64) -> bool {
        word < self.not_ram
    }

    /// Returns the words from `first` on, at most `max`.
    pub(crate) fn words(&self, first: u64, max: u64) -> &'a [AtomicU64] {
        let count = self.len().saturating_sub(first).min(max);
        let (Ok(first), Ok(count)) = (usize::try_from(first), usize::try_from(count)) else {
            return &[];
        };
        if count == 0 {
            return &[];
        }
        // SAFETY: I-8: the words from `first` on are in the list.
        let start = unsafe { self.words.add(first) };
        // SAFETY: I-8: so are the others, and they stay mapped.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), count) }
    }

    /// Raises the length. A smaller one changes nothing.
    ///
    /// # Safety
    /// The words below `len` are mapped and filled (I-8).
    pub(crate) unsafe fn raise(&self, len: u64) {
        debug_assert!(len <= self.capacity, "the list has room for {} words", self.capacity);
        self.len.fetch_max(len, Ordering::Release);
    }

    /// Returns the word of `index`, if there is one.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> Option<&'a AtomicU64> {
        if index >= self.len() {
            return None;
        }
        // SAFETY: I-8: the index is below the length, which the load above acquired.
        Some(unsafe { self.word(index) })
    }

    /// Makes the words between the length and the next multiple of `page_words` absent.
    ///
    /// # Safety
    /// They are mapped, within the capacity, and nobody else's.
    pub(crate) unsafe fn clear_tail(&self, page_words: u64) {
        for index in self.len()..self.len().next_multiple_of(page_words) {
            // Nobody reads behind the length, and who raises it releases the words there.
            // SAFETY: by the caller's word.
            unsafe { self.word(index) }.store(ABSENT, Ordering::Relaxed);
        }
    }

    /// Returns the word of `index`.
    ///
    /// # Safety
    /// It is mapped.
    #[inline]
    unsafe fn word(&self, index: u64) -> &'a AtomicU64 {
        #[expect(clippy::cast_possible_truncation, reason = "usize is 64 bits wide here")]
        let index = index as usize;
        // SAFETY: the word is part of the list, by the caller's word.
        let word = unsafe { self.words.add(index) };
        // SAFETY: as above; it is aligned as the first one is (I-8), and atomic.
        unsafe { word.as_ref() }
    }
}

const _: () = assert!(usize::BITS == 64, "a frame map of a 64-bit guest");

#[cfg(all(test, loom))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entry::SHARED_ABSENT;

    /// Memory that holds something no reader may see, but for the words of the list.
    fn memory() -> Arc<Vec<AtomicU64>> {
        Arc::new(
            (0..4)
                .map(|index| AtomicU64::new(if index < 2 { 16 + index } else { 0xbad }))
                .collect(),
        )
    }

    /// Returns a list of two words that can grow to four.
    fn list(memory: &[AtomicU64]) -> List<'_> {
        // SAFETY: two words are there and hold what they should; the tests keep to it.
        unsafe { List::growing(NonNull::from(memory).cast(), 2, 4) }
    }

    #[test]
    fn a_reader_never_sees_a_word_before_what_growth_put_there() {
        loom::model(|| {
            let memory = memory();
            let words: &'static [AtomicU64] =
                // SAFETY: the memory lives until both threads are joined.
                unsafe { core::slice::from_raw_parts(memory.as_ptr(), memory.len()) };
            let list = Arc::new(list(words));
            let reader = loom::thread::spawn({
                let list = Arc::clone(&list);
                move || {
                    let mut longest = 0;
                    for _ in 0..2 {
                        let len = list.len();
                        assert!(len >= longest, "the length went back");
                        longest = len;
                        let word = list.get(2).map(|word| word.load(Ordering::Relaxed));
                        assert!(matches!(word, None | Some(SHARED_ABSENT | 7)), "{word:x?}");
                        assert!(word.is_some() || list.get(3).is_none() || list.len() > 2);
                    }
                }
            });
            // What growth does: the words, then the length; then a change of an entry.
            words[2].store(SHARED_ABSENT, Ordering::Relaxed);
            words[3].store(SHARED_ABSENT, Ordering::Relaxed);
            // SAFETY: the words hold what they should.
            unsafe { list.raise(4) };
            // SAFETY: as above; a smaller length changes nothing.
            unsafe { list.raise(3) };
            let changed =
                words[2].compare_exchange(SHARED_ABSENT, 7, Ordering::AcqRel, Ordering::Relaxed);
            assert_eq!(changed, Ok(SHARED_ABSENT));
            reader.join().expect("the reader's assertions hold");
            assert_eq!(list.len(), 4);
        });
    }

    #[test]
    fn of_two_writers_of_one_entry_one_loses() {
        loom::model(|| {
            let memory = memory();
            let words: &'static [AtomicU64] =
                // SAFETY: the memory lives until both threads are joined.
                unsafe { core::slice::from_raw_parts(memory.as_ptr(), memory.len()) };
            let map = Arc::new(crate::P2m { list: list(words) });
            let pfn = hypercall::Pfn::new(1);
            let other = loom::thread::spawn({
                let map = Arc::clone(&map);
                // SAFETY: no memory is behind these numbers.
                move || unsafe { map.depopulate(pfn) }.is_ok()
            });
            // SAFETY: as above.
            let one = unsafe { map.depopulate(pfn) }.is_ok();
            let other = other.join().expect("no panic");
            assert!(one != other, "the frame is given away once");
        });
    }
}
