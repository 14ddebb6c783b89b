//! DMA for a Xen PV guest: machine-contiguous memory, and bounce buffers for memory that a device
//! does not reach.
//!
//! Pages that are contiguous to a PV guest are scattered in the machine, and a device without IOMMU
//! sees the machine. So few buffers of several pages suit a device, and even a single page may be
//! beyond its address bits. This crate gathers memory that devices can use. It gives a buffer to a
//! device as it is where that is possible, and otherwise through slots of a pool.
//!
//! # Main types
//! * [`region`]: exchanges frames for machine-contiguous runs, and back.
//! * [`Pool`]: slots of 2 KiB in segments of 256 KiB. It is lock-free, and grows and shrinks.
//!   [`Area`]s keep vCPUs apart; [`Counters`] count what happened.
//! * [`Dma`]: what a driver calls. [`Dma::map`] gives a [`Buffer`] to a [`Device`] and returns a
//!   [`DmaMapping`], whose [`direction`] is a type. [`Dma::map_list`] does so for a
//!   [`scatter_list`]. [`Dma::coherent`] returns pages that driver and device share.
//! * [`BusAddr`], [`DmaMask`]: a device's address for a byte, and the addresses it reaches.
//! * `hal` (feature `virtio`): the `Hal` of crate `virtio-drivers`.
//! * [`DmaError`]: why a pool refused. It comes in a [`Refused`](hypercall::Refused) with the
//!   value.
//!
//! Functions without a *Hypercalls* section make none. The examples run on the model: `TestGuest`
//! is a guest of 16 MiB there (`pv_tests::guest`), and `a_guest_and_its_pool` makes one with a pool
//! of 256 KiB (`pv_tests::dma`).
//!
//! # What it assumes
//! There is no IOMMU: bus addresses are machine addresses, as in a dom0 or a guest with a
//! passed-through device. The caller provides all memory: places for segments and areas, frames,
//! scratch.
//!
//! # What it prevents, and what not
//! A device never gets an address that it does not reach, that is not the guest's, or that is older
//! than the last restore. It never sees bytes of an earlier mapping, and no buffer receives any.
//! The pool refuses at once, on any vCPU, whatever is given back twice, with another size, in
//! another direction, to another pool, or after someone else took it. A refused exchange loses no
//! frame. The crate cannot prevent a device from writing where it should not, nor a driver from
//! taking a buffer back while a device still uses it.
//!
//! # Example
//! ```
//! # #![allow(unsafe_code, reason = "frames of a guest that exists only in the model")]
//! use hypercall::{Frames, Pfn};
//! use p2m::{Guest, P2m};
//! use swiotlb::direction::FromDevice;
//! use swiotlb::region::Region;
//! use swiotlb::{Area, Bounce, Buffer, Device, Dma, DmaMask, GuestBytes, Pool, Segment};
//! # use std::sync::atomic::AtomicU64;
//! # let mut config = xen_model::DomainConfig::new(xen_model::Role::Dom0, 4096);
//! # config.placement = xen_model::Placement::Contiguous;
//! # config.kernel_pages = 1024;
//! # let model = xen_model::Model::builder().guest(config).build()?;
//! # let mfn = |pfn| model.guest().built_mfn(Pfn::new(pfn)).map_or(u64::MAX, |mfn| mfn.raw());
//! # let list: Vec<AtomicU64> = (0..4096).map(mfn).map(AtomicU64::new).collect();
//! # let p2m = unsafe { P2m::adopt(&list) }?;
//! # let free = (0..512).map(Pfn::new).find(|pfn| mfn(pfn.raw()) % 64 == 0).ok_or("none")?;
//! // This dom0 has its memory in one run, so nothing needs to be exchanged for a pool.
//! let frames = unsafe { Frames::claim(free, 64) };
//! let region = Region::adopt(&p2m, frames, Segment::ORDER, DmaMask::ALL)?;
//! let (segments, areas) = ([Segment::new()], [Area::new()]);
//! let pool = Pool::new(&segments, &areas)?;
//! pool.grow(&p2m, region)?;
//!
//! # let kernel_root = Pfn::new(0); // not used here
//! let guest = unsafe { Guest::new(&model, &p2m, kernel_root) };
//! let dma = Dma { guest, pool: &pool, vcpu: 0 };
//! let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::bits(32)) };
//! let place = GuestBytes { pfn: Pfn::new(600), offset: 100, len_bytes: 1500 };
//! let buffer = unsafe { Buffer::claim(place) };
//! let mapping = dma.map::<FromDevice>(&device, buffer)?;
//! let address = mapping.bus().raw();
//! // ... the device writes 1500 bytes at `address` ...
//! # assert!(mapping.is_bounced() && address > 0);
//! let buffer = dma.unmap(mapping)?;
//! assert_eq!(pool.counters().bytes_from_device, 1500);
//! # assert_eq!(buffer.place(), place);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The CPU cannot fetch bytes that a device only reads:
//! ```compile_fail
//! # use swiotlb::{Dma, DmaMapping, direction::ToDevice};
//! # use hypercall::FrameAccess;
//! fn fetch<M: FrameAccess>(dma: &Dma<M>, mapping: &mut DmaMapping<ToDevice>) {
//!     let _ = dma.sync_for_cpu(mapping, 0..1);
//! }
//! ```
//! A mapping ends once:
//! ```compile_fail
//! # use swiotlb::{Dma, DmaMapping, direction::Bidirectional};
//! # use hypercall::FrameAccess;
//! fn twice<M: FrameAccess>(dma: &Dma<M>, mapping: DmaMapping<Bidirectional>) {
//!     let _ = dma.unmap(mapping);
//!     let _ = dma.unmap(mapping);
//! }
//! ```
#![cfg_attr(not(any(test, loom)), no_std)]

mod address;
mod bits;
mod coherent;
mod contiguous;
mod copy;
mod counters;
mod direct;
pub mod direction;
mod error;
mod exchange;
mod exchange_error;
#[cfg(feature = "virtio")]
pub mod hal;
mod pool;
pub mod region;
pub mod scatter_list;
mod segment;
mod stream;
mod sync;

pub use address::{BusAddr, DmaMask};
pub use coherent::Coherent;
pub use contiguous::GuestBytes;
pub use counters::{Area, Counters};
pub use error::DmaError;
pub use pool::Pool;
pub use segment::{Purpose, Segment, SlotUse};
pub use stream::{Bounce, Buffer, Device, Dma, DmaMapping};
