//! What a refused undo has left of an address space.
//!
//! Xen may refuse a change, and then the undo of the part of it that has taken effect. A
//! [`Pgd`](crate::Pgd) then notes what is not as its invariants say, and
//! [`put_right`](crate::put_right) puts that right before the next change.
//!
//! Frames whose entries are gone, but whose flush Xen refused, do not wait for that: they go at
//! once to whoever keeps what is uncertain.

use core::num::NonZeroU64;

use hypercall::{GuestVa, Level, PAGE_SHIFT, Pfn, Pte};

use crate::marks::{COPY_ON_WRITE, SHARED};

/// What is in doubt of an address space. In any case TLBs may hold what its entries no longer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// What was to move.
    pub(crate) moving: Option<Moving>,
    /// Whether the tables are as the state of the address space asks for.
    pub(crate) tables: Shape,
    /// The other one of a fork that was not taken back: which of the two has what both may map,
    /// their entries do not say.
    pub(crate) fork: Option<Other>,
}

/// Another address space: the frame of its root, turned round, which makes errors a word smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other(NonZeroU64);

impl Other {
    /// The one with this root. No frame has the highest number.
    pub(crate) fn with_root(root: Pfn) -> Self {
        Self(NonZeroU64::new(!root.raw()).unwrap_or(NonZeroU64::MIN))
    }
}

/// Pins, marks, access to the frames of tables, and the copies in a user root.
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
    /// Of the entries: L1 for pages, L2 for a table.
    pub(crate) level: Level,
    /// How many.
    pub(crate) count: u16,
    /// Which of them may have an entry at both places.
    pub(crate) twice: Option<u16>,
    /// Where they belong. Pages may be write-protected there, and marked for that.
    pub(crate) from: GuestVa,
    /// Where what has two entries is not to be. An absent one may say what the CPU has noted.
    pub(crate) to: GuestVa,
}

impl Moving {
    /// The addresses of number `at`, at both places.
    pub(crate) fn at(self, at: u16) -> Option<(GuestVa, GuestVa)> {
        let pages = u64::from(at) << (self.level.shift() - PAGE_SHIFT);
        Some((self.from.checked_add_pages(pages).ok()?, self.to.checked_add_pages(pages).ok()?))
    }
}

impl Doubt {
    /// TLBs may hold what is no longer so, and that is all.
    pub(crate) const FLUSH: Self = Self { moving: None, tables: Shape::Right, fork: None };

    /// And the tables are in doubt.
    pub(crate) const TABLES: Self = Self { tables: Shape::Unknown, ..Self::FLUSH };

    /// A fork was not taken back, and `other` is the root of the other one.
    pub(crate) fn of_fork(other: Pfn) -> Self {
        Self { fork: Some(Other::with_root(other)), ..Self::FLUSH }
    }

    /// What else is in doubt.
    pub(crate) fn without_fork(self) -> Self {
        Self { fork: None, ..self }
    }

    /// Notes this beside what is known.
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

/// What a page that was write-protected to be moved is otherwise: `None` if it was not.
pub(crate) fn unprotected(pte: Pte) -> Option<Pte> {
    let flags = pte.flags();
    let was_writable = pte.is_present() && flags.contains(COPY_ON_WRITE) && !flags.contains(SHARED);
    was_writable.then(|| pte.with_flags(flags.difference(COPY_ON_WRITE)).writable())
}
