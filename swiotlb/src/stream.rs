//! Streaming mappings: a device gets a buffer for one transfer.
//!
//! If the buffer is contiguous in the machine and the device reaches it, the device gets it as it
//! is, and nothing is copied. Otherwise it gets slots of the pool. The driver sees the same either
//! way: the device finds what the buffer held, and what the device does not write stays. For that,
//! slots begin as a copy of the buffer in any direction, with zeroes around it. So no device and no
//! buffer ever receives bytes of an earlier mapping.
#![expect(unsafe_code, reason = "writes slots and buffers that the mapping owns (I-1, I-11)")]

use core::marker::PhantomData;
use core::num::NonZeroU64;
use core::ops::Range;

use hypercall::{AccessError, FrameAccess, PAGE_SIZE, Pfn, Refused};
use p2m::Guest;

use crate::address::{BusAddr, DmaMask};
use crate::contiguous::GuestBytes;
use crate::copy::{copy, zero};
use crate::counters::Count;
use crate::direction::{DeviceReads, DeviceWrites, Direction};
use crate::error::DmaError;
use crate::pool::{Held, Pool, PoolNumber, SlotRequest};
use crate::segment::{Purpose, Segment, SlotUse};

/// What a device can do and what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// How far its addresses reach.
    pub mask: DmaMask,
    /// Low bits of an address that a bounced buffer must share with the original: 0 for most
    /// devices, 4095 for one that takes lists of pages with one offset. A power of two less one, at
    /// most 4095; more counts as 4095.
    pub same_bits: usize,
    /// The longest run of bytes that it takes as one element of a list, if there is a limit.
    pub run_bytes_max: Option<NonZeroU64>,
    /// When to copy its buffers.
    pub bounce: Bounce,
}

/// When to copy a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounce {
    /// Only if the device cannot use it as it is.
    IfNeeded,
    /// Always: for tests, and for a device not trusted with the rest of the buffer's pages.
    Always,
}

impl Device {
    /// Creates a device with this mask and no other needs.
    #[must_use]
    pub const fn new(mask: DmaMask) -> Self {
        Self { mask, same_bits: 0, run_bytes_max: None, bounce: Bounce::IfNeeded }
    }

    /// Returns the bits as a mask, and the distance in slots of two places where they are zero.
    const fn bits(&self) -> (usize, usize) {
        let bits = match self.same_bits {
            0 => 0,
            bits if bits >= PAGE_SIZE => PAGE_SIZE - 1,
            bits => (bits + 1).next_power_of_two() - 1,
        };
        (bits, (bits + 1).div_ceil(Segment::SLOT_BYTES))
    }
}

/// Bytes for a device: a token, which moves into the mapping and comes out when that ends.
///
/// # Invariants
/// I-11: until it ends nobody reads or writes the bytes through a Rust reference, and no other
/// `Buffer` has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Buffer(GuestBytes);

impl Buffer {
    /// Makes the token. An offset of a page or more counts on into the next frames.
    ///
    /// # Safety
    /// The bytes are in frames of the guest's own. Nobody else uses them while the token exists
    /// (I-11).
    pub const unsafe fn claim(place: GuestBytes) -> Self {
        let GuestBytes { pfn, offset, len_bytes } = place;
        let pfn = Pfn::new(pfn.raw() + (offset / PAGE_SIZE) as u64);
        Self(GuestBytes { pfn, offset: offset % PAGE_SIZE, len_bytes })
    }

    /// Returns where the bytes are.
    #[must_use]
    pub const fn place(&self) -> GuestBytes {
        self.0
    }
}

/// A buffer that a device has.
#[must_use = "a mapping that is dropped keeps its slots and its buffer"]
#[derive(Debug)]
pub struct DmaMapping<D> {
    buffer: Buffer,
    bus: BusAddr,
    seat: Seat,
    direction: PhantomData<D>,
}

/// Where the device has the bytes.
#[derive(Debug)]
enum Seat {
    /// In slots.
    Slots(Held),
    /// In the buffer itself. The pool counts it.
    Direct(PoolNumber),
}

