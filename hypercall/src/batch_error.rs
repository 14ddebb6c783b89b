//! Why a batch was not sent whole.

use core::fmt;

use crate::error::Error;
use crate::refusable_flag::RefusableFlag;

/// The batch has no room for another element or request. Nothing was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the batch is full: submit it, or give it more storage")
    }
}

impl core::error::Error for Full {}

/// A batch with a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchError {
    /// The first refused request, counted from 0 in the order of the batch. The last one, if the
    /// machine refuses the batch as a whole and calls every request of it done.
    pub request: u32,
    /// Number of requests in the batch.
    pub requests: u32,
    /// Why it was refused; `error.done` is the index of the refused element in it.
    pub error: Error,
    /// The flag of the refused entry for which Xen refuses it, if it has one.
    pub flag: Option<RefusableFlag>,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        if let Some(flag) = self.flag {
            write!(f, ": the entry asks for {flag}")?;
        }
        if self.requests > 1 {
            write!(f, " (request {} of {})", self.request + 1, self.requests)?;
        }
        Ok(())
    }
}

impl core::error::Error for BatchError {}

impl BatchError {
    /// Returns the refusal of a request of a batch that has `requests`.
    pub(crate) fn of(request: usize, requests: usize, error: Error) -> Self {
        let count = |it| u32::try_from(it).unwrap_or(u32::MAX);
        Self { request: count(request), requests: count(requests), error, flag: None }
    }
}
