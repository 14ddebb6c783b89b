//! What a refused undo left of an address space.
//!
//! Xen may refuse a change, and then the undo of the part that took effect. A
//! [`Pgd`](crate::Pgd) then notes what breaks its invariants, and
//! [`put_right`](crate::put_right) repairs it before the next change.
//!
//! Frames whose entries are gone, but whose flush Xen refused, do not wait for that: they become
//! uncertain at once.

use core::num::NonZeroU64;

use hypercall::{GuestVa, Level, PAGE_SHIFT, Pfn, Pte};

use crate::marks::{COPY_ON_WRITE, SHARED};

/// What is in doubt of an address space. In any case TLBs may have what its entries no longer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// Pages or a table that were to move.
    pub(crate) moving: Option<Moving>,
    /// Whether the tables are as the state of the address space demands.
    pub(crate) tables: Shape,
    /// The other side of a fork that was not taken back. Their entries do not tell which of the two
    /// has what both may map.
    pub(crate) fork: Option<Other>,
}

/// Another address space: its root's frame, inverted, which makes errors a word smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other(NonZeroU64);

impl Other {
    /// Returns the one with this root. No frame has the highest number.
    pub(crate) fn with_root(root: Pfn) -> Self {
        Self(NonZeroU64::new(!root.raw()).unwrap_or(NonZeroU64::MIN))
    }
}

/// The state of pins, marks, access to table frames, and the copies in a user root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All is as it must be.
    Right,
    /// Not known.
    Unknown,
}

/// Pages, or an L1 table, that were to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    /// The level of the entries: L1 for pages, L2 for a table.
    pub(crate) level: Level,
    /// The number of entries.
    pub(crate) count: u16,
    /// Which of them may have an entry at both places.
    pub(crate) twice: Option<u16>,
    /// Where they belong. Pages may be write-protected there, and marked for that.
    pub(crate) from: GuestVa,
    /// Where nothing may have its second entry. An absent one may show bits that the CPU set.
    pub(crate) to: GuestVa,
}

impl Moving {
    /// Returns both addresses of number `at`.
    pub(crate) fn at(self, at: u16) -> Option<(GuestVa, GuestVa)> {
        let pages = u64::from(at) << (self.level.shift() - PAGE_SHIFT);
        Some((self.from.checked_add_pages(pages).ok()?, self.to.checked_add_pages(pages).ok()?))
    }
}

impl Doubt {
    /// Only TLBs may be wrong.
    pub(crate) const FLUSH: Self = Self { moving: None, tables: Shape::Right, fork: None };

    /// The tables are in doubt as well.
    pub(crate) const TABLES: Self = Self { tables: Shape::Unknown, ..Self::FLUSH };

    /// Returns the doubt of a fork that was not taken back, with the root of the other side.
    pub(crate) fn of_fork(other: Pfn) -> Self {
        Self { fork: Some(Other::with_root(other)), ..Self::FLUSH }
    }

    /// Returns the rest of the doubt.
    pub(crate) fn without_fork(self) -> Self {
        Self { fork: None, ..self }
    }

    /// Adds this to what is known.
    pub(crate) fn note(self, known: &mut Option<Self>) {
        let Some(before) = *known else {
            *known = Some(self);
            return;
        };
        let is_right = before.tables == Shape::Right && self.tables == Shape::Right;
        *known = Some(Self {
            moving: self.moving.or(before.moving),
            tables: if is_right { Shape::Right } else { Shape::Unknown },
            fork: self.fork.or(before.fork),
        });
    }
}

/// Returns the entry of a page before it was write-protected for a move; `None` if it was not.
pub(crate) fn unprotected(pte: Pte) -> Option<Pte> {
    let flags = pte.flags();
    let was_writable = pte.is_present() && flags.contains(COPY_ON_WRITE) && !flags.contains(SHARED);
    was_writable.then(|| pte.with_flags(flags.difference(COPY_ON_WRITE)).writable())
}