impl<D> DmaMapping<D> {
    /// Returns the address for the device.
    #[must_use]
    pub const fn bus(&self) -> BusAddr {
        self.bus
    }

    /// Returns the number of bytes that the device has.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.buffer.0.len_bytes
    }

    /// Returns whether the device works on a copy.
    #[must_use]
    pub const fn is_bounced(&self) -> bool {
        matches!(self.seat, Seat::Slots(_))
    }
}

/// A guest, its pool and a vCPU: what a driver calls. It holds only borrows; pass it by value.
#[derive(Debug)]
pub struct Dma<'a, 'm, M> {
    /// The guest whose buffers devices get.
    pub guest: Guest<'a, M>,
    /// Where bounced buffers go.
    pub pool: &'a Pool<'m>,
    /// The vCPU that this runs on. A wrong number costs only time.
    pub vcpu: usize,
}

impl<M> Clone for Dma<'_, '_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Dma<'_, '_, M> {}

impl<M: FrameAccess> Dma<'_, '_, M> {
    /// Gives a buffer to a device.
    ///
    /// # Errors
    /// The buffer, with: [`DmaError::TooLarge`] if no pool can ever serve it;
    /// [`DmaError::PoolFull`] if this one cannot now; [`DmaError::OutOfReach`] if the device
    /// reaches no part of the pool; or what is wrong with the buffer.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// use swiotlb::direction::ToDevice;
    /// use swiotlb::{Buffer, Device, Dma, DmaMask, GuestBytes};
    ///
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// // Nobody touches the bytes until the buffer is back.
    /// let buffer = unsafe { Buffer::claim(place) };
    /// let device = Device::new(DmaMask::bits(64));
    /// let mapping = dma.map::<ToDevice>(&device, buffer)?;
    /// assert!(!mapping.is_bounced()); // within a page, and the device reaches it
    /// println!("the device reads 512 bytes at {:#x}", mapping.bus().raw());
    /// let buffer = dma.unmap(mapping)?;
    /// assert_eq!(buffer.place(), place);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn map<D: Direction>(
        &self,
        device: &Device,
        buffer: Buffer,
    ) -> Result<DmaMapping<D>, Refused<Buffer, DmaError>> {
        let seat = match self.find_direct(device, buffer.0) {
            Ok(Some(bus)) => {
                self.pool.area(self.vcpu).add_one(Count::DirectMaps);
                Ok((bus, Seat::Direct(self.pool.number())))
            }
            Ok(None) => self.bounce(device, buffer.0, D::PURPOSE),
            Err(error) => Err(error),
        };
        match seat {
            Ok((bus, seat)) => Ok(DmaMapping { buffer, bus, seat, direction: PhantomData }),
            Err(error) => Err(Refused { value: buffer, error }),
        }
    }

    /// Maps as [`map`](Self::map) does, for interfaces that remember only an address. End the
    /// mapping with [`unmap_at`](Self::unmap_at). The pool has records for 64 buffers an area that
    /// need no copy; beyond them such buffers take slots, too.
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    ///
    /// ```
    /// # use pv_tests::dma;
    /// use swiotlb::direction::FromDevice;
    /// use swiotlb::{Buffer, Device, Dma, DmaMask, GuestBytes};
    ///
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// let device = Device::new(DmaMask::bits(64));
    /// let buffer = unsafe { Buffer::claim(place) };
    /// // A driver that keeps nothing but the address.
    /// let bus = dma.map_at::<FromDevice>(&device, buffer)?;
    /// unsafe { dma.unmap_at::<FromDevice>(bus, place) }?;
    /// let again = unsafe { dma.unmap_at::<FromDevice>(bus, place) };
    /// assert!(again.is_err()); // a second end is noticed
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_at<D: Direction>(
        &self,
        device: &Device,
        buffer: Buffer,
    ) -> Result<BusAddr, Refused<Buffer, DmaError>> {
        let mapped = self.map_as(D::PURPOSE, device, buffer.0);
        mapped.map_err(|error| Refused { value: buffer, error })
    }

    /// [`map_at`](Self::map_at), with the direction as a value, and the token left with the caller.
    pub(crate) fn map_as(
        &self,
        purpose: Purpose,
        device: &Device,
        place: GuestBytes,
    ) -> Result<BusAddr, DmaError> {
        if let Some(bus) = self.find_direct(device, place)?
            && self.pool.remember(self.vcpu, bus, SlotUse::whole(purpose, place.len_bytes))
        {
            self.pool.area(self.vcpu).add_one(Count::DirectMaps);
            return Ok(bus);
        }
        // The slots come back by their address.
        self.bounce(device, place, purpose).map(|(bus, _)| bus)
    }

    /// Returns the device's address of the buffer itself, if the device can use it as it is.
    #[inline]
    fn find_direct(&self, device: &Device, place: GuestBytes) -> Result<Option<BusAddr>, DmaError> {
        if place.len_bytes == 0 {
            return Err(DmaError::Empty);
        }
        let (bus, together) = place.contiguous(self.guest.p2m())?;
        let reached = device.mask.reaches(bus, place.len_bytes as u64);
        let right = together == place.len_bytes && reached && device.bounce == Bounce::IfNeeded;
        Ok(right.then_some(bus))
    }

    /// Copies a buffer to slots and gives those to the device.
    #[inline]
    fn bounce(
        &self,
        device: &Device,
        place: GuestBytes,
        purpose: Purpose,
    ) -> Result<(BusAddr, Seat), DmaError> {
        let (bits, stride) = device.bits();
        let head_bytes = place.offset & bits;
        let what = SlotUse { purpose, head_bytes, len_bytes: place.len_bytes };
        let request = SlotRequest { what, stride, mask: device.mask };
        let (held, bus) = self.pool.take(self.guest.p2m(), self.vcpu, request)?;
        match self.fill(&held, place, what) {
            Ok(()) => Ok((bus, Seat::Slots(held))),
            Err(error) => {
                self.pool.enter(&held, bus)?;
                self.pool.close_run(held, what.slots());
                Err(error)
            }
        }
    }

    /// Fills slots with a copy of the buffer, and zeroes around it.
    #[inline]
    fn fill(&self, held: &Held, place: GuestBytes, what: SlotUse) -> Result<(), DmaError> {
        let SlotUse { head_bytes, len_bytes, .. } = what;
        let end = head_bytes + len_bytes;
        let gaps = [(0, head_bytes), (end, what.slots() * Segment::SLOT_BYTES - end)];
        for (at, count) in gaps {
            if count > 0 {
                let gap = self.pool.place(held, at, count);
                // SAFETY: bytes of slots that were just taken (I-1).
                unsafe { zero(self.guest.machine(), gap.pfn, gap.offset, count) }?;
            }
        }
        // SAFETY: as above.
        unsafe { copy(self.guest.machine(), place, self.pool.place(held, head_bytes, len_bytes)) }?;
        self.pool.area(self.vcpu).add(Count::BytesToDevice, len_bytes);
        Ok(())
    }

    /// Takes the buffer back, with what the device wrote in it.
    ///
    /// # Errors
    /// The mapping, if it is of another pool, or [`Dma::unmap_at`] has ended it.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// # use swiotlb::direction::FromDevice;
    /// # use swiotlb::{Bounce, Buffer, Device, Dma, DmaMask, GuestBytes};
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// let buffer = unsafe { Buffer::claim(place) };
    /// let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::bits(32)) };
    /// let mapping = dma.map::<FromDevice>(&device, buffer)?;
    /// let _buffer = dma.unmap(mapping)?; // the bytes are in it now
    /// assert_eq!(pool.counters().bytes_from_device, 512);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn unmap<D: Direction>(
        &self,
        mapping: DmaMapping<D>,
    ) -> Result<Buffer, Refused<DmaMapping<D>, DmaError>> {
        self.end_mapping(mapping, D::PURPOSE)
    }

    /// Takes the buffer back after a transfer that did not happen. Nothing is copied: a bounced
    /// buffer is as it was, any other as the device left it.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap).
    ///
    /// ```
    /// # use pv_tests::dma;
    /// use swiotlb::direction::FromDevice;
    /// use swiotlb::{Bounce, Buffer, Device, Dma, DmaMask, GuestBytes};
    ///
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::bits(64)) };
    /// let buffer = unsafe { Buffer::claim(place) };
    /// let mapping = dma.map::<FromDevice>(&device, buffer)?;
    /// dma.cancel(mapping)?; // the device was never told
    /// assert_eq!(pool.counters().bytes_from_device, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel<D: Direction>(
        &self,
        mapping: DmaMapping<D>,
    ) -> Result<Buffer, Refused<DmaMapping<D>, DmaError>> {
        // As if the device had written nothing: no byte of the slots is copied.
        self.end_mapping(mapping, Purpose::ToDevice)
    }

    /// Ends a mapping as if its direction were `purpose`.
    #[inline]
    fn end_mapping<D>(
        &self,
        mapping: DmaMapping<D>,
        purpose: Purpose,
    ) -> Result<Buffer, Refused<DmaMapping<D>, DmaError>> {
        let DmaMapping { buffer, bus, seat, direction } = mapping;
        let (error, seat) = match seat {
            Seat::Direct(pool) if pool == self.pool.number() => {
                self.pool.area(self.vcpu).add_one(Count::DirectUnmaps);
                return Ok(buffer);
            }
            Seat::Direct(_) => (self.pool.stranger(bus), seat),
            Seat::Slots(held) => match self.end(held, bus, buffer.0, purpose) {
                Ok(()) => return Ok(buffer),
                Err(Refused { value, error }) => (error, Seat::Slots(value)),
            },
        };
        Err(Refused { value: DmaMapping { buffer, bus, seat, direction }, error })
    }

    /// Copies back what the direction demands, and gives the slots back.
    #[inline]
    fn end(
        &self,
        held: Held,
        bus: BusAddr,
        place: GuestBytes,
        purpose: Purpose,
    ) -> Result<(), Refused<Held, DmaError>> {
        if let Err(error) = self.pool.enter(&held, bus) {
            return Err(Refused { value: held, error });
        }
        let what = held.what();
        if matches!(purpose, Purpose::FromDevice | Purpose::Bidirectional) {
            let from = self.pool.place(&held, what.head_bytes, what.len_bytes);
            // SAFETY: the buffer is the mapping's (I-11).
            if let Err(error) = unsafe { copy(self.guest.machine(), from, place) } {
                self.pool.leave(&held);
                return Err(Refused { value: held, error: error.into() });
            }
            self.pool.area(self.vcpu).add(Count::BytesFromDevice, what.len_bytes);
        }
        self.pool.close_run(held, what.slots());
        Ok(())
    }

    /// Shows the device the present contents of `range` of the buffer.
    ///
    /// # Errors
    /// [`DmaError::OutsideMapping`], and as for [`unmap`](Self::unmap).
    ///
    /// ```
    /// # use pv_tests::dma;
    /// # use swiotlb::direction::ToDevice;
    /// # use swiotlb::{Bounce, Buffer, Device, Dma, DmaMask, GuestBytes};
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// let buffer = unsafe { Buffer::claim(place) };
    /// let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::bits(32)) };
    /// let mapping = dma.map::<ToDevice>(&device, buffer)?;
    /// // ... the driver writes the first 64 bytes of its buffer ...
    /// dma.sync_for_device(&mapping, 0..64)?;
    /// let _buffer = dma.unmap(mapping)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sync_for_device<D: DeviceReads>(
        &self,
        mapping: &DmaMapping<D>,
        range: Range<usize>,
    ) -> Result<(), DmaError> {
        self.sync(mapping, range, |buffer, slots| {
            self.pool.area(self.vcpu).add(Count::BytesToDevice, buffer.len_bytes);
            // SAFETY: bytes of slots that are taken, by nobody else while they are busy (I-1).
            unsafe { copy(self.guest.machine(), buffer, slots) }
        })
    }

    /// Updates `range` of the buffer with what the device has written.
    ///
    /// # Errors
    /// [`DmaError::OutsideMapping`], and as for [`unmap`](Self::unmap).
    ///
    /// ```
    /// # use pv_tests::dma;
    /// # use swiotlb::direction::FromDevice;
    /// # use swiotlb::{Bounce, Buffer, Device, Dma, DmaMask, GuestBytes};
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let place = GuestBytes { pfn: page, offset: 0, len_bytes: 512 };
    /// let buffer = unsafe { Buffer::claim(place) };
    /// let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::bits(32)) };
    /// let mut mapping = dma.map::<FromDevice>(&device, buffer)?;
    /// dma.sync_for_cpu(&mut mapping, 0..64)?; // a header that the device has written
    /// let _buffer = dma.unmap(mapping)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn sync_for_cpu<D: DeviceWrites>(
        &self,
        mapping: &mut DmaMapping<D>,
        range: Range<usize>,
    ) -> Result<(), DmaError> {
        self.sync(mapping, range, |buffer, slots| {
            self.pool.area(self.vcpu).add(Count::BytesFromDevice, buffer.len_bytes);
            // SAFETY: the buffer is the mapping's (I-11).
            unsafe { copy(self.guest.machine(), slots, buffer) }
        })
    }

    /// Copies a part of a bounced mapping one way.
    fn sync<D>(
        &self,
        mapping: &DmaMapping<D>,
        range: Range<usize>,
        copy: impl Fn(GuestBytes, GuestBytes) -> Result<(), AccessError>,
    ) -> Result<(), DmaError> {
        let mapped_bytes = mapping.len_bytes();
        let Range { start, end } = range;
        if start > end || end > mapped_bytes {
            return Err(DmaError::OutsideMapping { start, end, mapped_bytes });
        }
        let len_bytes = end - start;
        let Seat::Slots(held) = &mapping.seat else { return Ok(()) };
        self.pool.enter(held, mapping.bus)?;
        let (pfn, at) = mapping.buffer.0.byte(start);
        let buffer = GuestBytes { pfn, offset: at, len_bytes };
        let at = held.what().head_bytes + start;
        let result = copy(buffer, self.pool.place(held, at, len_bytes));
        self.pool.leave(held);
        Ok(result?)
    }

    /// Ends a mapping by the device's address alone, for drivers whose interfaces keep nothing
    /// else. `buffer` is what was mapped there.
    ///
    /// # Errors
    /// [`DmaError::NotTaken`] if it has ended before; [`DmaError::TakenOtherwise`] if another
    /// length or direction was mapped; [`DmaError::NotOfThisPool`] if the address is neither in the
    /// pool nor the buffer's own.
    ///
    /// # Safety
    /// * [`map_at`](Self::map_at) returned `bus` for `buffer`. That mapping has not ended, and no
    ///   [`DmaMapping`] has it. The guest has not been restored since.
    /// * The bytes of `buffer` are those that were mapped (I-11).
    ///
    /// The pool reports what it can see of a wrong call, but not everything: the slots may be
    /// someone else's by now, in the same direction and of the same length.
    pub unsafe fn unmap_at<D: Direction>(
        &self,
        bus: BusAddr,
        buffer: GuestBytes,
    ) -> Result<(), DmaError> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.unmap_as(D::PURPOSE, bus, buffer) }
    }

    /// [`unmap_at`](Self::unmap_at), with the direction as a value.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn unmap_as(
        &self,
        purpose: Purpose,
        bus: BusAddr,
        buffer: GuestBytes,
    ) -> Result<(), DmaError> {
        let what = SlotUse::whole(purpose, buffer.len_bytes);
        if let Some(pfn) = self.pfn_in_pool(bus) {
            let held = self.pool.find(pfn, bus, what)?;
            return self.end(held, bus, buffer, purpose).map_err(|refused| refused.error);
        }
        if buffer.contiguous(self.guest.p2m())? != (bus, buffer.len_bytes) {
            return Err(self.pool.stranger(bus));
        }
        self.pool.forget(self.vcpu, bus, what)?;
        self.pool.area(self.vcpu).add_one(Count::DirectUnmaps);
        Ok(())
    }

    /// Returns the pfn of an address, if the frame is in the pool.
    pub(crate) fn pfn_in_pool(&self, bus: BusAddr) -> Option<Pfn> {
        let pfn = self.guest.pfn(bus.mfn()).ok()?;
        self.pool.contains(pfn).then_some(pfn)
    }
}
