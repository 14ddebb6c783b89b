//! Errors of a mapping.

use core::fmt;

use hypercall::{
    AccessError, BatchError, DomId, Error, Full, GuestVa, Level, Mfn, Pfn, Pte, PteFlags,
};
use p2m::{P2mError, WalkError};

use crate::error::{HALF_FORKED, NotPutRight, from_reading, in_doubt};
use crate::marks::{CALLERS_FLAGS, SHARED};
use crate::obstacles::Obstacles;
use crate::primitive::Primitive;
use crate::room::{ENLARGE, Room, TooSmall};

/// Why a mapping could not be made, changed or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The address is in the half that all address spaces share.
    KernelHalf(GuestVa),
    /// The address does not begin a page.
    Unaligned(GuestVa),
    /// The flags lack PRESENT, or have bits that this operation does not take.
    Flags {
        /// The first address that was to have them.
        va: GuestVa,
        /// The flags.
        flags: PteFlags,
    },
    /// Something is already mapped there.
    Occupied {
        /// The address.
        va: GuestVa,
        /// Its entry.
        pte: Pte,
    },
    /// Nothing is mapped there.
    NotMapped(GuestVa),
    /// The page is not one that [`Edit::make_own`](crate::Edit::make_own) makes own: it is not
    /// shared (another vCPU may have been first), or it was not writable before it was.
    NotShared {
        /// The address.
        va: GuestVa,
        /// Its entry.
        pte: Pte,
    },
    /// The pages to move overlap their destination, which begins here.
    Overlap(GuestVa),
    /// Frames of this domain can be mapped only in a live tree. Xen would refuse to pin a tree that
    /// has them, because it checks a table's entries as the guest's own.
    OnlyLive(DomId),
    /// Two address spaces cannot share the frame: nobody counts it, or its count is full.
    CannotShare(Pfn),
    /// The address space shares frames that these tools do not count: it was forked with other
    /// [`Shares`](crate::Shares). Nothing was done.
    OtherShares,
    /// The frame is the guest's own. Map it with its token, not as another domain's.
    Own(Pfn),
    /// A foreign mapping named the guest itself as the owner (`DOMID_SELF`).
    NotForeign(Mfn),
    /// No frame is left, for a page or for a table.
    OutOfFrames,
    /// The batch has only this room, less than [`Room::SMALLEST`].
    BatchTooSmall(Room),
    /// The tables could not be read.
    Walk(WalkError),
    /// A refused undo left the tables in doubt, and Xen refused to repair them now. Nothing else
    /// was done. The next change tries again.
    InDoubt(Error),
    /// The address space is one side of a fork that was refused and not taken back. Nothing was
    /// done: call [`Pgd::take_back_fork`](crate::Pgd::take_back_fork) first.
    HalfForked,
    /// The address space with this root is not what a refused fork of this one left.
    NotItsFork(Pfn),
    /// Xen refused an update. Those that went out with it have been undone.
    Refused {
        /// The first address that the refused entry spans.
        va: GuestVa,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to take a table. What went out with it has been undone, and what was linked
    /// there is linked again.
    LinkRefused {
        /// The first address that the table spans.
        va: GuestVa,
        /// The level of the table at fault, as far as known.
        level: Level,
        /// The table at fault.
        table: Pfn,
        /// The refusal.
        error: BatchError,
        /// The mappings in its way, in the running tree and in this one.
        obstacles: Obstacles,
    },
    /// The write to the table faulted: Xen refused the entry for this page, and the table is as
    /// before.
    Faulted(GuestVa),
    /// This primitive loses what must be kept, or does not reach the address space.
    Unfit(Primitive),
    /// Xen refused a flush or the whole multicall. What went out with it has been undone.
    RefusedCall(BatchError),
    /// Xen refused an update, and then to undo those before it. Frames and shares without an entry
    /// went to `give_uncertain`. The next change of the address space first repairs what it keeps
    /// ([`InDoubt`](Self::InDoubt)).
    NotUndone {
        /// Updates that are still in effect; none if only the flush was refused.
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
            NotPutRight::HalfForked => Self::HalfForked,
        }
    }
}

