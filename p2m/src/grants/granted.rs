//! What this guest grants to others: its own grant table, version 1.
//!
//! ```text
//!   63            32 31    16 15       0
//!   frame            domain   flags          one entry, 8 bytes
//! ```
//! An entry is one word to us: a single store grants, a compare-and-swap ends a grant only if
//! nobody has the frame mapped at that moment. Xen sets the marks of those who do in the same word.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use hypercall::{DomId, GrantAccess, GrantRef, Mfn};

/// `GTF_permit_access`.
const PERMIT_ACCESS: u64 = 1;
/// `GTF_readonly`.
const READONLY: u64 = 4;
/// `GTF_reading` and `GTF_writing`: somebody has it mapped.
const IN_USE: u64 = 8 | 16;

/// The guest's grant table, in memory that it shares with Xen.
#[derive(Clone, Copy, Debug)]
pub struct Granted<'a> {
    entries: &'a [AtomicU64],
}

/// A frame that others may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its entry.
    pub reference: GrantRef,
    /// Who may map it.
    pub domain: DomId,
    /// The frame.
    pub mfn: Mfn,
    /// Whether somebody has it mapped.
    pub is_mapped: bool,
}

/// Why a grant cannot be given or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantError {
    /// The table has no such entry.
    NoSuchEntry(GrantRef),
    /// The entry is in use.
    Taken(Outstanding),
    /// Nothing is granted there: it was ended before, or never given.
    NotGranted(GrantRef),
    /// The other domain has the frame mapped; nothing can force it back. The grant stays.
    StillMapped(Outstanding),
    /// The frame's number does not fit a version 1 entry.
    NoFrame(Mfn),
}

impl fmt::Display for Outstanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reference, domain, mfn, is_mapped } = self;
        let mapped = if *is_mapped { ", which has it mapped" } else { "" };
        write!(f, "grant {}: mfn {mfn} to domain {}{mapped}", reference.0, domain.0)
    }
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchEntry(reference) => {
                write!(f, "the grant table has no entry {}", reference.0)
            }
            Self::Taken(grant) => write!(f, "the entry is taken by {grant}"),
            Self::NotGranted(reference) => write!(f, "entry {} grants nothing", reference.0),
            Self::StillMapped(grant) => write!(f, "{grant}: it cannot be ended"),
            Self::NoFrame(mfn) => write!(f, "mfn {mfn} does not fit a grant entry"),
        }
    }
}

impl core::error::Error for GrantError {}

impl<'a> Granted<'a> {
    /// Over the guest's grant table, 512 entries in each of its frames.
    #[must_use]
    pub const fn new(entries: &'a [AtomicU64]) -> Self {
        Self { entries }
    }

