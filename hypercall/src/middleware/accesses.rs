//! Accesses to frames that fail: which fail, and which were made so far.

use core::cell::Cell;
use core::fmt;

use crate::frame::Pfn;

/// An access to a frame, as it passed through the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accessed {
    /// The method of [`FrameAccess`](crate::FrameAccess).
    pub method: &'static str,
    /// The frame.
    pub pfn: Pfn,
    /// How many requests preceded it.
    pub requests: u64,
}

impl fmt::Display for Accessed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of pfn {}, behind {} requests", self.method, self.pfn, self.requests)
    }
}

/// Which accesses fail, and which were made.
#[derive(Debug)]
pub(super) struct Accesses<'r> {
    failing: &'r [u64],
    made: &'r [Cell<Option<Accessed>>],
    seen: Cell<u64>,
}

impl<'r> Accesses<'r> {
    pub(super) const fn new(failing: &'r [u64], made: &'r [Cell<Option<Accessed>>]) -> Self {
        Self { failing, made, seen: Cell::new(0) }
    }

    pub(super) const fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Returns how many of the accesses that are to fail were tried.
    pub(super) fn failed(&self) -> usize {
        self.failing.iter().filter(|number| **number < self.seen.get()).count()
    }

    /// Counts an access. Returns its number as an error if it is to fail.
    pub(super) fn count(&self, access: Accessed) -> Result<(), u64> {
        let number = self.seen.get();
        self.seen.set(number + 1);
        let place = usize::try_from(number).ok().and_then(|at| self.made.get(at));
        if let Some(place) = place {
            place.set(Some(access));
        }
        if self.failing.contains(&number) { Err(number) } else { Ok(()) }
    }
}
