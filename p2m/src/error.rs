//! What can be wrong with a pfn, an mfn, a change of the map, or the memory of its list.

use core::fmt;

use hypercall::{AccessError, BatchError, Full, GuestVa, Mfn, Pfn};

use crate::entry::P2mEntry;

/// Why a look-up or a change failed. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2mError {
    /// The list has no word.
    Empty,
    /// The pfn is past the end of the map.
    OutOfRange {
        /// The pfn.
        pfn: Pfn,
        /// The number of pfns in the map.
        len: u64,
    },
    /// The pfn has no memory.
    Absent(Pfn),
    /// The pfn is not the guest's own memory, but a device's or another domain's.
    NotRam {
        /// The pfn.
        pfn: Pfn,
        /// What it is.
        entry: P2mEntry,
    },
    /// The pfn is not empty.
    Occupied {
        /// The pfn.
        pfn: Pfn,
        /// What it is.
        entry: P2mEntry,
    },
    /// The pfn is not a foreign frame.
    NotForeign {
        /// The pfn.
        pfn: Pfn,
        /// What it is.
        entry: P2mEntry,
    },
    /// The pfn is not an identity frame.
    NotIdentity {
        /// The pfn.
        pfn: Pfn,
        /// What it is.
        entry: P2mEntry,
    },
    /// The pfn is in a hole whose words have no memory yet: reserve it first (`Window::reserve`).
    NotReserved(Pfn),
    /// No machine has a frame of this number.
    NoFrame(Mfn),
    /// M2P knows no pfn for the mfn: it is not this guest's RAM.
    NotInM2p(Mfn),
    /// M2P names a pfn that P2M gives another frame, or none. The mfn is foreign, or one of the
    /// maps is wrong.
    Disagreement {
        /// The frame asked for.
        mfn: Mfn,
        /// The pfn that M2P names.
        m2p: Pfn,
        /// The pfn in P2M, if it has it.
        p2m: Option<P2mEntry>,
    },
}

/// Completes a sentence that begins with the pfn.
impl fmt::Display for P2mEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram(mfn) => write!(f, "is mfn {mfn}"),
            Self::Absent => f.write_str("has no memory"),
            Self::Identity => f.write_str("is an identity frame"),
            Self::Foreign { owner, mfn } => write!(f, "is mfn {mfn} of domain {}", owner.0),
        }
    }
}

impl fmt::Display for P2mError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the frame list is empty"),
            Self::OutOfRange { pfn, len } => {
                write!(f, "pfn {pfn} is out of range: the frame map has {len:#x} entries")
            }
            Self::Absent(pfn) => write!(f, "pfn {pfn} has no memory"),
            Self::NotRam { pfn, entry } => write!(f, "pfn {pfn} {entry}, not the guest's RAM"),
            Self::Occupied { pfn, entry } => write!(f, "pfn {pfn} {entry} already"),
            Self::NotForeign { pfn, entry } => write!(f, "pfn {pfn} {entry}, not a foreign frame"),
            Self::NotIdentity { pfn, entry } => write!(f, "pfn {pfn} {entry}, not an identity"),
            Self::NotReserved(pfn) => {
                write!(f, "pfn {pfn} is in a hole: reserve it before use")
            }
            Self::NoFrame(mfn) => write!(f, "mfn {mfn} is beyond the frames of any machine"),
            Self::NotInM2p(mfn) => write!(f, "mfn {mfn} has no pfn in M2P: it is not this guest's"),
            Self::Disagreement { mfn, m2p, p2m } => {
                write!(f, "M2P says that mfn {mfn} is pfn {m2p}, P2M says that this pfn ")?;
                match p2m {
                    Some(entry) => write!(f, "{entry}"),
                    None => f.write_str("is out of range"),
                }
            }
        }
    }
}

impl core::error::Error for P2mError {}

/// Why a list cannot be in a window, grow there, or be described by a frame list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// The window needs another number of frames.
    Frames {
        /// Frames needed.
        needed: u64,
        /// Frames given.
        given: u64,
    },
    /// The address does not begin a root slot.
    Unaligned(GuestVa),
    /// There is no room for so many pfns.
    Capacity {
        /// Pfns wanted.
        pfns: u64,
        /// Pfns possible.
        capacity: u64,
    },
    /// The frame list has no place for another page. It needs one for each GiB.
    NoPlace {
        /// Places there are.
        places: usize,
    },
    /// The map is not the one in the window at this address.
    OtherMap(GuestVa),
    /// There is no frame for a table or page that the word of this pfn needs.
    OutOfFrames(Pfn),
    /// A frame is not the guest's, or a pfn cannot change.
    P2m(P2mError),
    /// A table or page cannot be reached.
    Access(AccessError),
    /// The batch has no room.
    Full(Full),
    /// Xen refused to protect a table.
    Protect {
        /// The table.
        table: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused a change of the window's entries.
    Refused {
        /// The first pfn whose word the change was for.
        pfn: Pfn,
        /// The refusal.
        error: BatchError,
    },
}

impl fmt::Display for ListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames { needed, given } => {
                write!(f, "the window needs {needed} frames, not {given}")
            }
            Self::Unaligned(va) => write!(f, "{va} is not the first address of a root slot"),
            Self::Capacity { pfns, capacity } => {
                write!(f, "there is room for the words of {capacity:#x} pfns, not of {pfns:#x}")
            }
            Self::NoPlace { places } => {
                write!(f, "the frame list has places for {places} pages, one for each GiB")
            }
            Self::OtherMap(va) => write!(f, "the frame map is not the one in the window at {va}"),
            Self::OutOfFrames(pfn) => write!(f, "no frame for the word of pfn {pfn}"),
            Self::P2m(error) => error.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::Full(full) => full.fmt(f),
            Self::Protect { table, error } => {
                write!(f, "table pfn {table} cannot be protected: {error}")
            }
            Self::Refused { pfn, error } => {
                write!(f, "the window cannot map the words from pfn {pfn} on: {error}")
            }
        }
    }
}

impl core::error::Error for ListError {}

impl From<P2mError> for ListError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for ListError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl From<Full> for ListError {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}
