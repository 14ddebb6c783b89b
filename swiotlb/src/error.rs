//! What can go wrong, with the values to say so.

use core::fmt;

use hypercall::{AccessError, BatchError, Error as CallError, Full, Mfn, Pfn, Pte};
use p2m::{NoDirectEntry, P2mError};

use crate::address::{BusAddr, DmaMask};
use crate::segment::{SLOT_BYTES, Use};

/// Why something of this crate was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The frame map does not have the frame as the guest's own.
    P2m(P2mError),
    /// A frame could not be read or written.
    Access(AccessError),
    /// The direct mapping has no table for a frame.
    NoDirectEntry(NoDirectEntry),
    /// The direct mapping does not show the frame, writable, at its place.
    NotMapped {
        /// The pfn.
        pfn: Pfn,
        /// What stands behind it.
        mfn: Mfn,
        /// The entry of the direct mapping.
        pte: Pte,
    },
    /// The frames are no multiple of a run.
    NotWhole {
        /// How many there are.
        frames: u64,
        /// log2 of a run.
        order: u32,
    },
    /// There are no frames: a region has at least one run.
    NoFrames,
    /// The region does not have so many runs.
    NoSuchRun {
        /// The run asked for, from 0 on.
        run: u64,
        /// How many there are.
        runs: u64,
    },
    /// The scratch memory is too small for even one run.
    Scratch {
        /// Frames that it must have room for: one update and two extents each, and one operation.
        frames: u64,
    },
    /// Xen does not exchange runs this long for this domain.
    OrderLimit {
        /// log2 of the frames in a run.
        order: u32,
    },
    /// Xen has no free run of this length where the mask reaches, or no run fits below the mask.
    NoRun {
        /// log2 of the frames in a run.
        order: u32,
        /// Where it should have been.
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
    /// Xen gave a frame that is not as asked.
    WrongFrame {
        /// The pfn it was asked for.
        pfn: Pfn,
        /// What came.
        mfn: Mfn,
        /// log2 of the frames in the run it begins or is in.
        order: u32,
        /// Where it should be.
        mask: DmaMask,
    },
    /// M2P does not say what P2M says.
    M2p {
        /// The pfn.
        pfn: Pfn,
        /// Its frame by P2M.
        mfn: Mfn,
        /// What M2P says of that frame.
        found: Option<Pfn>,
    },
    /// Xen refused a change of the direct mapping.
    Refused(BatchError),
    /// Xen refused the exchange in a way that stands for no limit.
    Call(CallError),
    /// The batch had no room although the scratch was measured.
    Full(Full),
    /// No request of this shape can ever be served: it is longer than a pool gives at once, with
    /// the bytes that keep its low address bits.
    TooLarge {
        /// Bytes asked for.
        len_bytes: usize,
        /// Bytes before them, for the low bits of the address.
        head_bytes: usize,
        /// The most that a pool gives at once.
        max_bytes: usize,
    },
    /// Nothing was asked for.
    Empty,
    /// No part of the pool lies where the device reaches, or the pool has no memory at all.
    OutOfReach {
        /// How far the device reaches.
        mask: DmaMask,
    },
    /// The memory that begins at this pfn does not lie together: it was gathered before a restore,
    /// and has other frames now.
    Scattered {
        /// The first pfn of the segment or the run.
        pfn: Pfn,
    },
    /// No number is left for another pool.
    NoNumber,
    /// The pool is full at the moment; it can serve the request when others are done.
    PoolFull {
        /// Slots asked for.
        slots: usize,
        /// Slots free, in pieces that are too short.
        free: usize,
    },
    /// A list that is to be mapped has a mapping in it, which stays as it is.
    MappedAlready {
        /// What its device was told.
        address: BusAddr,
    },
    /// The list of runs is shorter than what the buffers make.
    RunsFull {
        /// Runs that it has room for.
        runs: usize,
    },
    /// The pool has no place for another segment: its limit is reached.
    AtLimit {
        /// Segments it has.
        segments: usize,
    },
    /// Memory for a pool must be runs of a segment, or longer.
    RunTooShort {
        /// log2 of the frames in its runs.
        order: u32,
    },
    /// The address is in none of the pool's segments, nor the buffer's own.
    NotOfThisPool {
        /// The address.
        address: BusAddr,
    },
    /// Nothing is mapped there: it was given back before, or never taken.
    NotTaken {
        /// The address.
        address: BusAddr,
    },
    /// It was given back, and the slot is somebody else's now.
    Stale {
        /// The address.
        address: BusAddr,
    },
    /// Somebody else is about to give it back or to copy it at this moment.
    Busy {
        /// The address.
        address: BusAddr,
    },
    /// It was taken with another length, for another use, or in another direction.
    TakenOtherwise {
        /// The address.
        address: BusAddr,
        /// What it was taken as.
        taken: Use,
        /// As what it should be given back.
        given: Use,
    },
    /// The part to copy is not in the mapping.
    OutsideMapping {
        /// First byte.
        offset: usize,
        /// How many.
        len_bytes: usize,
        /// Bytes of the mapping.
        mapped_bytes: usize,
    },
    /// The pool cannot end: something is still taken.
    StillTaken {
        /// How many slots.
        slots: usize,
        /// Mappings without a slot: buffers that a device was given as they are.
        direct: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::P2m(error) => write!(f, "{error}"),
            Self::Access(error) => write!(f, "{error}"),
            Self::NoDirectEntry(error) => write!(f, "{error}"),
            Self::Refused(error) => write!(f, "{error}"),
            Self::Call(error) => write!(f, "{error}"),
            Self::Full(error) => write!(f, "{error}"),
            Self::NotMapped { .. }
            | Self::NotWhole { .. }
            | Self::NoFrames
            | Self::NoSuchRun { .. }
            | Self::Scratch { .. }
            | Self::OrderLimit { .. }
            | Self::NoRun { .. }
            | Self::InUse { .. }
            | Self::Short { .. }
            | Self::WrongFrame { .. }
            | Self::M2p { .. } => self.say_region(f),
            _ => self.say_pool(f),
        }
    }
}

