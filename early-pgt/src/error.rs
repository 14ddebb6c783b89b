//! What can go wrong, with the values that matter.

use core::fmt;

use hypercall::{
    AccessError, BatchError, Frames, Full, GuestVa, Level, NotGuestVa, Pfn, Pte, Uncertain,
};
use p2m::{P2mError, Pfns};

use crate::memory::Use;

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
    /// Frames in use are no RAM.
    OutsideRam(Use),
    /// Frames that an allocator gets when the builder's tables go are in another use as well.
    UseOverlap {
        /// The use that ends: the builder's tables, or its list.
        used: Use,
        /// The other one.
        other: Use,
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
    /// A round of the table buffer was dropped before it was finished: which of its frames are
    /// tables is not known any more.
    RoundUnfinished {
        /// The buffer's frames.
        buffer: Pfns,
    },
    /// The table buffer has no frame left: the plan is not of this memory.
    BufferEmpty,
    /// The running root has something where the direct map is to be.
    RootSlotInUse {
        /// The first address that the slot spans.
        va: GuestVa,
        /// What is there.
        pte: Pte,
    },
    /// An address of the mapping that is there has no L1 table.
    NotMapped(GuestVa),
    /// The frame map has something else for a pfn that a region says is the machine's own.
    NotIdentity(Pfn),
    /// The frame map has nothing for a pfn that a region says is there.
    P2m(P2mError),
    /// A frame cannot be read or written.
    Access(AccessError),
    /// The batch cannot hold a single update.
    NoStorage,
    /// Xen refused to make a frame read-only that is to be a table.
    Protect {
        /// The frame.
        table: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// There are too few frames for the kernel's own tables.
    TooFewFrames {
        /// Frames given.
        given: u64,
        /// Frames needed.
        needed: u64,
    },
    /// Xen refused to pin or load the kernel's own root, or to unpin the builder's.
    Switch {
        /// The kernel's own root.
        root: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused a table, or one below it.
    Link {
        /// The table, or the page that was to be mapped.
        frame: Option<Pfn>,
        /// The refusal.
        error: BatchError,
    },
}

impl From<P2mError> for EarlyError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for EarlyError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
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

/// Prints a run as `first..end`.
struct Run(Pfns);

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfns {}..{}", self.0.start, Pfn::new(self.0.end()))
    }
}

impl fmt::Display for EarlyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("the memory map has no RAM"),
            Self::RegionSize(pfns) => {
                write!(
                    f,
                    "the memory map has a region of {:#x} pages from {}",
                    pfns.count, pfns.start
                )
            }
            Self::RegionOverlap { pfns, before } => write!(
                f,
                "the memory map overlaps or is not in order: {} begin before pfn {before}",
                Run(*pfns)
            ),
            Self::OutsideRam(used) => {
                write!(f, "{:?} at {} is not all RAM of the memory map", used.kind, Run(used.pfns))
            }
            Self::UseOverlap { used, other } => write!(
                f,
                "{:?} at {} and {:?} at {} overlap",
                used.kind,
                Run(used.pfns),
                other.kind,
                Run(other.pfns)
            ),
            Self::DirectMapPlace(va) => write!(
                f,
                "the direct map cannot be at {va}: it takes whole {} slots of its own",
                Level::L4
            ),
            Self::KernelPlace(va) => {
                write!(f, "the kernel's mapping of pfn 0, {va}, is no multiple of 2 MiB")
            }
            Self::KernelMapping { pages } => {
                write!(f, "the builder's mapping of {pages:#x} pages is not of the RAM from pfn 0")
            }
            Self::Address(reason) => write!(f, "the direct map does not fit: {reason}"),
            Self::NotInKernelMapping(va) => {
                write!(f, "start_info has {va}, which the builder's mapping does not reach")
            }
            Self::MappedTooLittle { free, needed } => write!(
                f,
                "the builder mapped too little: {free} free frames in a run, {needed} are needed"
            ),
            Self::RoundUnfinished { buffer } => {
                write!(f, "a round of the table buffer, {}, was never finished", Run(*buffer))
            }
            Self::BufferEmpty => f.write_str("the table buffer is empty: plan again"),
            Self::RootSlotInUse { va, pte } => {
                write!(f, "the root has {pte} for {va}, where the direct map is to be")
            }
            Self::NotMapped(va) => write!(f, "{va} has no L1 table"),
            Self::NotIdentity(pfn) => {
                write!(f, "pfn {pfn} is to be the machine's, and the frame map says otherwise")
            }
            Self::P2m(error) => error.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::NoStorage => f.write_str("the batch cannot hold an update: give it storage"),
            Self::TooFewFrames { given, needed } => {
                write!(f, "the kernel's own tables take {needed} frames in a run, not {given}")
            }
            Self::Protect { .. } | Self::Switch { .. } | Self::Link { .. } => self.refused(f),
        }
    }
}

impl EarlyError {
    /// What Xen refused.
    fn refused(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protect { table, error } => {
                write!(f, "pfn {table} cannot be made read-only: {error}")
            }
            Self::Switch { root, error } => {
                write!(f, "no way from the builder's root to the one in pfn {root}: {error}")
            }
            Self::Link { frame: Some(frame), error } => {
                write!(f, "the table in pfn {frame} cannot be linked: {error}")
            }
            Self::Link { frame: None, error } => write!(f, "a table cannot be linked: {error}"),
            _ => Ok(()),
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
    /// Whether everything is as it was before the round. If not, some of its frames may be tables
    /// still, so that none is anybody's, and the direct map is to be used no further than before.
    pub undo: Result<(), EarlyError>,
}

impl From<EarlyError> for RoundError {
    fn from(failure: EarlyError) -> Self {
        Self { failure, undo: Ok(()) }
    }
}

impl fmt::Display for RoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        say(f, &self.failure, &self.undo)
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
        f.write_str("the builder's tables stay: ")?;
        say(f, &self.failure, &self.undo)
    }
}

impl core::error::Error for ReplaceError {}

fn say(
    f: &mut fmt::Formatter<'_>,
    failure: &EarlyError,
    undo: &Result<(), EarlyError>,
) -> fmt::Result {
    fmt::Display::fmt(failure, f)?;
    match undo {
        Ok(()) => Ok(()),
        Err(error) => write!(f, "; undoing it failed: {error}"),
    }
}
