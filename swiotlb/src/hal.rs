//! The `Hal` of crate `virtio-drivers`: its drivers work in a PV guest.
//!
//! That crate's interface has functions without `self`, so a guest names its DMA by a type:
//! [`HalGuest`]. Allocation in that interface can fail. `share` and `unshare` cannot, and a made-up
//! address would let the device write to somebody else's memory: they panic with the reason. They
//! never do if the pool has room for the queues of all drivers.
#![expect(unsafe_code, reason = "implements a trait whose implementers make promises")]

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use hypercall::FrameAccess;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::address::BusAddr;
use crate::contiguous::GuestBytes;
use crate::error::DmaError;
use crate::segment::Purpose;
use crate::stream::{Device, Dma};

/// A guest whose drivers use [`DmaHal`].
///
/// # Safety
/// * `with` lends operations on the same pool each time.
/// * `place` names the frames that the address is mapped to.
/// * `device_registers` returns a mapping of the registers that nothing else uses.
pub unsafe trait HalGuest {
    /// Calls `work` with the guest's DMA.
    fn with<T>(work: impl FnOnce(&dyn DmaOperations) -> T) -> T;

    /// Returns the frames behind a driver's buffer: one run of pfns.
    fn place(buffer: NonNull<[u8]>) -> Option<GuestBytes>;

    /// Returns the address at which the registers at a bus address are mapped.
    fn device_registers(start: BusAddr, len_bytes: usize) -> Option<NonNull<u8>>;
}

/// What the drivers need, on any machine. [`DeviceDma`] implements it.
///
/// # Safety
/// Pages that were taken are nobody else's until they are given back (I-1), and are at the two
/// addresses returned. The device sees a buffer at the address that `share` returns, and nowhere
/// else.
pub unsafe trait DmaOperations {
    /// [`Dma::coherent`]. Also returns the kernel's address.
    ///
    /// # Errors
    /// As there.
    fn take_pages(&self, pages: usize) -> Result<(BusAddr, NonNull<u8>), DmaError>;

    /// [`Dma::free_coherent_at`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn give_pages(&self, start: BusAddr, pages: usize) -> Result<(), DmaError>;

    /// [`Dma::map_at`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As for [`Buffer::claim`](crate::Buffer::claim), until [`unshare`](Self::unshare).
    unsafe fn share(
        &self,
        place: GuestBytes,
        direction: BufferDirection,
    ) -> Result<BusAddr, DmaError>;

    /// [`Dma::unmap_at`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    unsafe fn unshare(
        &self,
        start: BusAddr,
        place: GuestBytes,
        direction: BufferDirection,
    ) -> Result<(), DmaError>;
}

/// DMA for one device.
#[derive(Debug)]
pub struct DeviceDma<'a, 'm, M> {
    /// The guest and its pool.
    pub dma: Dma<'a, 'm, M>,
    /// The device.
    pub device: Device,
}

// SAFETY: pages and slots come from the pool, which gives them to one owner at a time. Their
// addresses come from P2M and from the machine.
unsafe impl<M: FrameAccess> DmaOperations for DeviceDma<'_, '_, M> {
    fn take_pages(&self, pages: usize) -> Result<(BusAddr, NonNull<u8>), DmaError> {
        let Self { dma, device } = self;
        let memory = dma.coherent(pages, device.mask)?;
        let address = dma.guest.machine().direct_map(memory.pfn());
        let address = address.ok().and_then(|va| NonNull::new(va.addr().as_mut_ptr()));
        match address {
            Some(address) => Ok((memory.into_bus(), address)),
            None => {
                let unmapped = hypercall::AccessError::Unmapped(memory.pfn());
                dma.free_coherent(memory).map_err(|refused| refused.error)?;
                Err(unmapped.into())
            }
        }
    }

    unsafe fn give_pages(&self, start: BusAddr, pages: usize) -> Result<(), DmaError> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.dma.free_coherent_at(start, pages) }
    }

    unsafe fn share(
        &self,
        place: GuestBytes,
        direction: BufferDirection,
    ) -> Result<BusAddr, DmaError> {
        let Self { dma, device } = self;
        dma.map_as(purpose(direction), device, place)
    }

    unsafe fn unshare(
        &self,
        start: BusAddr,
        place: GuestBytes,
        direction: BufferDirection,
    ) -> Result<(), DmaError> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.dma.unmap_as(purpose(direction), start, place) }
    }
}

const fn purpose(direction: BufferDirection) -> Purpose {
    match direction {
        BufferDirection::DriverToDevice => Purpose::ToDevice,
        BufferDirection::DeviceToDriver => Purpose::FromDevice,
        BufferDirection::Both => Purpose::Bidirectional,
    }
}

/// The `Hal` for the drivers of guest `G`.
pub struct DmaHal<G>(PhantomData<G>);

impl<G> fmt::Debug for DmaHal<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DmaHal")
    }
}

/// Panics with what the interface cannot return.
#[cold]
fn give_up(what: &str, why: &dyn fmt::Display) -> ! {
    panic!("{what}: {why}")
}

fn place<G: HalGuest>(buffer: NonNull<[u8]>) -> GuestBytes {
    match G::place(buffer) {
        Some(place) => place,
        None => give_up("a driver's buffer", &"it is not in the guest's memory"),
    }
}

// SAFETY: a pool gives pages to one owner at a time, contiguous, filled with zeroes, and where the
// direct mapping shows them. The rest is the guest's promise.
unsafe impl<G: HalGuest> Hal for DmaHal<G> {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match G::with(|dma| dma.take_pages(pages)) {
            Ok((start, address)) => (start.raw(), address),
            // The driver takes address 0 as a refusal.
            Err(_) => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(start: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the driver gives back what `dma_alloc` returned.
        match G::with(|dma| unsafe { dma.give_pages(BusAddr::from_raw(start), pages) }) {
            Ok(()) => 0,
            Err(_) => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(start: PhysAddr, len_bytes: usize) -> NonNull<u8> {
        match G::device_registers(BusAddr::from_raw(start), len_bytes) {
            Some(address) => address,
            None => give_up("the device's registers", &"they are not mapped"),
        }
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let place = place::<G>(buffer);
        // SAFETY: the driver keeps the buffer to itself until it is unshared.
        match G::with(|dma| unsafe { dma.share(place, direction) }) {
            Ok(start) => start.raw(),
            Err(error) => give_up("sharing a buffer", &error),
        }
    }

    unsafe fn unshare(start: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let (place, start) = (place::<G>(buffer), BusAddr::from_raw(start));
        // SAFETY: by the driver's word, the buffer that was shared.
        if let Err(error) = G::with(|dma| unsafe { dma.unshare(start, place, direction) }) {
            give_up("taking a buffer back", &error);
        }
    }
}
