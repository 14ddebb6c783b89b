//! What can go wrong, with the values that matter.

use core::fmt;

use hypercall::{
    AccessError, BatchError, Frames, Full, GuestVa, Mfn, NotGuestVa, Pfn, Pte, Uncertain,
};
use p2m::{P2mError, Pfns, WalkError};

use crate::uses::{Access, FrameUse};

/// Why there is no direct map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyError {
    /// No region is RAM.
    NoMemory,
    /// A region is empty, or passes the end of the number space.
    RegionSize(Pfns),
    /// A region begins before the one in front of it ends.
    RegionOverlap {
        /// The region.
        pfns: Pfns,
        /// Where the one in front of it ends.
        before: Pfn,
    },
    /// Frames in use are not RAM.
    OutsideRam(FrameUse),
    /// Frames that an allocator gets when the builder's tables go are in another use as well.
    UseOverlap {
        /// The use that ends: the builder's tables, or its list.
        used: FrameUse,
        /// The other one.
        other: FrameUse,
    },
    /// The direct map does not begin with a root slot of the kernel's half, or reaches into the
    /// kernel's mapping.
    DirectMapPlace(GuestVa),
    /// The kernel's mapping does not begin with an L1 table.
    KernelPlace(GuestVa),
    /// The builder mapped nothing, or more than the RAM from pfn 0 on.
    KernelMapping {
        /// The pages it mapped.
        pages: u64,
    },
    /// The direct map would leave the kernel's half.
    Address(NotGuestVa),
    /// `start_info` has an address outside of the kernel's mapping.
    NotInKernelMapping(GuestVa),
    /// Too few free frames are mapped to build the first tables.
    MappedTooLittle {
        /// Free frames in one run.
        free: u64,
        /// Frames needed.
        needed: u64,
    },
    /// Too few frames were given for the kernel's own tables.
    TooFewFrames {
        /// Frames given.
        given: u64,
        /// Frames needed.
        needed: u64,
    },
    /// A round of the table buffer was dropped before it was finished, or could not be undone:
    /// which of its frames are tables is not known any more.
    RoundUnfinished {
        /// The buffer's frames.
        buffer: Pfns,
    },
    /// The table buffer has no frame left: the plan is not of this memory.
    BufferEmpty {
        /// The buffer's frames.
        buffer: Pfns,
    },
    /// The running root has something where the direct map is to be.
    RootSlotInUse {
        /// The first address that the slot spans.
        va: GuestVa,
        /// What is there.
        pte: Pte,
    },
    /// The frame map has something else for a pfn that a region says is the machine's own.
    NotIdentity(Pfn),
    /// A table cannot be read, a frame cannot be reached, or the frame map has nothing for a pfn
    /// that a region says is there.
    Walk(WalkError),
    /// The batch cannot hold what has to be sent together.
    NoStorage,
    /// Xen refused to change the entry that maps a frame.
    Protect {
        /// The frame.
        frame: Pfn,
        /// How the entry was to show it.
        access: Access,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to link a table, or to map a page of the machine's.
    Link {
        /// The frame that the entry leads to.
        mfn: Mfn,
        /// The same frame in the guest's terms, if it is the guest's.
        pfn: Option<Pfn>,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to flush the TLBs after tables were taken out again.
    Flush(BatchError),
    /// Xen refused to pin or load a root, or to unpin the other.
    Switch {
        /// The kernel's own root.
        root: Pfn,
        /// The refusal.
        error: BatchError,
    },
}

impl From<WalkError> for EarlyError {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<P2mError> for EarlyError {
    fn from(error: P2mError) -> Self {
        Self::Walk(error.into())
    }
}

impl From<AccessError> for EarlyError {
    fn from(error: AccessError) -> Self {
        Self::Walk(error.into())
    }
}

impl From<NotGuestVa> for EarlyError {
    fn from(error: NotGuestVa) -> Self {
        Self::Address(error)
    }
}

impl From<Full> for EarlyError {
    fn from(_: Full) -> Self {
        Self::NoStorage
    }
}

/// Prints a run as `pfns first..end`.
struct Run(Pfns);

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfns {}..{}", self.0.start, Pfn::new(self.0.end()))
    }
}

impl fmt::Display for FrameUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.kind, Run(self.pfns))
    }
}

