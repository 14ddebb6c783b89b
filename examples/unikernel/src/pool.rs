//! Free frames.
#![expect(unsafe_code, reason = "joins frames that it owns")]

use alloc::vec::Vec;

use hypercall::{Frame, FrameSource, Frames, Pfn};

/// Free frames: a bit for each pfn, on the heap.
pub(crate) struct Pool {
    free: Vec<u64>,
    len: usize,
    /// No frame below this word is free.
    lowest: usize,
}

impl Pool {
    /// No frames.
    pub(crate) const fn empty() -> Self {
        Self { free: Vec::new(), len: 0, lowest: 0 }
    }

    /// Room for frames below `pages`, none of them free.
    pub(crate) fn of_pages(pages: u64) -> Self {
        let mut pool = Self::empty();
        pool.reach(pages);
        pool
    }

    /// Makes room for frames below `pages`; the new ones are not free.
    pub(crate) fn reach(&mut self, pages: u64) {
        let words = usize::try_from(pages.div_ceil(u64::from(u64::BITS))).unwrap_or(0);
        self.free.resize(self.free.len().max(words), 0);
    }

    /// Takes back a run of frames.
    pub(crate) fn give_run(&mut self, mut frames: Frames) {
        while let Some(frame) = frames.take() {
            self.give(frame);
        }
    }

    /// A run of `count` free frames that follow one another, the lowest there is.
    pub(crate) fn take_run(&mut self, count: u64) -> Option<Frames> {
        let (mut start, mut found) = (0, 0);
        for pfn in self.lowest as u64 * 64..self.free.len() as u64 * 64 {
            if !self.is_free(Pfn::new(pfn)) {
                found = 0;
                continue;
            }
            if found == 0 {
                start = pfn;
            }
            found += 1;
            if found == count {
                (start..=pfn).for_each(|pfn| self.mark_used(Pfn::new(pfn)));
                // SAFETY: the frames have just left the pool (I-1).
                return Some(unsafe { Frames::claim(Pfn::new(start), count) });
            }
        }
        None
    }

    /// How many are free.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn place(pfn: Pfn) -> (usize, u64) {
        (usize::try_from(pfn.raw() / 64).unwrap_or(usize::MAX), 1 << (pfn.raw() % 64))
    }

    /// Whether a frame is free.
    pub(crate) fn is_free(&self, pfn: Pfn) -> bool {
        let (word, bit) = Self::place(pfn);
        self.free.get(word).is_some_and(|free| free & bit != 0)
    }

    fn mark_used(&mut self, pfn: Pfn) {
        let (word, bit) = Self::place(pfn);
        self.free[word] &= !bit;
        self.len -= 1;
    }
}

impl FrameSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        let word = self.lowest + self.free[self.lowest..].iter().position(|free| *free != 0)?;
        self.lowest = word;
        let pfn = Pfn::new(word as u64 * 64 + u64::from(self.free[word].trailing_zeros()));
        self.mark_used(pfn);
        // SAFETY: the frame has just left the pool (I-1).
        Some(unsafe { Frame::claim(pfn) })
    }

    /// # Panics
    /// If the frame is free already, or none that the pool has a place for.
    fn give(&mut self, frame: Frame) {
        let (word, bit) = Self::place(frame.pfn());
        assert!(!self.is_free(frame.pfn()), "pfn {} is freed twice", frame.pfn());
        self.free[word] |= bit;
        self.len += 1;
        self.lowest = self.lowest.min(word);
    }
}
