//! Why a grant cannot be given, ended, mapped or unmapped.

use core::fmt;

use hypercall::grants::{GrantRef, GrantStatus};
use hypercall::{Error, GuestVa, Mfn, Pfn};

use super::entry::Outstanding;
use crate::error::P2mError;

/// Why a grant cannot be given, ended, mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The frame to grant is not the guest's; or the pfn for a grant cannot be marked, or has lost
    /// its mark.
    P2m(P2mError),
    /// The table has no such entry.
    NoSuchEntry(GrantRef),
    /// The entry is in use.
    Taken(Outstanding),
    /// The entry no longer holds the grant. Only Xen and this code write the table, so the domain
    /// was restored since, with a new table.
    NotGranted(GrantRef),
    /// The domain was restored since, with a new table. The entry may hold another grant.
    OtherTable(GrantRef),
    /// The other domain has the frame mapped, and nothing can force it back. The grant stays.
    StillMapped(Outstanding),
    /// The frame's number does not fit a version 1 entry.
    NoFrame(Mfn),
    /// A grant is already mapped for this pfn, or will be by another part of the request.
    PfnTaken(Pfn),
    /// A grant is already mapped in the page of this address, or will be by another part of the
    /// request. Xen would replace one by the other, which could never be unmapped again.
    AddressTaken(GuestVa),
    /// The list has no place for the mapping of this pfn.
    NoPlace(Pfn),
    /// No grant is mapped for this pfn.
    NotMapped(Pfn),
    /// Xen refused to map or unmap the grant of this pfn.
    Refused {
        /// The pfn.
        pfn: Pfn,
        /// Xen's answer for its slot.
        status: GrantStatus,
    },
    /// Xen refused the whole hypercall, and with it the grant of this pfn.
    Call {
        /// The pfn.
        pfn: Pfn,
        /// The refusal.
        error: Error,
    },
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => error.fmt(f),
            Self::NoSuchEntry(reference) => {
                write!(f, "the grant table has no entry {}", reference.0)
            }
            Self::Taken(grant) => write!(f, "the entry is in use: {grant}"),
            Self::NotGranted(reference) => {
                write!(f, "entry {} no longer holds the grant", reference.0)
            }
            Self::OtherTable(reference) => {
                write!(f, "the table in which entry {} held the grant is gone", reference.0)
            }
            Self::StillMapped(grant) => write!(f, "{grant}: it cannot be ended"),
            Self::NoFrame(mfn) => write!(f, "mfn {mfn} does not fit a grant entry"),
            Self::PfnTaken(pfn) => {
                write!(f, "pfn {pfn} has a grant already, or is twice in the request")
            }
            Self::AddressTaken(va) => {
                write!(f, "the page of {va} has a grant already, or is twice in the request")
            }
            Self::NoPlace(pfn) => write!(f, "the list of mappings has no place for pfn {pfn}"),
            Self::NotMapped(pfn) => write!(f, "no grant is mapped as pfn {pfn}"),
            Self::Refused { pfn, status } => write!(f, "the grant of pfn {pfn}: {status}"),
            Self::Call { pfn, error } => write!(f, "the grant of pfn {pfn}: {error}"),
        }
    }
}

impl core::error::Error for GrantError {}

impl From<P2mError> for GrantError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}
