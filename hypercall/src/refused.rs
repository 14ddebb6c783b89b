//! What a refused operation gives back.

use core::fmt;

/// A value that an operation did not take, and why. The value is unchanged.
///
/// ```
/// # use hypercall::Refused;
/// let refused = Refused { value: 7, error: "there is no room" };
/// assert_eq!(refused.to_string(), "there is no room");
/// ```
#[must_use = "the value is in here"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<T, E> {
    /// The value; the caller owns it again.
    pub value: T,
    /// Why.
    pub error: E,
}

impl<T, E: fmt::Display> fmt::Display for Refused<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: fmt::Debug, E: core::error::Error> core::error::Error for Refused<T, E> {}
