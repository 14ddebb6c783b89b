//! The frames in which the pages of the linear list are.
#![expect(unsafe_code, reason = "whoever says where the list is says what toolstacks write (I-20)")]

use hypercall::{FrameAccess, Mfn, Pfn};

use crate::error::P2mError;
use crate::guest::Guest;

/// Knows the frame of each page of the linear list.
///
/// # Safety
/// Toolstacks overwrite the frames at a restore (I-20). Each holds words of the guest's list, or
/// those that a window's holes share, and nothing else.
pub unsafe trait Leaves {
    /// Returns the frame of page `index`, which has the words of pfns `index * 512` on.
    ///
    /// # Errors
    /// The list has no such page, or the frame is not the guest's.
    fn leaf<M: FrameAccess>(&self, guest: &Guest<'_, M>, index: u64) -> Result<Mfn, P2mError>;
}

/// The builder's list, in consecutive pages. The first is `start_info.first_p2m_pfn` if the ELF
/// note INIT_P2M placed the list; otherwise the pfn that its address maps in the kernel's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuilderList {
    /// The frame of its first page.
    first: Pfn,
}

impl BuilderList {
    /// Describes the list whose first page is `first`.
    ///
    /// # Safety
    /// The builder's list is there, in as many pfns as it has pages, and nowhere else. Toolstacks
    /// overwrite these at a restore (I-20).
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use p2m::BuilderList;
    ///
    /// // `start_info` says that the builder put it there.
    /// let list = unsafe { BuilderList::new(Pfn::new(0x1234)) };
    /// # let _ = list;
    /// ```
    #[must_use]
    pub const unsafe fn new(first: Pfn) -> Self {
        Self { first }
    }

    /// Returns the pfn of its first page.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use p2m::BuilderList;
    ///
    /// let list = unsafe { BuilderList::new(Pfn::new(0x1234)) }; // the builder put it there
    /// assert_eq!(list.first(), Pfn::new(0x1234));
    /// ```
    #[must_use]
    pub const fn first(&self) -> Pfn {
        self.first
    }
}

// SAFETY: the caller of `new` vouched for the place of the list.
unsafe impl Leaves for BuilderList {
    fn leaf<M: FrameAccess>(&self, guest: &Guest<'_, M>, index: u64) -> Result<Mfn, P2mError> {
        let (pfn, len) = (self.first.checked_add(index), guest.p2m().len());
        guest.mfn(pfn.ok_or(P2mError::OutOfRange { pfn: self.first, len })?)
    }
}
