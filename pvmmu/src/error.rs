//! Errors of a tree as a whole.

use core::fmt;

use hypercall::{AccessError, Error, Full, Level, Mfn, Pfn, Refused};
use p2m::{P2mError, WalkError};

use crate::room::{ENLARGE, Room};

/// Why a repair failed. Nothing else was done, and the next change tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotPutRight {
    /// The tables could not be read.
    Walk(WalkError),
    /// Xen refused it.
    Refused(Error),
    /// A fork must be taken back first, for which too little is at hand.
    HalfForked,
}

/// Makes errors of reading tables errors of an operation.
macro_rules! from_reading {
    ($error:ty: $($of_reading:ty)*) => { $(
        impl From<$of_reading> for $error {
            fn from(error: $of_reading) -> Self {
                Self::Walk(error.into())
            }
        }
    )* };
}
pub(crate) use from_reading;

from_reading!(NotPutRight: WalkError AccessError P2mError);

/// Writes why a repair failed.
pub(crate) fn in_doubt(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "what an earlier undo left was not repaired: {error}; nothing else was done: try again"
    )
}

/// Says that a fork must be taken back first.
pub(crate) const HALF_FORKED: &str =
    "a fork of this address space was refused and not taken back: call take_back_fork first";

/// Why a tree was not pinned, or not unpinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinFailure {
    /// The tables could not be read.
    Walk(WalkError),
    /// A refused undo left the tables in doubt, and Xen refused to repair them now. Nothing else
    /// was done. The next change tries again.
    InDoubt(Error),
    /// The tree is one side of a fork that was refused and not taken back. Nothing was done: call
    /// [`Pgd::take_back_fork`](crate::Pgd::take_back_fork) first.
    HalfForked,
    /// Xen refused to change the direct mapping of a table's frame.
    Protect {
        /// The table.
        table: Pfn,
        /// The refusal.
        error: Error,
    },
    /// Xen refused the tree because of this table: it is mapped writable somewhere, or has an entry
    /// that is not allowed.
    Table {
        /// The level at which Xen refused it.
        level: Level,
        /// The pfn of the table.
        pfn: Pfn,
        /// The mfn of the table.
        mfn: Mfn,
        /// The refusal of this table alone.
        error: Error,
    },
    /// Xen refused the root, but takes every table below it by itself.
    Root {
        /// The pfn of the root.
        pfn: Pfn,
        /// The mfn of the root.
        mfn: Mfn,
        /// The refusal.
        error: Error,
    },
    /// Xen refused the hypercall as a whole.
    Call(Error),
    /// The batch cannot hold a single element.
    BatchTooSmall,
}

impl From<NotPutRight> for PinFailure {
    fn from(error: NotPutRight) -> Self {
        match error {
            NotPutRight::Walk(error) => error.into(),
            NotPutRight::Refused(error) => Self::InDoubt(error),
            NotPutRight::HalfForked => Self::HalfForked,
        }
    }
}

from_reading!(PinFailure: WalkError AccessError P2mError);

impl From<Full> for PinFailure {
    fn from(_: Full) -> Self {
        Self::BatchTooSmall
    }
}

impl fmt::Display for PinFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(error) => error.fmt(f),
            Self::InDoubt(error) => in_doubt(error, f),
            Self::HalfForked => f.write_str(HALF_FORKED),
            Self::Protect { table, error } => {
                write!(f, "the direct mapping of table pfn {table} is unchanged: {error}")
            }
            Self::Table { level, pfn, mfn, error } => {
                write!(f, "{level} table pfn {pfn} (mfn {mfn}): {error}")
            }
            Self::Root { pfn, mfn, error } => write!(f, "root pfn {pfn} (mfn {mfn}): {error}"),
            Self::Call(error) => write!(f, "no table is known to be at fault: {error}"),
            Self::BatchTooSmall => write!(
                f,
                "the batch has no room for a table: it needs {}: {ENLARGE}",
                Room { updates: 1, ops: 1 }
            ),
        }
    }
}

impl core::error::Error for PinFailure {}

/// What was refused. Its value says what stopped the undo, if anything. The steps before that, in
/// the order of undoing, are done.
pub(crate) type NotDone = Refused<Result<(), PinFailure>, PinFailure>;

/// Writes what stopped an undo, if anything.
pub(crate) fn undone(undo: &Result<(), PinFailure>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match undo {
        Ok(()) => Ok(()),
        Err(failure) => write!(f, "; and the undo stopped: {failure}"),
    }
}

/// Nothing had to be undone.
impl From<PinFailure> for NotDone {
    fn from(error: PinFailure) -> Self {
        Self { value: Ok(()), error }
    }
}
