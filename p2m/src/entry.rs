//! The meaning of a word of the list.
//!
//! ```text
//!   63 62 61 60        55        40 39                0
//!    0  0  0  ..................... mfn                  Ram
//!    1  1  1  1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1  Absent (INVALID_P2M_ENTRY)
//!    0  1  0  0                                          Identity: the mfn is the pfn
//!    1  0  0  0 ..0  owner          mfn                  Foreign
//!    0  0  1  1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1  Absent, in a page that many holes share
//!    0  1  1  0                                          Identity, in a page that many holes share
//! ```
//!
//! The words of RAM and of absent frames, and the marks in bits 63 and 62, are those that
//! toolstacks and crash tools know from Linux. An identity word needs no number, since its place is
//! its number; so one page of them serves every hole. A foreign word names the owner, so the
//! accounts cannot disagree with the map. Bit 61 tells a writer, without a walk or a fault, that
//! the page is read-only and must be reserved first.

use hypercall::{DomId, Mfn, Pfn};

/// `INVALID_P2M_ENTRY`.
pub(crate) const ABSENT: u64 = u64::MAX;
const FOREIGN: u64 = 1 << 63;
/// An identity word.
pub(crate) const IDENTITY: u64 = 1 << 62;
/// Words from here up are not RAM.
pub(crate) const NOT_RAM: u64 = 1 << 61;
const SHARED: u64 = 1 << 61;
/// A word of the page behind absent holes.
pub(crate) const SHARED_ABSENT: u64 = SHARED | (SHARED - 1);
/// A word of the page behind identity holes.
pub(crate) const SHARED_IDENTITY: u64 = IDENTITY | SHARED;

const OWNER_SHIFT: u32 = 40;
const MFN_MASK: u64 = (1 << OWNER_SHIFT) - 1;

/// The meaning of a pfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum P2mEntry {
    /// The guest's own memory.
    Ram(Mfn),
    /// Nothing: never populated, or given back to Xen.
    Absent,
    /// The machine's frame of the same number, for devices. It is not RAM.
    Identity,
    /// Another domain's frame, mapped by grant or by privilege.
    Foreign {
        /// The other domain.
        owner: DomId,
        /// The frame.
        mfn: Mfn,
    },
}

impl P2mEntry {
    /// Returns the meaning of `word`. Every word has one.
    ///
    /// ```
    /// use hypercall::Mfn;
    /// use p2m::P2mEntry;
    ///
    /// assert_eq!(P2mEntry::decode(0x203), P2mEntry::Ram(Mfn::new(0x203)));
    /// assert_eq!(P2mEntry::decode(u64::MAX), P2mEntry::Absent);
    /// ```
    #[must_use]
    pub const fn decode(word: u64) -> Self {
        if word < NOT_RAM {
            Self::Ram(Mfn::new(word))
        } else if word == ABSENT {
            Self::Absent
        } else if word & FOREIGN != 0 {
            let owner = DomId((word >> OWNER_SHIFT & 0xffff) as u16);
            Self::Foreign { owner, mfn: Mfn::new(word & MFN_MASK) }
        } else if word & IDENTITY != 0 {
            Self::Identity
        } else {
            Self::Absent
        }
    }

    /// Returns the word for this, or `None` if no machine has a frame of that number.
    #[must_use]
    pub const fn encode(self) -> Option<u64> {
        match self {
            Self::Absent => Some(ABSENT),
            Self::Identity => Some(IDENTITY),
            Self::Ram(mfn) if mfn.raw() <= MFN_MASK => Some(mfn.raw()),
            Self::Foreign { owner, mfn } if mfn.raw() <= MFN_MASK => {
                Some(FOREIGN | (owner.0 as u64) << OWNER_SHIFT | mfn.raw())
            }
            Self::Ram(_) | Self::Foreign { .. } => None,
        }
    }

    /// Returns the machine frame that `pfn` leads to if this is its entry, RAM or not.
    #[must_use]
    pub const fn machine_frame(self, pfn: Pfn) -> Option<Mfn> {
        match self {
            Self::Ram(mfn) | Self::Foreign { mfn, .. } => Some(mfn),
            Self::Identity => Some(Mfn::new(pfn.raw())),
            Self::Absent => None,
        }
    }
}

/// Returns whether a word is in a page that holes share, which is read-only.
pub(crate) const fn is_shared(word: u64) -> bool {
    word == SHARED_ABSENT || word == SHARED_IDENTITY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_survives_its_word() {
        let foreign = P2mEntry::Foreign { owner: DomId(0x7ff0), mfn: Mfn::new(MFN_MASK) };
        let ram = [0, 1, 0x8d_f82b, MFN_MASK].map(|mfn| P2mEntry::Ram(Mfn::new(mfn)));
        for entry in [P2mEntry::Absent, P2mEntry::Identity, foreign].into_iter().chain(ram) {
            let word = entry.encode().expect("a frame of a machine");
            assert_eq!(P2mEntry::decode(word), entry, "{word:#x}");
            assert!(!is_shared(word), "{word:#x}");
        }
    }

    #[test]
    fn shared_words_mean_holes_and_are_told_from_private_ones() {
        assert_eq!(P2mEntry::decode(SHARED_ABSENT), P2mEntry::Absent);
        assert_eq!(P2mEntry::decode(SHARED_IDENTITY), P2mEntry::Identity);
        assert!(is_shared(SHARED_ABSENT) && is_shared(SHARED_IDENTITY));
        assert!(!is_shared(ABSENT) && !is_shared(IDENTITY) && !is_shared(u64::MAX ^ (1 << 62)));
    }

    #[test]
    fn linuxs_identity_words_are_understood() {
        assert_eq!(P2mEntry::decode(1 << 62 | 0xfee00), P2mEntry::Identity);
    }

    #[test]
    fn a_number_that_is_no_frame_has_no_word() {
        assert_eq!(P2mEntry::Ram(Mfn::new(MFN_MASK + 1)).encode(), None);
        let mfn = Mfn::new(u64::MAX);
        assert_eq!(P2mEntry::Foreign { owner: DomId(0), mfn }.encode(), None);
    }
}
