//! Grants: frames that one domain lets another map, in the ABI's own structures
//! (public/grant_table.h).
//!
//! Grants have a trait of their own beside [`Hypercalls`](crate::Hypercalls), because most machines
//! and most crates do without them.
#![expect(unsafe_code, reason = "declares the methods whose callers owe ownership")]

use core::fmt;

use crate::error::Error;
use crate::frame::{Mfn, PAGE_SHIFT};
use crate::op::DomId;
use crate::va::GuestVa;

/// Number of an entry in a domain's grant table (`grant_ref_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

/// Xen's name for a mapped grant (`grant_handle_t`), needed to unmap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GrantHandle(pub u32);

/// What the mapping domain may do with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantAccess {
    /// Read and write.
    ReadWrite,
    /// Read (`GNTMAP_readonly`).
    ReadOnly,
}

/// Flags of a mapping (`GNTMAP_*`).
pub mod flags {
    /// `GNTMAP_device_map`: for a device.
    pub const DEVICE_MAP: u32 = 1;
    /// `GNTMAP_host_map`: for the CPU.
    pub const HOST_MAP: u32 = 2;
    /// `GNTMAP_readonly`.
    pub const READONLY: u32 = 4;
    /// `GNTMAP_application_map`: for user mode.
    pub const APPLICATION_MAP: u32 = 8;
    /// `GNTMAP_contains_pte`: the address is the machine address of an L1 entry.
    pub const CONTAINS_PTE: u32 = 16;
}

/// The status of one element (`GNTST_*`): zero, or a negative number. The enum is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// Done.
    pub const OKAY: Self = Self(0);
    /// Refused, for a reason without a number of its own.
    pub const GENERAL_ERROR: Self = Self(-1);
    /// No such domain.
    pub const BAD_DOMAIN: Self = Self(-2);
    /// No such entry in the granting domain's table, or no flag that says what to map for.
    pub const BAD_GRANT_REF: Self = Self(-3);
    /// No such mapping.
    pub const BAD_HANDLE: Self = Self(-4);
    /// Xen cannot map at this address.
    pub const BAD_VIRTUAL_ADDRESS: Self = Self(-5);
    /// The granting domain does not own the frame.
    pub const BAD_PAGE: Self = Self(-9);
    /// Not yet looked at: the status of a request that Xen has not seen. Xen never answers it.
    pub const NOT_ISSUED: Self = Self(i16::MIN);

    /// Returns the C name, if it is one of Xen's.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "okay",
            -1 => "general_error",
            -2 => "bad_domain",
            -3 => "bad_gntref",
            -4 => "bad_handle",
            -5 => "bad_virt_addr",
            -6 => "bad_dev_addr",
            -7 => "no_device_space",
            -8 => "permission_denied",
            -9 => "bad_page",
            -10 => "bad_copy_arg",
            -11 => "address_too_big",
            -12 => "eagain",
            -13 => "no_space",
            _ => return None,
        })
    }
}

impl fmt::Display for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "GNTST_{name} ({})", self.0),
            None if *self == Self::NOT_ISSUED => f.write_str("not issued"),
            None => write!(f, "grant status {}", self.0),
        }
    }
}

