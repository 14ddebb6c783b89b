//! What can go wrong, with the values that matter.

use core::fmt;

use hypercall::{
    AccessError, BatchError, DomId, Error, Frame, Full, GuestVa, Level, Mfn, Pfn, Pte,
};
use p2m::{P2mError, WalkError};

use crate::doubt::NotPutRight;
use crate::obstacles::Obstacles;
use crate::pgd::{Loose, Pgd, Pinned};
use crate::primitive::Primitive;
use crate::room::{Room, SMALLEST_BATCH};

/// Why a mapping could not be made, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The address is in the half that all address spaces share.
    KernelHalf(GuestVa),
    /// The address is not the first of a page.
    Unaligned(GuestVa),
    /// The flags lack PRESENT, or hold bits that this operation does not take.
    Flags(u64),
    /// Something is mapped there already.
    Occupied {
        /// Where.
        va: GuestVa,
        /// What.
        pte: Pte,
    },
    /// Nothing is mapped there.
    NotMapped(GuestVa),
    /// The pages from here on are partly the ones that are to move here.
    Overlap(GuestVa),
    /// Frames of this domain can be mapped in a live tree only: a tree that is pinned with them is
    /// refused, since Xen checks a table's entries as the guest's own.
    OnlyLive(DomId),
    /// Two address spaces cannot share the frame: nobody counts it, or the count is at its end.
    CannotShare(Pfn),
    /// The frame is the guest's own: it is mapped with its token, never as somebody else's.
    Own(Pfn),
    /// The frame was to be mapped as a foreign one in the guest's own name (`DOMID_SELF`).
    NotForeign(Mfn),
    /// No frame is left, for a page or for a table.
    OutOfFrames,
    /// The batch has less room than [`SMALLEST_BATCH`](crate::SMALLEST_BATCH): this.
    BatchTooSmall(Room),
    /// The tables could not be read.
    Walk(WalkError),
    /// The tables are not as they should be since an undo was refused, and Xen has refused to put
    /// them right now. Nothing else was done. The next change tries it again.
    InDoubt(Error),
    /// Xen refused an update; those that went out with it have been undone.
    Refused {
        /// Where the refused update was to take effect: the first address that the entry spans.
        va: GuestVa,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to take a table; what went out with it has been undone, and what was linked
    /// there before is so again.
    LinkRefused {
        /// The first address that the table spans.
        va: GuestVa,
        /// Level of the table at fault, as far as can be told.
        level: Level,
        /// The table at fault.
        table: Pfn,
        /// The refusal.
        error: BatchError,
        /// The mappings that stand in its way, in the running tree and in this one.
        obstacles: Obstacles,
    },
    /// The write to the table faulted: Xen refused the entry for this page, and the table is as
    /// before.
    Faulted(GuestVa),
    /// This primitive loses what must be kept, or does not reach the address space.
    Unfit(Primitive),
    /// Xen refused a flush or the whole multicall; what went out with it has been undone.
    RefusedCall(BatchError),
    /// Xen refused an update, and then refused to undo those before it. What frames and shares no
    /// entry stands for any more went to those that keep what is uncertain; what the address space
    /// keeps is put right before the next change of it ([`WalkError::InDoubt`]).
    NotUndone {
        /// Updates that are in effect all the same; none if only the flush was refused.
        left: u32,
        /// Why the first one stays.
        error: Error,
    },
}

impl From<NotPutRight> for MapError {
    fn from(error: NotPutRight) -> Self {
        match error {
            NotPutRight::Walk(error) => error.into(),
            NotPutRight::Refused(error) => Self::InDoubt(error),
        }
    }
}

