//! The guest that an operation works on.
#![expect(unsafe_code, reason = "believes what the caller says of the guest (I-18)")]

use hypercall::{FrameAccess, Mfn, Pfn, Slot};
use x86_64::structures::paging::PageTableIndex;

use crate::error::P2mError;
use crate::map::P2m;

/// A guest: its machine, its frame map, and its kernel's root. It holds only borrows; pass it by
/// value.
///
/// # Invariants
/// I-18: the frame map is that of the guest on this machine, and the upper half of the kernel root
/// is the one that runs.
#[derive(Debug)]
pub struct Guest<'a, M> {
    machine: &'a M,
    p2m: &'a P2m<'a>,
    kernel_root: Pfn,
}

impl<M> Clone for Guest<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Guest<'_, M> {}

impl<'a, M> Guest<'a, M> {
    /// Describes the guest on `machine` with the frame map `p2m`, whose kernel runs on
    /// `kernel_root`.
    ///
    /// # Safety
    /// `p2m` is the frame map of the guest on `machine`. The guest runs on `kernel_root`, or on a
    /// root whose upper half (slots 256 to 511) leads to the same tables: operations find and
    /// change entries of the direct mapping through it (I-18).
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use p2m::Guest;
    ///
    /// # let TestGuest { model, p2m, guest, .. } = TestGuest::new();
    /// # let root = guest.kernel_root();
    /// // The root that the builder made, on which the kernel runs.
    /// let guest = unsafe { Guest::new(model, p2m, root) };
    /// # let _ = guest;
    /// ```
    #[must_use]
    pub const unsafe fn new(machine: &'a M, p2m: &'a P2m<'a>, kernel_root: Pfn) -> Self {
        Self { machine, p2m, kernel_root }
    }

    /// Describes the same guest on another root.
    ///
    /// # Safety
    /// The kernel runs on `kernel_root` from now on, as for [`new`](Self::new).
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// # let TestGuest { guest, .. } = TestGuest::new();
    /// # let own_root = guest.kernel_root();
    /// // The kernel has just loaded a root of its own.
    /// let guest = unsafe { guest.with_kernel_root(own_root) };
    /// # let _ = guest;
    /// ```
    #[must_use]
    pub const unsafe fn with_kernel_root(self, kernel_root: Pfn) -> Self {
        Self { kernel_root, ..self }
    }

    /// Describes the same guest through another machine: a middleware around its own.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::middleware::Counting;
    ///
    /// # let TestGuest { guest, .. } = TestGuest::new();
    /// let counting = Counting::new(guest.machine());
    /// let guest = guest.with_machine(&counting);
    /// # let _ = guest;
    /// ```
    #[must_use]
    pub const fn with_machine<N>(self, machine: &'a N) -> Guest<'a, N> {
        Guest { machine, p2m: self.p2m, kernel_root: self.kernel_root }
    }

    /// Returns the machine.
    #[must_use]
    #[inline]
    pub const fn machine(&self) -> &'a M {
        self.machine
    }

    /// Returns the frame map.
    #[must_use]
    #[inline]
    pub const fn p2m(&self) -> &'a P2m<'a> {
        self.p2m
    }

    /// Returns the kernel's root. Its upper half has the direct mapping.
    #[must_use]
    #[inline]
    pub const fn kernel_root(&self) -> Pfn {
        self.kernel_root
    }

    /// Returns the machine frame of `pfn`, as [`P2m::mfn`] does.
    ///
    /// # Errors
    /// [`P2mError`] if the pfn has no frame of the guest's own.
    #[inline]
    pub fn mfn(&self, pfn: Pfn) -> Result<Mfn, P2mError> {
        self.p2m.mfn(pfn)
    }

    /// Returns the place of entry `index` of the table in frame `table`.
    ///
    /// # Errors
    /// [`P2mError`] if the pfn has no frame of the guest's own.
    #[inline]
    pub fn slot(&self, table: Pfn, index: PageTableIndex) -> Result<Slot, P2mError> {
        Ok(Slot { table: self.mfn(table)?, index })
    }
}

impl<M: FrameAccess> Guest<'_, M> {
    /// Returns the pfn of the guest's own frame `mfn`, as [`P2m::pfn`] does.
    ///
    /// # Errors
    /// [`P2mError`] if M2P and the frame map do not agree that the frame is the guest's.
    #[inline]
    pub fn pfn(&self, mfn: Mfn) -> Result<Pfn, P2mError> {
        self.p2m.pfn(self.machine, mfn)
    }
}