    /// Lets `domain` map `mfn`.
    ///
    /// # Errors
    /// [`GrantError::Taken`], [`GrantError::NoSuchEntry`], [`GrantError::NoFrame`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{DomId, GrantAccess, GrantRef, Mfn};
    /// use p2m::Granted;
    ///
    /// let table = [const { AtomicU64::new(0) }; 512]; // the guest's is shared with Xen
    /// let granted = Granted::new(&table);
    /// granted.grant(GrantRef(8), DomId(0), Mfn::new(0x203), GrantAccess::ReadOnly)?;
    /// assert_eq!(granted.outstanding().count(), 1);
    /// assert_eq!(granted.end(GrantRef(8))?, Mfn::new(0x203));
    /// # Ok::<(), p2m::GrantError>(())
    /// ```
    pub fn grant(
        &self,
        reference: GrantRef,
        domain: DomId,
        mfn: Mfn,
        access: GrantAccess,
    ) -> Result<(), GrantError> {
        let frame = u32::try_from(mfn.raw()).map_err(|_| GrantError::NoFrame(mfn))?;
        let readonly = match access {
            GrantAccess::ReadWrite => 0,
            GrantAccess::ReadOnly => READONLY,
        };
        let word = u64::from(frame) << 32 | u64::from(domain.0) << 16 | PERMIT_ACCESS | readonly;
        let entry = self.entry(reference)?;
        match entry.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(found) => Err(GrantError::Taken(decode(reference, found))),
        }
    }

    /// Ends a grant: the frame is the guest's alone again.
    ///
    /// # Errors
    /// [`GrantError::StillMapped`], [`GrantError::NotGranted`], [`GrantError::NoSuchEntry`].
    pub fn end(&self, reference: GrantRef) -> Result<Mfn, GrantError> {
        let entry = self.entry(reference)?;
        let mut word = entry.load(Ordering::Acquire);
        loop {
            if word == 0 {
                return Err(GrantError::NotGranted(reference));
            }
            if word & IN_USE != 0 {
                return Err(GrantError::StillMapped(decode(reference, word)));
            }
            match entry.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(decode(reference, word).mfn),
                Err(found) => word = found,
            }
        }
    }

    /// The grants that were given and not ended.
    pub fn outstanding(&self) -> impl Iterator<Item = Outstanding> + 'a {
        (0..).map(GrantRef).zip(self.entries).filter_map(|(reference, entry)| {
            let word = entry.load(Ordering::Acquire);
            (word != 0).then(|| decode(reference, word))
        })
    }

    fn entry(&self, reference: GrantRef) -> Result<&'a AtomicU64, GrantError> {
        let index = usize::try_from(reference.0).ok();
        index.and_then(|index| self.entries.get(index)).ok_or(GrantError::NoSuchEntry(reference))
    }
}

const fn decode(reference: GrantRef, word: u64) -> Outstanding {
    Outstanding {
        reference,
        domain: DomId((word >> 16 & 0xffff) as u16),
        mfn: Mfn::new(word >> 32),
        is_mapped: word & IN_USE != 0,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn table() -> [AtomicU64; 4] {
        Default::default()
    }

    #[test]
    fn a_grant_is_given_listed_and_ended_once() {
        let entries = table();
        let granted = Granted::new(&entries);
        let (domain, mfn) = (DomId(3), Mfn::new(0x777));
        granted.grant(GrantRef(2), domain, mfn, GrantAccess::ReadWrite).expect("free");
        let grant = Outstanding { reference: GrantRef(2), domain, mfn, is_mapped: false };
        assert_eq!(granted.outstanding().collect::<Vec<_>>(), [grant]);
        let again = granted.grant(GrantRef(2), domain, mfn, GrantAccess::ReadOnly);
        assert_eq!(again, Err(GrantError::Taken(grant)));
        assert_eq!(granted.end(GrantRef(2)), Ok(mfn));
        assert_eq!(granted.end(GrantRef(2)), Err(GrantError::NotGranted(GrantRef(2))));
        assert_eq!(granted.end(GrantRef(4)), Err(GrantError::NoSuchEntry(GrantRef(4))));
    }

    #[test]
    fn a_frame_that_is_mapped_elsewhere_is_not_taken_back() {
        let entries = table();
        let granted = Granted::new(&entries);
        granted.grant(GrantRef(1), DomId(3), Mfn::new(7), GrantAccess::ReadOnly).expect("free");
        entries[1].fetch_or(8, Ordering::Relaxed);
        let error = granted.end(GrantRef(1)).expect_err("mapped");
        assert_eq!(
            error.to_string(),
            "grant 1: mfn 00007 to domain 3, which has it mapped: it cannot be ended"
        );
        entries[1].fetch_and(!8, Ordering::Relaxed);
        assert_eq!(granted.end(GrantRef(1)), Ok(Mfn::new(7)));
    }

    #[test]
    fn an_entry_has_the_layout_of_the_header() {
        let entries = table();
        let granted = Granted::new(&entries);
        granted
            .grant(GrantRef(0), DomId(0x123), Mfn::new(0x4567), GrantAccess::ReadOnly)
            .expect("free");
        let bytes = entries[0].load(Ordering::Relaxed).to_le_bytes();
        assert_eq!(bytes, [5, 0, 0x23, 0x01, 0x67, 0x45, 0, 0]);
    }
}