impl From<WalkError> for MapError {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<AccessError> for MapError {
    fn from(error: AccessError) -> Self {
        Self::Walk(error.into())
    }
}

impl From<P2mError> for MapError {
    fn from(error: P2mError) -> Self {
        Self::Walk(error.into())
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelHalf(va) => write!(f, "{va} is in the half that all address spaces share"),
            Self::Unaligned(va) => write!(f, "{va} is not the first address of a page"),
            Self::Flags(bits) => write!(f, "flags {bits:#x} cannot be used here"),
            Self::Occupied { va, pte } => write!(f, "{va} is mapped already: {pte}"),
            Self::NotMapped(va) => write!(f, "{va} is not mapped"),
            Self::Overlap(va) => write!(f, "the pages at {va} are partly those that are to move"),
            Self::OnlyLive(domain) => {
                write!(f, "frames of domain {} are mapped once the tree is pinned", domain.0)
            }
            Self::CannotShare(pfn) => write!(f, "pfn {pfn} cannot be shared: nobody counts it"),
            Self::Own(pfn) => {
                write!(f, "pfn {pfn} is the guest's own, and not to be mapped as another's")
            }
            Self::NotForeign(mfn) => {
                write!(f, "mfn {mfn} is to be foreign: name the domain that has it, not DOMID_SELF")
            }
            Self::OutOfFrames => f.write_str("no frame is left"),
            Self::BatchTooSmall(room) => {
                write!(f, "the batch has room for {room}: give it {SMALLEST_BATCH}")
            }
            Self::Walk(error) => error.fmt(f),
            Self::InDoubt(error) => in_doubt(error, f),
            Self::Refused { va, error } => write!(f, "at {va}: {error}"),
            Self::LinkRefused { va, level, table, error, obstacles } => {
                write!(f, "{level} table pfn {table} at {va}: {error}")?;
                obstacles.told(f)
            }
            Self::Faulted(va) => write!(f, "at {va}: the emulated write faulted, Xen refused it"),
            Self::Unfit(by) => write!(f, "{by:?} cannot do what is asked for"),
            Self::RefusedCall(error) => error.fmt(f),
            Self::NotUndone { left: 0, error } => {
                write!(f, "what was undone could not be flushed: {error}")
            }
            Self::NotUndone { left, error } => {
                write!(f, "{left} updates could not be undone: {error}")
            }
        }
    }
}

impl core::error::Error for MapError {}

impl From<Full> for MapError {
    fn from(_: Full) -> Self {
        Self::BatchTooSmall(Room { updates: 0, ops: 0 })
    }
}

/// An operation on a run of pages stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeError {
    /// Pages, from the first on, for which the operation is in effect all the same.
    pub done: u64,
    /// What stopped it. The pages behind those done are as they were.
    pub error: MapError,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        match self.done {
            0 => Ok(()),
            done => write!(f, " (after {done} pages done)"),
        }
    }
}

impl core::error::Error for RangeError {}

/// A frame that could not be mapped, given back.
#[derive(Debug)]
#[must_use = "the frame comes back in the error"]
pub struct MapFailed {
    /// The frame that was to be mapped. `None` only after [`MapError::NotUndone`]: then it is
    /// mapped all the same, or went to
    /// [`FrameSource::give_uncertain`](crate::FrameSource::give_uncertain).
    pub frame: Option<Frame>,
    /// Why.
    pub error: MapError,
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.frame {
            Some(frame) => write!(f, "pfn {} not mapped: {}", frame.pfn(), self.error),
            None => write!(f, "not mapped: {}", self.error),
        }
    }
}

impl core::error::Error for MapFailed {}

/// Why a tree was not pinned, or not unpinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinFailure {
    /// The tables could not be read.
    Walk(WalkError),
    /// The tables are not as they should be since an undo was refused, and Xen has refused to put
    /// them right now. Nothing else was done. The next change tries it again.
    InDoubt(Error),
    /// Xen refused to change the direct mapping of a table's frame.
    Protect {
        /// The table.
        table: Pfn,
        /// The refusal.
        error: Error,
    },
    /// Xen refused the tree because of this table: it is mapped writable somewhere, or an entry of
    /// it is not allowed.
    Table {
        /// Level at which Xen refused it.
        level: Level,
        /// The table, in the guest's terms.
        pfn: Pfn,
        /// The table, in the machine's terms.
        mfn: Mfn,
        /// The refusal of this table alone.
        error: Error,
    },
    /// Xen refused the root, and takes every table below it by itself.
    Root {
        /// The root, in the guest's terms.
        pfn: Pfn,
        /// The root, in the machine's terms.
        mfn: Mfn,
        /// The refusal.
        error: Error,
    },
    /// Xen refused the hypercall as a whole.
    Call(Error),
    /// The batch cannot hold a single element.
    BatchTooSmall,
}

