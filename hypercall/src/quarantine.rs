//! Frames whose state nobody knows any more who owns them.
//!
//! When Xen refuses a request and then its undo, a frame may still be mapped where it should not
//! be. Such a frame is kept from everyone. It is no longer a [`Frame`], so no allocator and no
//! table can take it. A [`Quarantine`] counts and lists it.

use core::fmt;

use crate::frame::Pfn;
use crate::own::{Frame, Frames};

/// A run of frames that may be in use somewhere: what a refused undo leaves.
///
/// # Invariants
/// I-16: no token, no allocator and no Rust object has one of these frames.
#[must_use = "put it in a quarantine, so that it is counted"]
#[derive(PartialEq, Eq)]
pub struct Uncertain {
    start: Pfn,
    count: u64,
}

impl Uncertain {
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

    /// Returns the number after the last frame.
    const fn end(&self) -> u64 {
        self.start.raw().saturating_add(self.count)
    }

    /// Turns the run into usable frames again.
    ///
    /// # Safety
    /// The caller has found out that at most the direct mapping maps any of the frames, that no TLB
    /// has them from anywhere else, and that Xen has no other use for them (I-1).
    ///
    /// ```
    /// use hypercall::{Frame, Pfn, Uncertain};
    ///
    /// let doubtful = Uncertain::from(unsafe { Frame::claim(Pfn::new(7)) });
    /// // The mapping that could not be taken away is gone after all, and nobody else uses it.
    /// let frames = unsafe { doubtful.vouch() };
    /// assert_eq!((frames.start(), frames.count()), (Pfn::new(7), 1));
    /// ```
    #[expect(unsafe_code, reason = "makes ownership out of the caller's knowledge: see I-1")]
    pub const unsafe fn vouch(self) -> Frames {
        // SAFETY: the caller vouches that nobody uses them; the run was one of tokens (I-16).
        unsafe { Frames::claim(self.start, self.count) }
    }

    /// Joins `other` to the run, if it is directly before or behind.
    fn join(&mut self, other: Self) -> Option<Self> {
        if other.count == 0 || self.end() == other.start.raw() {
            self.count += other.count;
        } else if other.end() == self.start.raw() {
            self.start = other.start;
            self.count += other.count;
        } else {
            return Some(other);
        }
        None
    }
}

impl From<Frame> for Uncertain {
    fn from(frame: Frame) -> Self {
        Self { start: frame.pfn(), count: 1 }
    }
}

impl From<Frames> for Uncertain {
    fn from(frames: Frames) -> Self {
        Self { start: frames.start(), count: frames.count() }
    }
}

impl fmt::Debug for Uncertain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uncertain {}+{:#x}", self.start, self.count)
    }
}

impl fmt::Display for Uncertain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "pfn {}", self.start),
            count => write!(f, "{count} pfns from {}", self.start),
        }
    }
}

/// Keeps uncertain frames, in the caller's memory. It counts all of them, lists those that find a
/// place, and never hands one out.
#[derive(Debug)]
pub struct Quarantine<'q> {
    places: &'q mut [Option<Uncertain>],
    pages: u64,
    unlisted: u64,
}

impl<'q> Quarantine<'q> {
    /// Makes an empty quarantine that lists as many runs as `places` has room for. Their present
    /// contents are dropped.
    ///
    /// ```
    /// use hypercall::{Frames, Pfn, Quarantine};
    ///
    /// let mut places = [const { None }; 8];
    /// let mut quarantine = Quarantine::new(&mut places);
    /// // Xen refused a change of these half-way, and then its undo.
    /// let doubtful = unsafe { Frames::claim(Pfn::new(0x100), 3) };
    /// quarantine.put(doubtful.into());
    /// assert_eq!(quarantine.pages(), 3);
    /// assert_eq!(quarantine.iter().map(|run| run.start()).collect::<Vec<_>>(), [Pfn::new(0x100)]);
    /// ```
    pub fn new(places: &'q mut [Option<Uncertain>]) -> Self {
        places.fill_with(|| None);
        Self { places, pages: 0, unlisted: 0 }
    }

    /// Takes frames in for good. Runs that touch share one place.
    pub fn put(&mut self, frames: Uncertain) {
        self.pages += frames.count;
        let mut left = Some(frames);
        for run in self.places.iter_mut().flatten() {
            left = left.and_then(|frames| run.join(frames));
        }
        let Some(frames) = left.filter(|frames| frames.count > 0) else { return };
        match self.places.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(frames),
            None => self.unlisted += frames.count,
        }
    }

    /// Returns how many frames are kept, including those that found no place in the list.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Returns how many of them found no place in the list.
    #[must_use]
    pub const fn unlisted(&self) -> u64 {
        self.unlisted
    }

    /// Returns the listed runs.
    pub fn iter(&self) -> impl Iterator<Item = &Uncertain> {
        self.places.iter().flatten()
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "the frames of these tests exist only as numbers")]
mod tests {
    use super::*;

    fn run(start: u64, count: u64) -> Uncertain {
        // SAFETY: no frame stands behind the numbers.
        unsafe { Frames::claim(Pfn::new(start), count) }.into()
    }

    fn listed(quarantine: &Quarantine<'_>) -> Vec<(u64, u64)> {
        quarantine.iter().map(|run| (run.start().raw(), run.count())).collect()
    }

    #[test]
    fn runs_side_by_side_take_one_place() {
        let mut places = [const { None }; 2];
        let mut quarantine = Quarantine::new(&mut places);
        quarantine.put(run(8, 2));
        quarantine.put(run(10, 1));
        quarantine.put(run(7, 1));
        quarantine.put(run(20, 1));
        assert_eq!(listed(&quarantine), [(7, 4), (20, 1)]);
        assert_eq!((quarantine.pages(), quarantine.unlisted()), (5, 0));
    }

    #[test]
    fn what_finds_no_place_is_counted() {
        let mut places = [const { None }; 1];
        let mut quarantine = Quarantine::new(&mut places);
        quarantine.put(run(8, 2));
        quarantine.put(run(20, 3));
        assert_eq!(listed(&quarantine), [(8, 2)]);
        assert_eq!((quarantine.pages(), quarantine.unlisted()), (5, 3));
    }

    #[test]
    fn nothing_is_no_run() {
        let mut places = [const { None }; 2];
        let mut quarantine = Quarantine::new(&mut places);
        quarantine.put(run(8, 2));
        quarantine.put(run(30, 0));
        assert_eq!(listed(&quarantine), [(8, 2)]);
    }
}
