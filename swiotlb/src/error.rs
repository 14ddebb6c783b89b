//! Why a pool refused.

use core::fmt;

use hypercall::{AccessError, Pfn};
use p2m::P2mError;

use crate::address::{BusAddr, DmaMask};
use crate::segment::{Segment, SlotUse};

/// Why a pool refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The frame map does not call the frame the guest's own memory.
    P2m(P2mError),
    /// A frame could not be read or written.
    Access(AccessError),
    /// No pool can ever serve this request: with the bytes that keep its low address bits, it is
    /// longer than a segment.
    TooLarge {
        /// Bytes asked for.
        len_bytes: usize,
        /// Bytes before them, for the low bits of the address.
        head_bytes: usize,
    },
    /// Nothing was asked for.
    Empty,
    /// The device reaches no memory of the pool, or the pool has none.
    OutOfReach {
        /// The addresses that the device reaches.
        mask: DmaMask,
    },
    /// The segment is no longer contiguous: it was gathered before a restore, and has other frames
    /// now.
    Scattered {
        /// The first pfn of the segment.
        pfn: Pfn,
    },
    /// No number is left for another pool.
    NoNumber,
    /// The pool is full. It can serve the request when others have ended.
    PoolFull {
        /// Slots asked for.
        slots: usize,
        /// Free slots, in pieces that are too short.
        free: usize,
    },
    /// An item of the list is mapped already. It stays mapped.
    MappedAlready {
        /// The address that its device has.
        address: BusAddr,
    },
    /// The buffers make more runs than the list has room for.
    RunsFull {
        /// Runs that there is room for.
        runs: usize,
    },
    /// The pool has no place for another segment.
    AtLimit {
        /// Segments it has.
        segments: usize,
    },
    /// Memory for a pool must be in runs of a segment or longer.
    RunTooShort {
        /// log2 of the frames in its runs.
        order: u32,
    },
    /// The address is in no segment of the pool, and is not the buffer's own.
    NotOfThisPool {
        /// The address.
        address: BusAddr,
    },
    /// Nothing is mapped there: it was given back before, or never taken.
    NotTaken {
        /// The address.
        address: BusAddr,
    },
    /// It was given back, and someone else has the slot now.
    Stale {
        /// The address.
        address: BusAddr,
    },
    /// Someone else is giving it back or copying it right now.
    Busy {
        /// The address.
        address: BusAddr,
    },
    /// It was taken with another length, for another use, or in another direction.
    TakenOtherwise {
        /// The address.
        address: BusAddr,
        /// What it was taken as.
        taken: SlotUse,
        /// What it was given back as.
        given: SlotUse,
    },
    /// The part to copy is not in the mapping.
    OutsideMapping {
        /// The first byte.
        start: usize,
        /// The byte after the last.
        end: usize,
        /// Bytes of the mapping.
        mapped_bytes: usize,
    },
    /// The pool cannot end, because something is still taken.
    StillTaken {
        /// Slots taken.
        slots: usize,
        /// Buffers that devices have as they are.
        direct: u64,
    },
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => error.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::TooLarge { len_bytes, head_bytes } => write!(
                f,
                "{len_bytes} bytes behind {head_bytes} are more than a pool gives at once ({}): \
                 map them in parts",
                Segment::BYTES
            ),
            Self::Empty => f.write_str("a mapping has at least one byte"),
            Self::OutOfReach { mask } => {
                write!(f, "the pool has no memory {mask}: add a region there")
            }
            Self::Scattered { pfn } => write!(
                f,
                "the segment of pfn {pfn} is not contiguous in the machine, as after a restore: \
                 gather it again"
            ),
            Self::NoNumber => f.write_str("all 2^32 numbers for pools are used"),
            Self::PoolFull { slots, free } => write!(
                f,
                "no {slots} slots of {} bytes are free together ({free} are free in all): wait \
                 until mappings end, or grow the pool",
                Segment::SLOT_BYTES
            ),
            Self::MappedAlready { address } => {
                write!(f, "a buffer of the list is already mapped, at {address}")
            }
            Self::RunsFull { runs } => {
                write!(f, "the buffers make more than the {runs} runs that there is room for")
            }
            Self::AtLimit { segments } => {
                write!(f, "the pool is at its limit of {segments} segments")
            }
            Self::RunTooShort { order } => write!(
                f,
                "runs of 2^{order} frames are too short for a pool: gather runs of 2^{}",
                Segment::ORDER
            ),
            Self::NotOfThisPool { address } => write!(f, "{address} does not belong to this pool"),
            Self::NotTaken { address } => {
                write!(f, "nothing is taken at {address}: it was given back, or never taken")
            }
            Self::Stale { address } => {
                write!(f, "what was taken at {address} was given back: someone else has it now")
            }
            Self::Busy { address } => {
                write!(f, "someone else is freeing or copying {address}")
            }
            Self::TakenOtherwise { address, taken, given } => {
                write!(f, "{address} was taken as {taken}, but given back as {given}")
            }
            Self::OutsideMapping { start, end, mapped_bytes } => {
                write!(f, "bytes {start}..{end} are not in a mapping of {mapped_bytes} bytes")
            }
            Self::StillTaken { slots, direct } => write!(
                f,
                "{slots} slots are still taken, and devices have {direct} buffers without one"
            ),
        }
    }
}

impl core::error::Error for DmaError {}

impl From<P2mError> for DmaError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for DmaError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}
