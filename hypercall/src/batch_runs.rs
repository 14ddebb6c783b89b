//! What a batch notes of its requests.

use core::ops::Range;

use crate::call::{CALLS_MAX, Outcome};
use crate::op::{DomId, VaMapping};
use crate::pte::Pte;

/// What a run consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Updates(DomId),
    Ops(DomId),
    Va(VaMapping, Pte),
}

/// Neighbours of one kind: one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) outcome: Outcome,
}

impl Run {
    /// Returns the places of its updates after the first `done`; none if it has none.
    pub(crate) const fn updates(&self, done: usize) -> Range<usize> {
        match self.kind {
            Kind::Updates(_) => self.start + done..self.end,
            Kind::Ops(_) | Kind::Va(..) => 0..0,
        }
    }
}

/// Memory for what a batch notes of its requests, as many as one trap takes.
#[derive(Debug)]
pub struct BatchRuns(pub(crate) [Run; CALLS_MAX]);

impl BatchRuns {
    /// Makes room for [`CALLS_MAX`] requests.
    ///
    /// ```
    /// use hypercall::{Batch, BatchRuns, MmuUpdate};
    ///
    /// let (mut updates, mut old) = (vec![MmuUpdate::EMPTY; 64], vec![0; 64]);
    /// let mut runs = BatchRuns::new();
    /// let batch = Batch::within(&mut updates, &mut old, &mut [], &mut runs);
    /// assert_eq!((batch.room(), batch.ops_room()), (64, 0));
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        let kind = Kind::Ops(DomId::SELF);
        Self([Run { kind, start: 0, end: 0, outcome: Outcome::NotIssued }; CALLS_MAX])
    }
}

impl Default for BatchRuns {
    fn default() -> Self {
        Self::new()
    }
}
