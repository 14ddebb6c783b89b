//! The frame map of a Xen PV guest: which machine frame stands behind each of the guest's pages.
//!
//! The guest keeps P2M (pfn to mfn); Xen keeps M2P (mfn to pfn), believes whatever the guest or a
//! toolstack last put there, and lets the guest read it. So P2M is the authority here, and M2P an
//! index into it: an answer of M2P counts only if P2M agrees.
//!
//! # Main types
//! * [`P2m`]: the map, over the list that the domain builder left in the guest's memory. Adopting
//!   copies nothing.
//! * [`P2mEntry`]: what a pfn stands for.
//! * [`P2mError`]: a pfn out of range, a pfn without memory, an mfn that is not the guest's, or P2M
//!   and M2P at odds.
//!
//! # What it assumes
//! The list is the guest's own memory and entries change by single 8-byte stores, as the toolstack
//! requires when it reads the list (docs/abi.md).
//!
//! # What it prevents, and what not
//! A stale or foreign M2P answer never becomes a pfn. Nothing here walks page tables, and nothing
//! here can tell that an entry of the list itself is wrong.
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use hypercall::{Mfn, Pfn};
//! use p2m::{P2m, P2mError};
//!
//! let list = [AtomicU64::new(0x8df82b), AtomicU64::new(u64::MAX)];
//! let p2m = P2m::adopt(&list)?;
//! assert_eq!(p2m.mfn(Pfn::new(0)), Ok(Mfn::new(0x8df82b)));
//! assert_eq!(p2m.mfn(Pfn::new(1)), Err(P2mError::Absent(Pfn::new(1))));
//! # Ok::<(), P2mError>(())
//! ```
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use hypercall::{FrameAccess, Mfn, Pfn};

/// `INVALID_P2M_ENTRY`: no memory behind the pfn.
const ABSENT: u64 = u64::MAX;

/// What a pfn stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2mEntry {
    /// Memory of the guest's own.
    Ram(Mfn),
    /// Nothing.
    Absent,
}

/// The frame map, over a list in the guest's memory with one word for each pfn from 0.
///
/// Look-ups are a bounds check and a load, from any number of vCPUs at once.
#[derive(Clone, Copy, Debug)]
pub struct P2m<'a> {
    list: &'a [AtomicU64],
}

/// What a look-up can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2mError {
    /// The list has no word at all.
    Empty,
    /// The pfn lies behind the end of the map.
    OutOfRange {
        /// The pfn.
        pfn: Pfn,
        /// How many the map has.
        len: u64,
    },
    /// There is no memory behind the pfn.
    Absent(Pfn),
    /// M2P knows no pfn for the mfn: it is not this guest's RAM.
    NotInM2p(Mfn),
    /// M2P names a pfn that P2M gives another frame, or none: the mfn is foreign, or one of the
    /// maps is wrong.
    Disagreement {
        /// The frame asked for.
        mfn: Mfn,
        /// The pfn that M2P names.
        m2p: Pfn,
        /// What P2M says of that pfn, if it has it.
        p2m: Option<P2mEntry>,
    },
}

impl fmt::Display for P2mError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the frame list is empty"),
            Self::OutOfRange { pfn, len } => {
                write!(f, "pfn {pfn} is out of range: the frame map has {len:#x} entries")
            }
            Self::Absent(pfn) => write!(f, "pfn {pfn} has no memory"),
            Self::NotInM2p(mfn) => write!(f, "mfn {mfn} has no pfn in M2P: it is not this guest's"),
            Self::Disagreement { mfn, m2p, p2m } => {
                write!(f, "M2P says that mfn {mfn} is pfn {m2p}, P2M says that this pfn ")?;
                match p2m {
                    Some(P2mEntry::Ram(other)) => write!(f, "is mfn {other}"),
                    Some(P2mEntry::Absent) => f.write_str("has no memory"),
                    None => f.write_str("is out of range"),
                }
            }
        }
    }
}

impl core::error::Error for P2mError {}

impl<'a> P2m<'a> {
    /// Takes the domain builder's list (`start_info.mfn_list`, `nr_pages` words) as it lies in
    /// memory.
    ///
    /// # Errors
    /// [`P2mError::Empty`].
    pub const fn adopt(list: &'a [AtomicU64]) -> Result<Self, P2mError> {
        if list.is_empty() { Err(P2mError::Empty) } else { Ok(Self { list }) }
    }

    /// How many pfns the map covers: `0..len`.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.list.len() as u64
    }

    /// Whether the map covers no pfn; [`adopt`](Self::adopt) refuses such a list.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What `pfn` stands for.
    ///
    /// # Errors
    /// [`P2mError::OutOfRange`].
    pub fn entry(&self, pfn: Pfn) -> Result<P2mEntry, P2mError> {
        let index = usize::try_from(pfn.raw()).ok();
        let word = index
            .and_then(|index| self.list.get(index))
            .ok_or(P2mError::OutOfRange { pfn, len: self.len() })?;
        Ok(match word.load(Ordering::Relaxed) {
            ABSENT => P2mEntry::Absent,
            mfn => P2mEntry::Ram(Mfn::new(mfn)),
        })
    }

    /// The machine frame behind `pfn`.
    ///
    /// # Errors
    /// [`P2mError::OutOfRange`], [`P2mError::Absent`].
    pub fn mfn(&self, pfn: Pfn) -> Result<Mfn, P2mError> {
        match self.entry(pfn)? {
            P2mEntry::Ram(mfn) => Ok(mfn),
            P2mEntry::Absent => Err(P2mError::Absent(pfn)),
        }
    }

    /// The guest's name for `mfn`: what M2P says, if P2M agrees.
    ///
    /// # Errors
    /// [`P2mError::NotInM2p`], [`P2mError::Disagreement`].
    ///
    /// # Hypercalls
    /// None: M2P is memory.
    pub fn pfn<M: FrameAccess + ?Sized>(&self, machine: &M, mfn: Mfn) -> Result<Pfn, P2mError> {
        let m2p = machine.machine_to_phys(mfn).ok_or(P2mError::NotInM2p(mfn))?;
        match self.entry(m2p) {
            Ok(P2mEntry::Ram(confirmed)) if confirmed == mfn => Ok(m2p),
            other => Err(P2mError::Disagreement { mfn, m2p, p2m: other.ok() }),
        }
    }
}
