//! The roots of an address space and its two states.

use core::marker::PhantomData;

use hypercall::{Frame, Level, Machine, Pfn};

use crate::doubt::Doubt;
use crate::frames::CountedAt;
use crate::tables::Part;
use p2m::{Guest, WalkError};

/// State of an address space that is plain memory: stores change it, and it cannot be loaded.
#[derive(Debug)]
pub enum Loose {}

/// State of an address space that Xen has validated: requests change it, and it can be loaded.
#[derive(Debug)]
pub enum Pinned {}

/// An address space: a root table, the tables of its user half, and a kernel half shared with the
/// running root. If user code runs in it, it has a second root, with the same lower half and an
/// empty upper half.
///
/// # Invariants
/// * I-4: every table behind slots 0 to 255 of the root belongs to this address space alone. So
///   does every frame that they map as the guest's own, unless the entry is marked as shared: then
///   it is one of the shares that [`Shares`](crate::Shares) counts.
/// * I-5: if `S` is [`Loose`], no frame of the tree is a live table, except behind the kernel half.
///   If `S` is [`Pinned`], the roots are pinned and every table of the tree is read-only in the
///   direct mapping.
/// * I-6: slots 0 to 255 of the user root are those of the kernel root, marked as copies.
///
/// `doubt` notes what Xen refused to undo, and the next change repairs it first. Until then a page
/// or table may have two entries, a table may be pinned or mapped otherwise than I-5 says, and the
/// user root may differ. After a refused fork, another address space may own the same pages; then
/// only [`Pgd::take_back_fork`] changes it.
///
/// Dropping an address space leaks its frames: take it apart with [`Pgd::destroy`].
#[derive(Debug)]
#[must_use = "an address space that is dropped leaks its frames"]
pub struct Pgd<S> {
    pub(crate) root: Frame,
    pub(crate) user_root: Option<Frame>,
    /// Whether a table may be pinned by itself.
    pub(crate) holds: Holds,
    /// What a refused undo left. Every change repairs it first.
    pub(crate) doubt: Option<Doubt>,
    /// Where its pages are counted, if any may be shared.
    pub(crate) counted: Option<CountedAt>,
    pub(crate) state: PhantomData<S>,
}

/// Whether tables of an address space are pinned by themselves, besides the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// None is.
    Nothing,
    /// Some may be.
    Tables,
}

/// The frames of an address space's roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    pub(crate) kernel: Pfn,
    pub(crate) user: Option<Pfn>,
}

impl<S> Pgd<S> {
    /// Returns the frame of the root table.
    #[must_use]
    pub const fn root(&self) -> Pfn {
        self.root.pfn()
    }

    /// Returns the frame of the root table for user code, if there is one.
    #[must_use]
    pub fn user_root(&self) -> Option<Pfn> {
        self.user_root.as_ref().map(Frame::pfn)
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots { kernel: self.root(), user: self.user_root() }
    }

    /// Returns the same address space in another state.
    pub(crate) fn into_state<T>(self) -> Pgd<T> {
        let Self { root, user_root, holds, doubt, counted, .. } = self;
        Pgd { root, user_root, holds, doubt, counted, state: PhantomData }
    }

    /// Returns the number of tables of the address space, including its roots.
    ///
    /// # Errors
    /// The tables cannot be read.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// assert_eq!(pgd.tables(&tools.guest)?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn tables<M: Machine>(&self, guest: &Guest<'_, M>) -> Result<u64, WalkError> {
        let mut count = 1 + u64::from(self.user_root.is_some());
        Part::user_half(self.root()).above(Level::L1).links(guest, &mut |_| {
            count += 1;
            Ok::<_, WalkError>(())
        })?;
        Ok(count)
    }
}
