//! Releases of Xen, and spans of them: what a line says about which Xen printed it.

use std::fmt;

use serde::{Serialize, Serializer};

/// A release of Xen, without the point release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XenVersion {
    major: u8,
    minor: u8,
}

impl XenVersion {
    /// The first that is known here.
    pub const FIRST: Self = Self::new(3, 0);
    /// The last that is known here. Newer ones are taken for this one.
    pub const LAST: Self = Self::new(4, 20);

    /// Release `major.minor`.
    #[must_use]
    pub const fn new(major: u8, minor: u8) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// All releases from one to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The oldest.
    pub since: XenVersion,
    /// The newest.
    pub until: XenVersion,
}

impl Span {
    /// Nothing is known.
    pub const ALL: Self = Self { since: XenVersion::FIRST, until: XenVersion::LAST };

    /// Returns whether `version` is one of them.
    #[must_use]
    pub fn contains(self, version: XenVersion) -> bool {
        (self.since..=self.until).contains(&version)
    }

    /// Returns the releases in both, if there are any.
    #[must_use]
    pub fn meet(self, other: Self) -> Option<Self> {
        let since = self.since.max(other.since);
        let until = self.until.min(other.until);
        (since <= until).then_some(Self { since, until })
    }
}

/// As people read it.
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.since == self.until {
            self.since.fmt(f)
        } else if self.until == XenVersion::LAST {
            write!(f, "{} or later", self.since)
        } else if self.since == XenVersion::FIRST {
            write!(f, "up to {}", self.until)
        } else {
            write!(f, "{} to {}", self.since, self.until)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_meet_or_do_not() {
        let old = Span { since: XenVersion::FIRST, until: XenVersion::new(4, 8) };
        let new = Span { since: XenVersion::new(4, 6), until: XenVersion::LAST };
        let both = old.meet(new).expect("4.6 to 4.8");
        assert_eq!(both.to_string(), "4.6 to 4.8");
        assert_eq!(old.to_string(), "up to 4.8");
        assert_eq!(new.to_string(), "4.6 or later");
        let newest = Span { since: XenVersion::new(4, 17), until: XenVersion::LAST };
        assert_eq!(old.meet(newest), None);
    }
}
