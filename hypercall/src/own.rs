//! Ownership of frames, as tokens that move.
//!
//! Whoever changes a page table can pull the memory out from under any Rust reference in the
//! program. Safe code stays safe because every frame has one owner. Unsafe code claims the free
//! frames once, at boot. From then on the tokens are split, moved and joined, never copied.

use core::fmt;

use crate::frame::Pfn;

/// One frame that nobody else uses.
///
/// # Invariants
/// I-1: no other token, no allocator and no Rust object has this frame.
#[must_use = "a frame that is dropped is lost to the guest"]
#[derive(PartialEq, Eq)]
pub struct Frame(Pfn);

impl Frame {
    /// Makes the token.
    ///
    /// # Safety
    /// Nobody else uses the frame, and no other token for it exists (I-1).
    ///
    /// ```
    /// use hypercall::{Frame, Pfn};
    ///
    /// // Nobody else has this page.
    /// let frame = unsafe { Frame::claim(Pfn::new(0x123)) };
    /// assert_eq!(frame.pfn(), Pfn::new(0x123));
    /// ```
    #[expect(unsafe_code, reason = "the root of ownership: see I-1")]
    pub const unsafe fn claim(pfn: Pfn) -> Self {
        Self(pfn)
    }

    /// Returns the frame's number.
    #[must_use]
    pub const fn pfn(&self) -> Pfn {
        self.0
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.0)
    }
}

/// A run of frames that nobody else uses.
///
/// # Invariants
/// I-1 for each frame in `start..start + count`; the sum does not overflow.
#[must_use = "frames that are dropped are lost to the guest"]
#[derive(PartialEq, Eq)]
pub struct Frames {
    start: Pfn,
    count: u64,
}

impl Frames {
    /// Makes the token for `count` frames from `start`.
    ///
    /// # Panics
    /// If the run would pass the end of the number space.
    ///
    /// # Safety
    /// Nobody else uses any of the frames, and no other token for one of them exists (I-1).
    ///
    /// ```
    /// use hypercall::{Frames, Pfn};
    ///
    /// // Nobody else has these pages.
    /// let mut frames = unsafe { Frames::claim(Pfn::new(0x100), 16) };
    /// let one = frames.take().expect("there are 16");
    /// assert_eq!((one.pfn(), frames.count()), (Pfn::new(0x100), 15));
    /// ```
    #[expect(unsafe_code, reason = "the root of ownership: see I-1")]
    pub const unsafe fn claim(start: Pfn, count: u64) -> Self {
        assert!(start.checked_add(count).is_some(), "the run passes the end of the number space");
        Self { start, count }
    }

    /// Returns the first frame of the run.
    #[must_use]
    pub const fn start(&self) -> Pfn {
        self.start
    }

    /// Returns the number of frames in the run.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Takes the first frame off the run.
    pub const fn take(&mut self) -> Option<Frame> {
        if self.count == 0 {
            return None;
        }
        let first = self.start;
        self.start = Pfn::new(first.raw() + 1);
        self.count -= 1;
        // INVARIANT: the frame has just left the run.
        Some(Frame(first))
    }

    /// Splits the first `count` frames off, or gives the whole run back if it is shorter.
    ///
    /// # Errors
    /// The run itself.
    ///
    /// ```
    /// # use hypercall::{Frames, Pfn};
    /// let frames = unsafe { Frames::claim(Pfn::new(0x100), 16) };
    /// let (head, rest) = frames.split(4).expect("there are 16");
    /// assert_eq!((head.count(), rest.start()), (4, Pfn::new(0x104)));
    /// ```
    pub fn split(self, count: u64) -> Result<(Self, Self), Self> {
        if count > self.count {
            return Err(self);
        }
        let rest = Pfn::new(self.start.raw() + count);
        // INVARIANT: two disjoint parts of a run that is consumed.
        Ok((Self { start: self.start, count }, Self { start: rest, count: self.count - count }))
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames {}+{:#x}", self.start, self.count)
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "the frames of these tests exist only as numbers")]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_used_up_frame_by_frame() {
        // SAFETY: no frame stands behind the number.
        let mut run = unsafe { Frames::claim(Pfn::new(8), 2) };
        assert_eq!(run.take().map(|frame| frame.pfn()), Some(Pfn::new(8)));
        assert_eq!(run.take().map(|frame| frame.pfn()), Some(Pfn::new(9)));
        assert_eq!(run.take(), None);
    }

    #[test]
    fn a_run_splits_into_two_that_do_not_overlap() {
        // SAFETY: no frame stands behind the number.
        let run = unsafe { Frames::claim(Pfn::new(8), 5) };
        let (head, tail) = run.split(2).expect("long enough");
        assert_eq!((head.start().raw(), head.count()), (8, 2));
        assert_eq!((tail.start().raw(), tail.count()), (10, 3));
        let (all, none) = tail.split(3).expect("exactly as long");
        assert_eq!((all.count(), none.count()), (3, 0));
        assert_eq!(format!("{all:?}"), "frames 0000a+0x3");
        assert_eq!(all.split(4).map_err(|run| run.count()), Err(3));
    }
}
