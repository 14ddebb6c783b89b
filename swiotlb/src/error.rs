//! Why a pool did not give, take, map or unmap something, with the values to say so.

use core::fmt;

use hypercall::{AccessError, Pfn};
use p2m::P2mError;

use crate::address::{BusAddr, DmaMask};
use crate::segment::{Segment, SlotUse};

/// Why a pool refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The frame map does not have the frame as the guest's own.
    P2m(P2mError),
    /// A frame could not be read or written.
    Access(AccessError),
    /// No request of this shape can ever be served: it is longer than a pool gives at once, with
    /// the bytes that keep its low address bits.
    TooLarge {
        /// Bytes asked for.
        len_bytes: usize,
        /// Bytes before them, for the low bits of the address.
        head_bytes: usize,
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
        /// The first pfn of the segment.
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
    /// It was given back, and the slot is someone else's now.
    Stale {
        /// The address.
        address: BusAddr,
    },
    /// Someone else is about to give it back or to copy it at this moment.
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
        /// As what it should be given back.
        given: SlotUse,
    },
    /// The part to copy is not in the mapping.
    OutsideMapping {
        /// First byte.
        start: usize,
        /// The byte after the last.
        end: usize,
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

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => error.fmt(f),
            Self::Access(error) => error.fmt(f),
            Self::TooLarge { len_bytes, head_bytes } => write!(
                f,
                "{len_bytes} bytes behind {head_bytes} can never be had at once: a pool gives \
                 {}; map them in parts",
                Segment::BYTES
            ),
            Self::Empty => f.write_str("a mapping has at least one byte"),
            Self::OutOfReach { mask } => {
                write!(f, "the pool has no memory {mask}: grow it by a region there")
            }
            Self::Scattered { pfn } => write!(
                f,
                "the segment of pfn {pfn} does not lie together in the machine, as after a \
                 restore: gather it again"
            ),
            Self::NoNumber => f.write_str("2^32 pools were made: there is no number for another"),
            Self::PoolFull { slots, free } => write!(
                f,
                "no {slots} slots of {} bytes are free together ({free} are free in all): try \
                 again when mappings have ended, or grow the pool",
                Segment::SLOT_BYTES
            ),
            Self::MappedAlready { address } => {
                write!(f, "a buffer of the list is mapped already, at {address}")
            }
            Self::RunsFull { runs } => {
                write!(f, "the buffers make more runs than there is room for ({runs})")
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
                write!(f, "nothing is taken at {address}: it was given back before, or never taken")
            }
            Self::Stale { address } => {
                write!(f, "what was taken at {address} was given back; it is someone else's now")
            }
            Self::Busy { address } => {
                write!(f, "someone else is freeing or copying {address}")
            }
            Self::TakenOtherwise { address, taken, given } => {
                write!(f, "{address} was taken as {taken} and should be given back as {given}")
            }
            Self::OutsideMapping { start, end, mapped_bytes } => {
                write!(f, "bytes {start}..{end} are not all in a mapping of {mapped_bytes}")
            }
            Self::StillTaken { slots, direct } => write!(
                f,
                "{slots} slots are still taken, and {direct} buffers are mapped without one"
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
