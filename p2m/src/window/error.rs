//! What can go wrong with the window.

use core::fmt;

use hypercall::{AccessError, BatchError, Frames, Full, GuestVa, Pfn, Uncertain};

use crate::error::P2mError;

/// Why the window could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowFailure {
    /// The window takes another number of frames.
    Frames {
        /// What it takes.
        needed: u64,
        /// What it was given.
        given: u64,
    },
    /// The address is not the first of a root slot.
    Unaligned(GuestVa),
    /// The map cannot have that many pfns.
    Capacity {
        /// How many it was to have.
        pfns: u64,
        /// How many it can have.
        capacity: u64,
    },
    /// The map is not the one that is in this window.
    OtherMap,
    /// No frame for a table or a page of the list.
    OutOfFrames,
    /// A frame is none of the guest's, or a pfn cannot be changed.
    P2m(P2mError),
    /// A table or page cannot be reached.
    Access(AccessError),
    /// The batch has no room.
    Full(Full),
    /// Xen refused to protect a table.
    Protect {
        /// The table.
        table: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused a change of the window's entries.
    Refused(BatchError),
}

impl fmt::Display for WindowFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames { needed, given } => {
                write!(f, "the window takes {needed} frames, not {given}")
            }
            Self::Unaligned(va) => write!(f, "{va} is not the first address of a root slot"),
            Self::Capacity { pfns, capacity } => {
                write!(f, "the map was to have {pfns:#x} pfns and can have {capacity:#x}")
            }
            Self::OtherMap => f.write_str("the frame map is not the one in this window"),
            Self::OutOfFrames => f.write_str("no frame for the frame map"),
            Self::P2m(error) => write!(f, "{error}"),
            Self::Access(error) => write!(f, "{error}"),
            Self::Full(full) => write!(f, "{full}"),
            Self::Protect { table, error } => {
                write!(f, "table pfn {table} cannot be protected: {error}")
            }
            Self::Refused(error) => write!(f, "the window's entries: {error}"),
        }
    }
}

impl core::error::Error for WindowFailure {}

impl From<P2mError> for WindowFailure {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for WindowFailure {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl From<Full> for WindowFailure {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

/// A change of the window that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowError {
    /// Why.
    pub failure: WindowFailure,
    /// Whether what was done before could be undone. If not, the frames concerned may be read-only,
    /// or mapped in the window: the source has them as uncertain ones.
    pub undo: Result<(), WindowFailure>,
}

impl From<WindowFailure> for WindowError {
    /// Nothing had been done yet.
    fn from(failure: WindowFailure) -> Self {
        Self { failure, undo: Ok(()) }
    }
}

impl From<P2mError> for WindowError {
    fn from(error: P2mError) -> Self {
        WindowFailure::from(error).into()
    }
}

impl From<AccessError> for WindowError {
    fn from(error: AccessError) -> Self {
        WindowFailure::from(error).into()
    }
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        match &self.undo {
            Ok(()) => Ok(()),
            Err(failure) => write!(f, "; undoing it failed: {failure}"),
        }
    }
}

impl core::error::Error for WindowError {}

/// A window that could not be opened.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenError {
    /// The frames meant for it: uncertain ones, if what was done could not be undone.
    pub frames: Result<Frames, Uncertain>,
    /// Why.
    pub failure: WindowFailure,
    /// Whether the frames are writable again, and in no table.
    pub undo: Result<(), WindowFailure>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure, undo, .. } = self;
        write!(f, "the window stays shut: {}", WindowError { failure: *failure, undo: *undo })
    }
}

impl core::error::Error for OpenError {}
