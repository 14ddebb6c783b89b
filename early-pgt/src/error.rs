//! Why the boot mapping could not be made.

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
    /// A region begins before the previous one ends.
    RegionOverlap {
        /// The region.
        pfns: Pfns,
        /// Where the previous one ends.
        before: Pfn,
    },
    /// Frames in use are not all RAM.
    OutsideRam(FrameUse),
    /// Frames that go to an allocator with the builder's tables have another use as well.
    UseOverlap {
        /// The use that ends: the builder's tables, or its list.
        used: FrameUse,
        /// The other use.
        other: FrameUse,
    },
    /// The direct map does not begin at a root slot of the kernel's half, or overlaps the kernel's
    /// mapping.
    DirectMapPlace(GuestVa),
    /// The kernel's mapping does not begin at an L1 table.
    KernelPlace(GuestVa),
    /// The builder mapped nothing, or more than the RAM from pfn 0 on.
    KernelMapping {
        /// The pages it mapped.
        pages: u64,
    },
    /// The direct map would leave the kernel's half.
    Address(NotGuestVa),
    /// `start_info` has an address outside the kernel's mapping.
    NotInKernelMapping(GuestVa),
    /// Too few free frames are mapped for the first tables.
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
    /// A round was dropped before it was finished, or could not be undone. Nobody knows which of
    /// its frames are tables.
    RoundUnfinished {
        /// The buffer's frames.
        buffer: Pfns,
    },
    /// The table buffer has no frame left: the plan was made for other memory.
    BufferEmpty {
        /// The buffer's frames.
        buffer: Pfns,
    },
    /// The running root has something where the direct map will be.
    RootSlotInUse {
        /// The first address that the slot spans.
        va: GuestVa,
        /// What is there.
        pte: Pte,
    },
    /// The frame map has something else for a pfn of an identity region.
    NotIdentity(Pfn),
    /// A table or frame cannot be read, or the frame map has nothing for a pfn of a region.
    Walk(WalkError),
    /// The batch cannot hold what must be sent together.
    NoStorage,
    /// Xen refused to change the entry that maps a frame.
    Protect {
        /// The frame.
        frame: Pfn,
        /// The access wanted.
        access: Access,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to link a table, or to map a page of the machine.
    Link {
        /// The frame that the entry leads to.
        mfn: Mfn,
        /// Its pfn, if the frame is the guest's.
        pfn: Option<Pfn>,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to flush the TLBs after tables were unlinked.
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
                write!(f, "{} of the memory map overlap the region before, ", Run(pfns))?;
                write!(f, "which ends at pfn {before}")
            }
            Self::OutsideRam(used) => write!(f, "{used} is not all RAM of the memory map"),
            Self::UseOverlap { used, other } => write!(f, "{used} and {other} overlap"),
            Self::DirectMapPlace(va) => {
                write!(f, "the direct map cannot be at {va}: it takes whole L4 slots of its own")
            }
            Self::KernelPlace(va) => {
                write!(f, "the kernel's mapping of pfn 0, {va}, is not at a multiple of 2 MiB")
            }
            Self::KernelMapping { pages } => {
                write!(f, "the builder mapped {pages:#x} pages, which are not RAM from pfn 0 on")
            }
            Self::Address(reason) => write!(f, "the direct map does not fit: {reason}"),
            Self::NotInKernelMapping(va) => {
                write!(f, "start_info has {va}, which is outside the builder's mapping")
            }
            Self::MappedTooLittle { free, needed } => {
                write!(f, "the builder mapped too little: {free} free frames in a run, ")?;
                write!(f, "{needed} are needed")
            }
            Self::TooFewFrames { given, needed } => {
                write!(f, "the kernel's own tables need {needed} frames in a run, not {given}")
            }
            Self::RoundUnfinished { buffer } => {
                write!(f, "a round of the table buffer, {}, was never finished", Run(buffer))
            }
            Self::BufferEmpty { buffer } => {
                write!(f, "the table buffer, {}, has no frame left: plan again", Run(buffer))
            }
            Self::RootSlotInUse { va, pte } => {
                write!(f, "the root has {pte} for {va}, where the direct map will be")
            }
            Self::NotIdentity(pfn) => {
                write!(f, "pfn {pfn} is in an identity region, and the frame map says otherwise")
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
    /// The reason.
    pub failure: EarlyError,
    /// Whether the round was undone. If not, some of its frames may be tables, so nobody gets any
    /// of them, and the direct map has its old extent.
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
    /// The reason.
    pub failure: EarlyError,
    /// Whether everything is as it was before. If not, the kernel runs on one of the two roots, and
    /// no frame of either is free.
    pub undo: Result<(), EarlyError>,
    /// `Ok` if everything is as before: all frames given. `Err` if not: the frames for the tables,
    /// some of which may be in use as such. They belong in a quarantine.
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