impl Error {
    /// What went wrong with contiguous memory.
    fn say_region(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped { pfn, mfn, pte } => write!(
                f,
                "pfn {pfn} is mfn {mfn}, but its place in the direct mapping holds {pte}: only \
                 memory that is mapped there, writable, can be exchanged"
            ),
            Self::NotWhole { frames, order } => {
                write!(f, "{frames} frames are no multiple of 2^{order}")
            }
            Self::NoFrames => f.write_str("there are no frames: a region has at least one run"),
            Self::NoSuchRun { run, runs } => {
                write!(f, "there is no run {run}: the region has {runs}, from 0 on")
            }
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
                "Xen has no run of 2^{order} free frames below 2^{}: take a smaller order or a \
                 wider mask, or leave Xen more memory there",
                mask.address_bits()
            ),
            Self::InUse { pfn } => write!(
                f,
                "a frame of the run from pfn {pfn} on is in use elsewhere: mapped, pinned or \
                 granted"
            ),
            Self::Short { asked, done } => {
                write!(f, "Xen exchanged {done} frames of {asked} and reports no error")
            }
            Self::WrongFrame { pfn, mfn, order, mask } => write!(
                f,
                "Xen gave mfn {mfn} for pfn {pfn}, in a run of 2^{order} below 2^{}",
                mask.address_bits()
            ),
            Self::M2p { pfn, mfn, found } => match found {
                Some(found) => write!(f, "mfn {mfn} is pfn {pfn} in P2M and {found} in M2P"),
                None => write!(f, "mfn {mfn} is pfn {pfn} in P2M and nothing in M2P"),
            },
            _ => Ok(()),
        }
    }

    /// What went wrong with a pool or a mapping.
    fn say_pool(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { len_bytes, head_bytes, max_bytes } => write!(
                f,
                "{len_bytes} bytes behind {head_bytes} can never be had at once: a pool gives \
                 {max_bytes}; map them in parts"
            ),
            Self::Empty => f.write_str("a mapping has at least one byte"),
            Self::OutOfReach { mask } => write!(
                f,
                "the pool has no memory below 2^{}: grow it by a region there",
                mask.address_bits()
            ),
            Self::PoolFull { slots, free } => write!(
                f,
                "no {slots} slots of {SLOT_BYTES} bytes are free together ({free} are free in \
                 all): try again when mappings have ended, or grow the pool"
            ),
            Self::MappedAlready { address } => {
                write!(f, "the list has a buffer in it that is mapped already, at {address}")
            }
            Self::Scattered { pfn } => write!(
                f,
                "what begins at pfn {pfn} does not lie together in the machine, as after a \
                 restore: gather it again"
            ),
            Self::NoNumber => f.write_str("2^32 pools were made: there is no number for another"),
            Self::RunsFull { runs } => {
                write!(f, "the buffers make more runs than there is room for ({runs})")
            }
            Self::AtLimit { segments } => {
                write!(f, "the pool is at its limit of {segments} segments")
            }
            Self::RunTooShort { order } => write!(
                f,
                "runs of 2^{order} frames are too short for a pool: gather runs of 2^{}",
                crate::segment::SEGMENT_ORDER
            ),
            Self::NotOfThisPool { address } => write!(f, "{address} is nothing of this pool's"),
            Self::NotTaken { address } => {
                write!(f, "nothing is taken at {address}: it was given back before, or never taken")
            }
            Self::Stale { address } => {
                write!(f, "what was taken at {address} was given back; it is somebody else's now")
            }
            Self::Busy { address } => {
                write!(f, "somebody else is giving {address} back, or copies it")
            }
            Self::TakenOtherwise { address, taken, given } => {
                write!(f, "{address} was taken as {taken} and should be given back as {given}")
            }
            Self::OutsideMapping { offset, len_bytes, mapped_bytes } => write!(
                f,
                "{len_bytes} bytes at offset {offset} are not all in a mapping of {mapped_bytes}"
            ),
            Self::StillTaken { slots, direct } => write!(
                f,
                "{slots} slots are still taken, and {direct} buffers are mapped without one"
            ),
            _ => Ok(()),
        }
    }
}

impl core::error::Error for Error {}

macro_rules! from {
    ($($from:ty => $variant:ident),+) => {
        $(impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::$variant(error)
            }
        })+
    };
}

from!(
    P2mError => P2m,
    AccessError => Access,
    NoDirectEntry => NoDirectEntry,
    BatchError => Refused,
    Full => Full
);
