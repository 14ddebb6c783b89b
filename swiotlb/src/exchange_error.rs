//! Why frames were not exchanged.

use core::fmt;

use hypercall::{AccessError, BatchError, Error as CallError, Mfn, Pfn, Pte};
use p2m::{NoDirectEntry, P2mError};

use crate::address::DmaMask;

/// Why frames were not exchanged, or are not a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeError {
    /// The frame map does not call the frame the guest's own memory.
    P2m(P2mError),
    /// A frame could not be read or written.
    Access(AccessError),
    /// The direct mapping has no table for a frame.
    NoDirectEntry(NoDirectEntry),
    /// The direct mapping does not map the frame writable at its place.
    NotMapped {
        /// The pfn.
        pfn: Pfn,
        /// Its frame.
        mfn: Mfn,
        /// The entry of the direct mapping.
        pte: Pte,
    },
    /// The frames are not a whole number of runs.
    NotWhole {
        /// Frames given.
        frames: u64,
        /// log2 of a run.
        order: u32,
    },
    /// There are no frames: a region has at least one run.
    NoFrames,
    /// The region has fewer runs.
    NoSuchRun {
        /// The run asked for, from 0 on.
        run: u64,
        /// The number of runs.
        runs: u64,
    },
    /// The run is not contiguous in the machine, or not aligned to its size.
    Scattered {
        /// The first pfn of the run.
        pfn: Pfn,
    },
    /// The scratch memory is too small.
    Scratch {
        /// Frames that it must have room for: one update and two extents each, and one operation.
        frames: u64,
    },
    /// Xen does not exchange runs this long for this domain.
    OrderLimit {
        /// log2 of the frames in a run.
        order: u32,
    },
    /// Xen has no free run of this length that the mask reaches.
    NoRun {
        /// log2 of the frames in a run.
        order: u32,
        /// The addresses wanted.
        mask: DmaMask,
    },
    /// A frame of the run that begins at this pfn is mapped elsewhere, pinned or granted.
    InUse {
        /// The first pfn of the run.
        pfn: Pfn,
    },
    /// Xen exchanged fewer frames than asked, without an error.
    Short {
        /// Frames asked for.
        asked: u64,
        /// Frames exchanged.
        done: u64,
    },
    /// A frame is not where it should be.
    WrongFrame {
        /// The pfn.
        pfn: Pfn,
        /// The frame behind it.
        mfn: Mfn,
        /// log2 of the frames in its run.
        order: u32,
        /// The addresses wanted.
        mask: DmaMask,
    },
    /// M2P and P2M disagree.
    M2p {
        /// The pfn.
        pfn: Pfn,
        /// Its frame in P2M.
        mfn: Mfn,
        /// The pfn of that frame in M2P.
        found: Option<Pfn>,
    },
    /// Xen refused a change of the direct mapping.
    Refused {
        /// The first of the frames that were to change.
        pfn: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused the exchange, with an errno that means no limit.
    Call {
        /// The first frame that was not exchanged.
        pfn: Pfn,
        /// The refusal.
        error: CallError,
    },
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => error.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::NoDirectEntry(error) => error.fmt(f),
            Self::NotMapped { pfn, mfn, pte } => write!(
                f,
                "pfn {pfn} is mfn {mfn}, but its entry in the direct mapping is {pte}: only memory \
                 that is mapped there, writable, can be exchanged"
            ),
            Self::NotWhole { frames, order } => {
                write!(f, "{frames} frames are not a whole number of runs of 2^{order}")
            }
            Self::NoFrames => f.write_str("no frames were given: a region has at least one run"),
            Self::NoSuchRun { run, runs } => {
                write!(f, "the region has no run {run}, only {runs}, from 0 on")
            }
            Self::Scattered { pfn } => write!(
                f,
                "the run of pfn {pfn} is not contiguous in the machine and aligned to its size"
            ),
            Self::Scratch { frames } => write!(
                f,
                "the scratch memory is too small: it needs {frames} updates, {} extents and one \
                 operation",
                2 * frames
            ),
            Self::OrderLimit { order } => write!(
                f,
                "Xen does not exchange runs of 2^{order} frames for this domain: take a smaller \
                 order (a domU may have 9)"
            ),
            Self::NoRun { order, mask } => write!(
                f,
                "Xen has no run of 2^{order} free frames {mask}: take a smaller order or a wider \
                 mask, or leave Xen more memory there"
            ),
            Self::InUse { pfn } => write!(
                f,
                "a frame of the run from pfn {pfn} on is in use elsewhere: mapped, pinned or \
                 granted"
            ),
            Self::Short { asked, done } => {
                write!(f, "Xen exchanged {done} frames of {asked} without an error")
            }
            Self::WrongFrame { pfn, mfn, order, mask } => {
                write!(f, "pfn {pfn} is mfn {mfn}, which is not {mask} in a run of 2^{order}")
            }
            Self::M2p { pfn, mfn, found: Some(found) } => {
                write!(f, "mfn {mfn} is pfn {pfn} in P2M and {found} in M2P")
            }
            Self::M2p { pfn, mfn, found: None } => {
                write!(f, "mfn {mfn} is pfn {pfn} in P2M and nothing in M2P")
            }
            Self::Refused { pfn, error } => {
                write!(f, "the direct mapping from pfn {pfn} on cannot be changed: {error}")
            }
            Self::Call { pfn, error } => {
                write!(f, "the frames from pfn {pfn} on are not exchanged: {error}")
            }
        }
    }
}

impl core::error::Error for ExchangeError {}

impl From<P2mError> for ExchangeError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for ExchangeError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl From<NoDirectEntry> for ExchangeError {
    fn from(error: NoDirectEntry) -> Self {
        Self::NoDirectEntry(error)
    }
}
