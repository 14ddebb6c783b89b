//! Entries of the guest's own grant table, version 1.
//!
//! ```text
//!   63            32 31    16 15       0
//!   frame            domain   flags          one entry, 8 bytes
//! ```
//! An entry is used as one word: a single store grants, and a compare-and-swap ends a grant only if
//! nobody has the frame mapped at that moment. Xen keeps its marks for that in the same word.

use core::fmt;

use hypercall::grants::GrantRef;
use hypercall::{DomId, Mfn};

/// `GTF_permit_access`.
pub(super) const PERMIT_ACCESS: u64 = 1;
/// `GTF_readonly`.
pub(super) const READONLY: u64 = 4;
/// `GTF_reading` and `GTF_writing`: someone has it mapped.
pub(super) const IN_USE: u64 = 8 | 16;

/// A frame that others may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its entry.
    pub reference: GrantRef,
    /// The domain that may map it.
    pub domain: DomId,
    /// The frame.
    pub mfn: Mfn,
    /// Whether someone has it mapped.
    pub is_mapped: bool,
}

impl Outstanding {
    /// Decodes the word of an entry.
    pub(super) const fn decode(reference: GrantRef, word: u64) -> Self {
        Self {
            reference,
            domain: DomId((word >> 16 & 0xffff) as u16),
            mfn: Mfn::new(word >> 32),
            is_mapped: word & IN_USE != 0,
        }
    }
}

impl fmt::Display for Outstanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reference, domain, mfn, is_mapped } = self;
        let mapped = if *is_mapped { ", which has it mapped" } else { "" };
        write!(f, "grant {}: mfn {mfn} to domain {}{mapped}", reference.0, domain.0)
    }
}