impl fmt::Debug for GrantStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One element of `GNTTABOP_map_grant_ref` (`struct gnttab_map_grant_ref`, 32 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of Xen's public/grant_table.h, under their own names")]
pub struct GrantMap {
    pub host_addr: u64,
    pub flags: u32,
    pub reference: u32,
    pub domain: u16,
    pub status: i16,
    pub handle: u32,
    pub dev_bus_addr: u64,
}

impl GrantMap {
    /// A placeholder to build storage with; Xen refuses it.
    pub const EMPTY: Self = Self {
        host_addr: 0,
        flags: 0,
        reference: 0,
        domain: 0,
        status: GrantStatus::NOT_ISSUED.0,
        handle: 0,
        dev_bus_addr: 0,
    };

    /// Makes a request that maps what `domain` grants as `reference` for the kernel at `va`, in
    /// place of the present mapping.
    ///
    /// ```
    /// use hypercall::grants::{GrantAccess, GrantMap, GrantRef};
    /// use hypercall::{DomId, GuestVa};
    ///
    /// let va = GuestVa::new(0xffff_8800_0000_0000)?;
    /// let map = GrantMap::kernel(va, DomId(1), GrantRef(8), GrantAccess::ReadOnly);
    /// # let _ = map;
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    #[must_use]
    pub const fn kernel(
        va: GuestVa,
        domain: DomId,
        reference: GrantRef,
        access: GrantAccess,
    ) -> Self {
        let readonly = match access {
            GrantAccess::ReadWrite => 0,
            GrantAccess::ReadOnly => flags::READONLY,
        };
        Self {
            host_addr: va.raw(),
            flags: flags::HOST_MAP | readonly,
            reference: reference.0,
            domain: domain.0,
            ..Self::EMPTY
        }
    }

    /// Returns Xen's answer.
    #[must_use]
    pub const fn status(&self) -> GrantStatus {
        GrantStatus(self.status)
    }

    /// Returns the frame that Xen mapped, if it did.
    #[must_use]
    pub const fn mfn(&self) -> Option<Mfn> {
        match self.status {
            0 => Some(Mfn::new(self.dev_bus_addr >> PAGE_SHIFT)),
            _ => None,
        }
    }
}

/// One element of `GNTTABOP_unmap_grant_ref` (`struct gnttab_unmap_grant_ref`, 24 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields of Xen's public/grant_table.h, under their own names")]
pub struct GrantUnmap {
    pub host_addr: u64,
    pub dev_bus_addr: u64,
    pub handle: u32,
    pub status: i16,
}

impl GrantUnmap {
    /// A placeholder to build storage with; Xen refuses it.
    pub const EMPTY: Self =
        Self { host_addr: 0, dev_bus_addr: 0, handle: u32::MAX, status: GrantStatus::NOT_ISSUED.0 };

    /// Makes a request that unmaps the grant at `va`, and leaves nothing mapped there.
    #[must_use]
    pub const fn kernel(va: GuestVa, handle: GrantHandle) -> Self {
        Self { host_addr: va.raw(), handle: handle.0, ..Self::EMPTY }
    }

    /// Returns Xen's answer.
    #[must_use]
    pub const fn status(&self) -> GrantStatus {
        GrantStatus(self.status)
    }
}

/// Maps other domains' frames, and finds the guest's own grant table.
///
/// # Safety
/// The implementer puts requests to the Xen that the guest runs on, or to something that behaves as
/// Xen does, and writes the answers where Xen would. A status of success means that the mapping is
/// made, or is gone (I-2).
pub unsafe trait Grants {
    /// Maps grants (`GNTTABOP_map_grant_ref`). Each element's `status` holds its outcome.
    ///
    /// # Errors
    /// Only if the hypercall as a whole was refused. Elements that Xen did not look at keep
    /// [`GrantStatus::NOT_ISSUED`].
    ///
    /// # Hypercalls
    /// One `grant_table_op`; none if there are no elements.
    ///
    /// # Safety
    /// The caller owns each page at whose address a frame is mapped, and no Rust object lives there
    /// (I-2).
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error>;

    /// Unmaps grants (`GNTTABOP_unmap_grant_ref`). Each element's `status` holds its outcome.
    ///
    /// # Errors
    /// As for [`grant_map`](Self::grant_map).
    ///
    /// # Hypercalls
    /// One `grant_table_op`; none if there are no elements.
    ///
    /// # Safety
    /// Nobody uses the mappings any more.
    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error>;

    /// Requests a grant table of `frames.len()` frames, and stores their numbers in `frames`
    /// (`GNTTABOP_setup_table`, version 1).
    ///
    /// # Errors
    /// The hypercall's errno, or `EINVAL` for a status that is not success.
    ///
    /// # Hypercalls
    /// One `grant_table_op`.
    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error>;
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: forwards to a machine that promises the same.
unsafe impl<M: Grants + ?Sized> Grants for &M {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { (**self).grant_map(maps) }
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { (**self).grant_unmap(unmaps) }
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        (**self).grant_table(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_make_xens_words() {
        let va = GuestVa::new(0xffff_8880_0000_5000).expect("a guest address");
        let map = GrantMap::kernel(va, DomId(3), GrantRef(9), GrantAccess::ReadOnly);
        assert_eq!((map.flags, map.reference, map.domain), (6, 9, 3));
        assert_eq!((map.status(), map.mfn()), (GrantStatus::NOT_ISSUED, None));
        let done = GrantMap { status: 0, dev_bus_addr: 0x7000, ..map };
        assert_eq!(done.mfn(), Some(Mfn::new(7)));
        assert_eq!(GrantUnmap::kernel(va, GrantHandle(4)).handle, 4);
    }

    #[test]
    fn a_status_has_a_name_or_a_number() {
        assert_eq!(GrantStatus(-9).to_string(), "GNTST_bad_page (-9)");
        assert_eq!(GrantStatus(-77).to_string(), "grant status -77");
    }
}
