//! `mark_rw_past_pgt`, for a port whose page-table code has Linux's shape.
//!
//! Code that does not know about Xen makes the direct mapping there, entry by entry, and maps the
//! very buffer that its tables come from. Any frame of `[start, top)` may become a table, so all
//! are mapped read-only ([`mask_rw`](crate::mask_rw)). When the round is over, `[end, top)` must
//! become writable again, but nobody says when that is. One sign can be seen: at the end of a
//! round, the boot allocator *reserves* the buffer's tables. By then the marks may have moved on to
//! the next round (memory above 4 GiB), so this type keeps the old ones.
//!
//! Reviewers disliked its weakness: frames of `[end, top)` stay read-only until the next entry is
//! made, so the last round needs a call from outside, and whoever gets such a frame earlier
//! faults. [`TableBuffer`](crate::TableBuffer) has no such weakness.

use hypercall::Pfn;
use p2m::Pfns;

use crate::buffer::Marks;

/// The marks of a round that may not be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PastPgt {
    round: Option<Marks>,
    /// Where the run begins that was last made writable.
    set_rw: Option<Pfn>,
}

impl PastPgt {
    /// Creates a record of no round.
    ///
    /// ```
    /// use early_pgt::{Marks, PastPgt};
    /// use hypercall::Pfn;
    ///
    /// // Frames 0x10 to 0x20 were given to a round as a buffer, of which it used four.
    /// let [start, end, top] = [0x10, 0x14, 0x20].map(Pfn::new);
    /// let mut past = PastPgt::new();
    /// let marks = Marks { start, end, top };
    /// assert_eq!(past.entry(Pfn::new(0x200), marks, |_| false), None); // the round goes on
    /// // Then the allocator reserves the tables, and the round is over.
    /// let unused = past.allocator_is_up(marks, |pfn| pfn == start);
    /// // These must become writable again before anybody is handed one.
    /// assert_eq!(unused.map(|pfns| (pfns.start, pfns.count)), Some((end, 12)));
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self { round: None, set_rw: None }
    }

    /// Compares the marks `now` with the saved ones, before an early entry for `pfn` is made. If a
    /// round turns out to be over, returns the frames to make writable with
    /// [`set_access`](crate::set_access). `is_reserved` says whether the boot allocator has
    /// reserved a frame.
    ///
    /// * An entry for pfn 0 does not count: it clears an entry of the early fixmap.
    /// * The first marks with a table are saved.
    /// * While the saved `start` is not reserved, the round goes on. `end` and `top` are saved
    ///   again as long as they are of the same buffer.
    /// * Once it is reserved, the round is over. `[end, top)` of the *saved* marks is returned,
    ///   once for each `end`, and the present marks become the next round's.
    #[must_use]
    pub fn entry(
        &mut self,
        pfn: Pfn,
        now: Marks,
        is_reserved: impl FnOnce(Pfn) -> bool,
    ) -> Option<Pfns> {
        if pfn.raw() == 0 { None } else { self.look(now, is_reserved) }
    }

    /// Does what [`entry`](Self::entry) does once the boot allocator has handed over, when no entry
    /// will show that the last round is over.
    #[must_use]
    pub fn allocator_is_up(
        &mut self,
        now: Marks,
        is_reserved: impl FnOnce(Pfn) -> bool,
    ) -> Option<Pfns> {
        self.look(now, is_reserved)
    }

    fn look(&mut self, now: Marks, is_reserved: impl FnOnce(Pfn) -> bool) -> Option<Pfns> {
        if now.end <= now.start {
            return None;
        }
        let Some(saved) = self.round else {
            self.round = Some(now);
            return None;
        };
        if !is_reserved(saved.start) {
            if now.start == saved.start {
                self.round = Some(now);
            }
            return None;
        }
        self.round = Some(now);
        if self.set_rw == Some(saved.end) {
            return None;
        }
        self.set_rw = Some(saved.end);
        Some(saved.unused()).filter(|unused| unused.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn marks(start: u64, end: u64, top: u64) -> Marks {
        Marks { start: Pfn::new(start), end: Pfn::new(end), top: Pfn::new(top) }
    }

    const PAGE: Pfn = Pfn::new(0x1234);

    #[test]
    fn entries_for_pfn_0_and_empty_buffers_say_nothing() {
        let mut past = PastPgt::new();
        assert_eq!(past.entry(Pfn::new(0), marks(8, 9, 16), |_| true), None);
        assert_eq!(past.entry(PAGE, marks(8, 8, 16), |_| true), None);
        assert_eq!(past, PastPgt::new());
    }

    #[test]
    fn the_old_rounds_marks_count_not_those_of_the_next() {
        let mut past = PastPgt::new();
        assert_eq!(past.entry(PAGE, marks(0x100, 0x101, 0x120), |_| false), None);
        // The round goes on.
        assert_eq!(past.entry(PAGE, marks(0x100, 0x118, 0x120), |_| false), None);
        // It is over, and the marks are the next one's already.
        let next = marks(0x10_0000, 0x10_0001, 0x10_0020);
        let repaired = past.entry(PAGE, next, |start| start == Pfn::new(0x100));
        assert_eq!(repaired, Some(Pfns::new(Pfn::new(0x118), 8)));
        // The next one is not over.
        assert_eq!(past.entry(PAGE, next, |start| start == Pfn::new(0x100)), None);
        // A last round shows only to whoever asks once more.
        let end = marks(0x10_0000, 0x10_0010, 0x10_0020);
        assert_eq!(past.entry(PAGE, end, |_| false), None);
        let last = past.allocator_is_up(end, |_| true);
        assert_eq!(last, Some(Pfns::new(Pfn::new(0x10_0010), 0x10)));
        assert_eq!(past.allocator_is_up(end, |_| true), None, "once is enough");
    }

    #[test]
    fn a_buffer_used_up_needs_no_repair() {
        let mut past = PastPgt::new();
        let full = marks(8, 16, 16);
        assert_eq!(past.entry(PAGE, full, |_| false), None);
        assert_eq!(past.entry(PAGE, full, |_| true), None);
    }
}
