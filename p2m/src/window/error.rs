//! A window that was not changed, and what is left of the attempt.

use core::fmt;

use hypercall::AccessError;

use crate::error::{ListError, P2mError};

/// A window that could not be opened, or a change of it that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowError {
    /// Why.
    pub failure: ListError,
    /// Whether what was done before could be undone. If not, the frames concerned may be read-only,
    /// or mapped in the window: they come back as uncertain ones.
    pub undo: Result<(), ListError>,
}

impl From<ListError> for WindowError {
    /// Returns nothing had been done yet.
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