impl From<NotPutRight> for PinFailure {
    fn from(error: NotPutRight) -> Self {
        match error {
            NotPutRight::Walk(error) => error.into(),
            NotPutRight::Refused(error) => Self::InDoubt(error),
        }
    }
}

impl From<WalkError> for PinFailure {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<AccessError> for PinFailure {
    fn from(error: AccessError) -> Self {
        Self::Walk(error.into())
    }
}

impl From<P2mError> for PinFailure {
    fn from(error: P2mError) -> Self {
        Self::Walk(error.into())
    }
}

impl From<Full> for PinFailure {
    fn from(_: Full) -> Self {
        Self::BatchTooSmall
    }
}

impl fmt::Display for PinFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(error) => error.fmt(f),
            Self::InDoubt(error) => in_doubt(error, f),
            Self::Protect { table, error } => {
                write!(f, "the direct mapping of table pfn {table} was not changed: {error}")
            }
            Self::Table { level, pfn, mfn, error } => {
                write!(f, "{level} table pfn {pfn} (mfn {mfn}): {error}")
            }
            Self::Root { pfn, mfn, error } => write!(f, "root pfn {pfn} (mfn {mfn}): {error}"),
            Self::Call(error) => error.fmt(f),
            Self::BatchTooSmall => f.write_str("the batch has no room for a single element"),
        }
    }
}

impl core::error::Error for PinFailure {}

/// What an undo could not put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UndoError {
    /// What stopped it. The steps before it in the order of undoing are done.
    pub failure: PinFailure,
}

impl fmt::Display for UndoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "and the undo stopped: {}", self.failure)
    }
}

/// A tree that was not pinned, given back.
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub struct PinError {
    /// The address space, loose as before. After a failed undo some of its tables are still
    /// read-only.
    pub pgd: Pgd<Loose>,
    /// Why.
    pub failure: PinFailure,
    /// The mappings that stand in the way of the table that was refused, in the running tree and in
    /// this one.
    pub obstacles: Obstacles,
    /// What could not be put back, if anything.
    pub undo: Result<(), UndoError>,
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not pinned: {}", self.failure)?;
        if self.obstacles.count() > 0 || matches!(self.failure, PinFailure::Table { .. }) {
            self.obstacles.told(f)?;
        }
        self.undo.map_or_else(|undo| write!(f, "; {undo}"), Ok)
    }
}

impl core::error::Error for PinError {}

/// A tree that was not unpinned, given back.
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub struct UnpinError {
    /// The address space, pinned as before. After a failed undo it may be unpinned, some tables
    /// writable.
    pub pgd: Pgd<Pinned>,
    /// Why.
    pub failure: PinFailure,
    /// The entries that still lead to the table that was refused, beside the one that is its own:
    /// in the running tree and in this one.
    pub obstacles: Obstacles,
    /// What could not be put back, if anything.
    pub undo: Result<(), UndoError>,
}

impl fmt::Display for UnpinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not unpinned: {}", self.failure)?;
        match (self.obstacles.count(), self.failure) {
            (0, PinFailure::Protect { .. }) => f.write_str(
                "; no entry of the running tree or of this one holds it: a vCPU runs on the tree, \
                 or another address space leads to it",
            )?,
            (0, _) => {}
            (count, _) => write!(f, "; {count} in the way: {}", self.obstacles)?,
        }
        self.undo.map_or_else(|undo| write!(f, "; {undo}"), Ok)
    }
}

impl core::error::Error for UnpinError {}

/// A root was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The frame map does not have it.
    Walk(WalkError),
    /// Xen refused it.
    Refused(Error),
    /// There is no place for this vCPU.
    NoSuchVcpu(usize),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(error) => error.fmt(f),
            Self::Refused(error) => write!(f, "root not loaded: {error}"),
            Self::NoSuchVcpu(vcpu) => write!(f, "there is no place for vCPU {vcpu}"),
        }
    }
}

impl core::error::Error for LoadError {}

fn in_doubt(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "what an earlier undo left was not put right: {error}")
}
