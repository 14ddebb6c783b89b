//! The error of a change of the window.

use core::fmt;

use hypercall::AccessError;

use crate::error::{ListError, P2mError};

/// Why a window could not be opened or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowError {
    /// The reason.
    pub failure: ListError,
    /// Whether the change was undone. If not, its frames may be read-only, or mapped in the window;
    /// they come back as uncertain ones.
    pub undo: Result<(), ListError>,
}

impl From<ListError> for WindowError {
    /// Says that nothing had been done yet.
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
