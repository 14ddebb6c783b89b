//! Virtual addresses that belong to the guest.

use core::fmt;
use x86_64::VirtAddr;

use crate::frame::PAGE_SIZE;

/// First address of the range Xen keeps for itself in every address space (L4 slot 256).
pub const XEN_HOLE_START: u64 = 0xffff_8000_0000_0000;

/// First address after Xen's range (L4 slot 272).
pub const XEN_HOLE_END: u64 = 0xffff_8800_0000_0000;

/// First and last L4 slot of Xen's range.
pub const XEN_SLOTS: core::ops::RangeInclusive<u16> = 256..=271;

/// A canonical virtual address outside Xen's range.
///
/// # Invariants
/// The address is canonical and not in `XEN_HOLE_START..XEN_HOLE_END`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GuestVa(VirtAddr);

/// Why a number is not a guest address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotGuestVa {
    /// Bits 63..47 are not all equal.
    NotCanonical(u64),
    /// The address is in Xen's own range.
    InXenHole(u64),
}

impl fmt::Display for NotGuestVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCanonical(va) => write!(f, "address {va:#x} is not canonical"),
            Self::InXenHole(va) => write!(
                f,
                "address {va:#x} lies in Xen's range {XEN_HOLE_START:#x}..{XEN_HOLE_END:#x}"
            ),
        }
    }
}

impl core::error::Error for NotGuestVa {}

impl GuestVa {
    /// Checks that the guest may use `va`.
    ///
    /// # Errors
    /// [`NotGuestVa`] if it is not canonical or is in Xen's range.
    ///
    /// ```
    /// use hypercall::GuestVa;
    ///
    /// assert!(GuestVa::new(0x40_0000).is_ok());
    /// assert!(GuestVa::new(0xffff_8000_0000_0000).is_err()); // Xen's own range
    /// ```
    pub const fn new(va: u64) -> Result<Self, NotGuestVa> {
        let Ok(addr) = VirtAddr::try_new(va) else {
            return Err(NotGuestVa::NotCanonical(va));
        };
        if va >= XEN_HOLE_START && va < XEN_HOLE_END {
            return Err(NotGuestVa::InXenHole(va));
        }
        // INVARIANT: both conditions were checked above.
        Ok(Self(addr))
    }

    /// Returns the address as a number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0.as_u64()
    }

    /// Returns the address as the `x86_64` crate's type.
    #[must_use]
    pub const fn addr(self) -> VirtAddr {
        self.0
    }

    /// Returns the address `pages` pages further on.
    ///
    /// # Errors
    /// [`NotGuestVa`] if that leaves this half of the address space or enters Xen's range.
    ///
    /// ```
    /// use hypercall::GuestVa;
    ///
    /// let va = GuestVa::new(0x40_0000)?;
    /// assert_eq!(va.checked_add_pages(2)?.raw(), 0x40_2000);
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    pub const fn checked_add_pages(self, pages: u64) -> Result<Self, NotGuestVa> {
        match pages.checked_mul(PAGE_SIZE as u64) {
            Some(bytes) => match self.raw().checked_add(bytes) {
                Some(va) => Self::new(va),
                None => Err(NotGuestVa::NotCanonical(u64::MAX)),
            },
            None => Err(NotGuestVa::NotCanonical(u64::MAX)),
        }
    }

    /// Returns whether the address is the first of a page.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.raw().is_multiple_of(PAGE_SIZE as u64)
    }
}

impl fmt::Display for GuestVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.raw())
    }
}

impl fmt::Debug for GuestVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "va {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_borders_of_xens_range_are_exact() {
        assert!(GuestVa::new(0x0000_7fff_ffff_ffff).is_ok());
        assert_eq!(
            GuestVa::new(0x0000_8000_0000_0000),
            Err(NotGuestVa::NotCanonical(0x0000_8000_0000_0000))
        );
        assert_eq!(GuestVa::new(XEN_HOLE_START), Err(NotGuestVa::InXenHole(XEN_HOLE_START)));
        assert_eq!(GuestVa::new(XEN_HOLE_END - 1), Err(NotGuestVa::InXenHole(XEN_HOLE_END - 1)));
        assert!(GuestVa::new(XEN_HOLE_END).is_ok());
    }

    #[test]
    fn adding_pages_cannot_walk_into_xens_range() {
        let last = GuestVa::new(0x0000_7fff_ffff_f000).expect("user half");
        assert!(last.checked_add_pages(1).is_err());
        let top = GuestVa::new(0xffff_ffff_ffff_f000).expect("kernel half");
        assert!(top.checked_add_pages(1).is_err());
        assert!(top.checked_add_pages(u64::MAX).is_err());
    }
}