from_reading!(MapError: WalkError AccessError P2mError);

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelHalf(va) => write!(f, "{va} is in the half that all address spaces share"),
            Self::Unaligned(va) => write!(f, "{va} is not the first address of a page"),
            Self::Flags { va, flags } => wrong_flags(*va, *flags, f),
            Self::Occupied { va, pte } => write!(f, "{va} is already mapped: {pte}"),
            Self::NotMapped(va) => write!(f, "{va} is not mapped"),
            Self::NotShared { va, pte } => not_shared(*va, *pte, f),
            Self::Overlap(va) => write!(f, "the pages to move overlap their destination at {va}"),
            Self::OnlyLive(domain) => {
                write!(f, "frames of domain {} can be mapped only in a pinned tree", domain.0)
            }
            Self::CannotShare(pfn) => write!(
                f,
                "pfn {pfn} cannot be shared: its count is full, or the tools have none for it \
                 (with_shares)"
            ),
            Self::OtherShares => f.write_str(
                "the address space shares frames that these tools do not count: give them the \
                 Shares with which it was forked (with_shares)",
            ),
            Self::Own(pfn) => {
                write!(f, "pfn {pfn} is the guest's own, and cannot be mapped as another's")
            }
            Self::NotForeign(mfn) => {
                write!(f, "mfn {mfn} is foreign: name the domain that has it, not DOMID_SELF")
            }
            Self::OutOfFrames => f.write_str(
                "the source of frames has none left for a page or a table: give it more, and \
                 go on with the pages that are not done",
            ),
            Self::BatchTooSmall(room) => {
                write!(f, "the batch has room for {room}, but needs {}: {ENLARGE}", Room::SMALLEST)
            }
            Self::Walk(error) => error.fmt(f),
            Self::InDoubt(error) => in_doubt(error, f),
            Self::HalfForked => f.write_str(HALF_FORKED),
            Self::NotItsFork(root) => {
                write!(f, "root pfn {root} is not what a refused fork of this one left")
            }
            Self::Refused { va, error } => write!(f, "at {va}: {error}"),
            Self::LinkRefused { va, level, table, error, obstacles } => {
                write!(f, "{level} table pfn {table} at {va}: {error}")?;
                obstacles.describe(f)
            }
            Self::Faulted(va) => write!(f, "at {va}: Xen refused the entry, and the write faulted"),
            Self::Unfit(by) => write!(
                f,
                "{by} loses what this change must keep, or does not reach the address space: ask \
                 primitive::cheapest for one that is right"
            ),
            Self::RefusedCall(error) => write!(
                f,
                "{error}; no address is known to be at fault, and what went out with it has been \
                 undone: try again"
            ),
            Self::NotUndone { left: 0, error } => write!(
                f,
                "the undo could not be flushed: {error}; the next change of the address space \
                 flushes first"
            ),
            Self::NotUndone { left, error } => write!(
                f,
                "{left} updates could not be undone: {error}; the next change of the address \
                 space repairs it first, and frames in doubt went to give_uncertain"
            ),
        }
    }
}

impl core::error::Error for MapError {}

/// Writes what is wrong with flags.
fn wrong_flags(va: GuestVa, flags: PteFlags, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "flags {:#x} for {va}", flags.bits())?;
    let is_present = flags.contains(PteFlags::PRESENT);
    let extra = flags.difference(CALLERS_FLAGS);
    if !is_present {
        f.write_str(" lack PRESENT")?;
    }
    if extra.is_empty() {
        return Ok(());
    }
    f.write_str(if is_present { " have" } else { " and have" })?;
    let mut names = extra.iter_names();
    for (name, _) in &mut names {
        write!(f, " {name}")?;
    }
    if !names.remaining().is_empty() {
        write!(f, " {:#x}", names.remaining().bits())?;
    }
    f.write_str(", which a caller may not set")
}

/// Writes why a page cannot be made own.
fn not_shared(va: GuestVa, pte: Pte, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if pte.flags().contains(SHARED) {
        return write!(
            f,
            "the page at {va} is shared, and was not writable before: protect it with WRITABLE \
             first (its entry is {pte})"
        );
    }
    let also = if pte.is_writable() { ", and writable already: write again" } else { "" };
    write!(f, "the page at {va} is not shared{also} (its entry is {pte})")
}

impl From<TooSmall> for MapError {
    fn from(TooSmall(room): TooSmall) -> Self {
        Self::BatchTooSmall(room)
    }
}

impl From<Full> for MapError {
    fn from(_: Full) -> Self {
        Self::BatchTooSmall(Room { updates: 0, ops: 0 })
    }
}

/// An operation on a run of pages that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeError {
    /// Pages, from the first on, for which the operation is in effect.
    pub done: u64,
    /// What stopped it. The pages behind those done are as they were.
    pub error: MapError,
}

impl RangeError {
    /// Runs `work`, which counts the pages for which it is in effect.
    pub(crate) fn counting(
        work: impl FnOnce(&mut u64) -> Result<(), MapError>,
    ) -> Result<(), Self> {
        let mut done = 0;
        work(&mut done).map_err(|error| Self { done, error })
    }
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