impl fmt::Display for EarlyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoMemory => f.write_str("the memory map has no RAM"),
            Self::RegionSize(Pfns { start, count }) => {
                write!(f, "the memory map has a region of {count:#x} pages from pfn {start}")
            }
            Self::RegionOverlap { pfns, before } => {
                write!(f, "{} of the memory map begin before pfn {before}, ", Run(pfns))?;
                f.write_str("where the region before ends")
            }
            Self::OutsideRam(used) => write!(f, "{used} is not all RAM of the memory map"),
            Self::UseOverlap { used, other } => write!(f, "{used} and {other} overlap"),
            Self::DirectMapPlace(va) => {
                write!(f, "the direct map cannot be at {va}: it takes whole L4 slots of its own")
            }
            Self::KernelPlace(va) => {
                write!(f, "the kernel's mapping of pfn 0, {va}, is not a multiple of 2 MiB")
            }
            Self::KernelMapping { pages } => {
                write!(f, "the builder's mapping of {pages:#x} pages is not of the RAM from pfn 0")
            }
            Self::Address(reason) => write!(f, "the direct map does not fit: {reason}"),
            Self::NotInKernelMapping(va) => {
                write!(f, "start_info has {va}, which the builder's mapping does not reach")
            }
            Self::MappedTooLittle { free, needed } => {
                write!(f, "the builder mapped too little: {free} free frames in a run, ")?;
                write!(f, "{needed} are needed")
            }
            Self::TooFewFrames { given, needed } => {
                write!(f, "the kernel's own tables take {needed} frames in a run, not {given}")
            }
            Self::RoundUnfinished { buffer } => {
                write!(f, "a round of the table buffer, {}, was never finished", Run(buffer))
            }
            Self::BufferEmpty { buffer } => {
                write!(f, "the table buffer, {}, has no frame left: plan again", Run(buffer))
            }
            Self::RootSlotInUse { va, pte } => {
                write!(f, "the root has {pte} for {va}, where the direct map is to be")
            }
            Self::NotIdentity(pfn) => {
                write!(f, "pfn {pfn} is to be the machine's, and the frame map says otherwise")
            }
            Self::Walk(error) => error.fmt(f),
            Self::NoStorage => f.write_str("the batch is too small: give it storage"),
            Self::Protect { frame, access: Access::ReadOnly, error } => {
                write!(f, "pfn {frame} cannot be made read-only: {error}")
            }
            Self::Protect { frame, access: Access::Writable, error } => {
                write!(f, "pfn {frame} cannot be made writable: {error}")
            }
            Self::Link { mfn, pfn: Some(pfn), error } => {
                write!(f, "pfn {pfn} (mfn {mfn}) cannot be linked: {error}")
            }
            Self::Link { mfn, pfn: None, error } => {
                write!(f, "mfn {mfn} cannot be mapped: {error}")
            }
            Self::Flush(error) => write!(f, "the TLBs cannot be flushed: {error}"),
            Self::Switch { root, error } => {
                write!(f, "cannot switch between the builder's root and pfn {root}: {error}")
            }
        }
    }
}

impl core::error::Error for EarlyError {}

/// A round that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the round has not happened"]
pub struct RoundError {
    /// Why.
    pub failure: EarlyError,
    /// Whether everything is as it was before the round. If not, some of its frames may still be
    /// tables, so none of them is anyone's, and the direct map reaches no further than before.
    pub undo: Result<(), EarlyError>,
}

impl From<EarlyError> for RoundError {
    fn from(failure: EarlyError) -> Self {
        Self { failure, undo: Ok(()) }
    }
}

impl fmt::Display for RoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.undo {
            Ok(()) => write!(f, "{}; nothing has changed", self.failure),
            Err(undo) => write!(f, "{}; undoing it failed: {undo}", self.failure),
        }
    }
}

impl core::error::Error for RoundError {}

/// The builder's tables were not replaced.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the frames are in here"]
pub struct ReplaceError {
    /// Why.
    pub failure: EarlyError,
    /// Whether everything is as it was before. If not, the kernel runs on one of the two roots, and
    /// none of the frames that either is made of is free.
    pub undo: Result<(), EarlyError>,
    /// `Ok`, if everything is as before: all frames that came in. `Err`, if not: those that were to
    /// become tables, of which some may be tables now. They belong in a quarantine.
    pub frames: Result<Frames, Uncertain>,
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure, undo, frames } = self;
        write!(f, "the builder's tables stay: {}", RoundError { failure: *failure, undo: *undo })?;
        match frames {
            Ok(_) => Ok(()),
            Err(doubtful) => write!(f, "; {doubtful} may be in use as tables"),
        }
    }
}

impl core::error::Error for ReplaceError {}
