//! The room that a batch must have.

use core::fmt;

use hypercall::Batch;

/// The room in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Page-table updates.
    pub updates: usize,
    /// Extended operations.
    pub ops: usize,
}

/// What to do about a batch that is too small.
pub(crate) const ENLARGE: &str = "enlarge its BatchStorage<UPDATES, OPS>";

/// The batch has only this room, too little for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSmall(pub(crate) Room);

impl Room {
    /// The smallest batch with which every change of a live address space works and can be undone:
    /// for a table's entry and its copy in the user root, or the entry and the direct mapping of
    /// the table's frame; and for the flush. Operations with less room fail before they ask for
    /// anything ([`MapError::BatchTooSmall`](crate::MapError::BatchTooSmall)). Changes of entries
    /// in L1 tables work with one update, too.
    ///
    /// More room only means fewer traps.
    pub const SMALLEST: Self = Self { updates: 2, ops: 1 };

    /// Returns the room of `batch`.
    pub(crate) const fn of(batch: &Batch<'_>) -> Self {
        Self { updates: batch.updates_max(), ops: batch.ops_max() }
    }

    /// Refuses a batch with less than [`Room::SMALLEST`].
    pub(crate) const fn check(batch: &Batch<'_>) -> Result<(), TooSmall> {
        Self::of(batch).at_least(Self::SMALLEST)
    }

    /// Refuses a batch that is too small for any change of a live tree.
    pub(crate) const fn check_entries(batch: &Batch<'_>) -> Result<(), TooSmall> {
        Self::of(batch).at_least(Self { updates: 1, ..Self::SMALLEST })
    }

    const fn at_least(self, least: Self) -> Result<(), TooSmall> {
        if self.updates < least.updates || self.ops < least.ops {
            return Err(TooSmall(self));
        }
        Ok(())
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} updates and {} extended operations", self.updates, self.ops)
    }
}
