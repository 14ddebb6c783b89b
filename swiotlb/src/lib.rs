//! x
#![cfg_attr(not(any(test, loom)), no_std)]

mod address;
mod bits;
mod coherent;
mod contiguous;
mod copy;
mod counters;
mod error;
mod exchange;
#[cfg(feature = "virtio")]
mod hal;
mod pool;
mod region;
mod scatter_list;
mod segment;
mod stream;
mod sync;

pub use address::{BusAddr, DmaMask};
pub use coherent::Coherent;
pub use contiguous::{Place, contiguous, is_aligned};
pub use counters::{Area, Counters};
pub use error::Error;
pub use exchange::{Around, Scratch};
#[cfg(feature = "virtio")]
pub use hal::{DmaHal, DmaOperations, HalGuest};
pub use pool::Pool;
pub use region::{Region, RegionError, gather, reinstate, scatter};
pub use scatter_list::{BusRun, Item};
pub use segment::{Purpose, SEGMENT_BYTES, SEGMENT_ORDER, SLOT_BYTES, SLOTS, Segment, Use};
pub use stream::{
    Both, Buffer, Device, DeviceReads, DeviceWrites, Direction, Dma, FromDevice, Mapping, Path,
    ToDevice,
};
