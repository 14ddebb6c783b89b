//! A window that was not opened or changed, and what is left of the attempt.

use core::fmt;

use hypercall::{AccessError, Frames, Uncertain};

use crate::error::{ListError, P2mError};

/// A change of the window that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowError {
    /// Why.
    pub failure: ListError,
    /// Whether what was done before could be undone. If not, the frames concerned may be read-only,
    /// or mapped in the window: the source has them as uncertain ones.
    pub undo: Result<(), ListError>,
}

impl From<ListError> for WindowError {
    /// Nothing had been done yet.
    fn from(failure: ListError) -> Self {
        Self { failure, undo: Ok(()) }
    }
}

impl From<P2mError> for WindowError {
    fn from(error: P2mError) -> Self {
        ListError::from(error).into()
    }
}

impl From<AccessError> for WindowError {
    fn from(error: AccessError) -> Self {
        ListError::from(error).into()
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
    pub failure: ListError,
    /// Whether the frames are writable again, and in no table.
    pub undo: Result<(), ListError>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure, undo, .. } = *self;
        write!(f, "the window stays shut: {}", WindowError { failure, undo })
    }
}

impl core::error::Error for OpenError {}
