//! Coherent memory: whole pages that a driver and its device use at the same time, for rings and
//! descriptors.
//!
//! It comes from a pool, whose segments are contiguous and stay so: nothing is exchanged again.
//! (Linux makes a region for each allocation, and takes it apart afterwards.) Pages are filled with
//! zeroes, and aligned to their size rounded up to a power of two. For more than a segment (64
//! pages), `gather` a region.
#![expect(unsafe_code, reason = "writes pages that it has just taken (I-1)")]

use hypercall::{FrameAccess, PAGE_SIZE, Pfn, Refused};

use crate::address::{BusAddr, DmaMask};
use crate::copy::zero;
use crate::error::DmaError;
use crate::pool::{Held, SlotRequest};
use crate::segment::{Purpose, Segment, SlotUse};
use crate::stream::Dma;

/// Pages that are contiguous for a device.
#[must_use = "pages that are dropped are lost to the pool"]
#[derive(Debug)]
pub struct Coherent {
    held: Held,
    bus: BusAddr,
    pfn: Pfn,
    pages: usize,
}

impl Coherent {
    /// Returns the address for the device, aligned to the size rounded up to a power of two.
    #[must_use]
    pub const fn bus(&self) -> BusAddr {
        self.bus
    }

    /// Returns the first page. The others follow it in the direct mapping.
    #[must_use]
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Returns the number of pages.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// Returns the bus address alone. Give the pages back with [`Dma::free_coherent_at`].
    pub fn into_bus(self) -> BusAddr {
        self.bus
    }
}

impl<M: FrameAccess> Dma<'_, '_, M> {
    /// Takes pages that `mask` reaches, filled with zeroes.
    ///
    /// # Errors
    /// [`DmaError::TooLarge`] above a segment; otherwise as for [`map`](Self::map).
    ///
    /// ```
    /// # use pv_tests::dma;
    /// use swiotlb::{Dma, DmaMask};
    ///
    /// let (guest, pool, _) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let rings = dma.coherent(2, DmaMask::bits(64))?; // two pages in a row, zeroed
    /// println!("the device finds them at {:#x}", rings.bus().raw());
    /// dma.free_coherent(rings)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn coherent(&self, pages: usize, mask: DmaMask) -> Result<Coherent, DmaError> {
        let len_bytes = pages.saturating_mul(PAGE_SIZE);
        let stride = match len_bytes {
            0..=Segment::BYTES => pages.next_power_of_two() * (PAGE_SIZE / Segment::SLOT_BYTES),
            _ => 1,
        };
        let what = SlotUse::whole(Purpose::Coherent, len_bytes);
        let (held, bus) =
            self.pool.take(self.guest.p2m(), self.vcpu, SlotRequest { what, stride, mask })?;
        let place = self.pool.place(&held, 0, len_bytes);
        let order = pages.next_power_of_two().trailing_zeros();
        // SAFETY: pages that were just taken (I-1).
        let wiped = unsafe { zero(self.guest.machine(), place.pfn, place.offset, len_bytes) };
        let right = match bus.is_aligned(order) {
            true => wiped.map_err(DmaError::from),
            false => Err(DmaError::OutOfReach { mask }),
        };
        match right {
            Ok(()) => Ok(Coherent { held, bus, pfn: place.byte(0).0, pages }),
            Err(error) => {
                self.give_back(held, bus).map_err(|refused| refused.error)?;
                Err(error)
            }
        }
    }

    /// Gives pages back, whatever is in them.
    ///
    /// # Errors
    /// The pages, if they are of another pool, or [`free_coherent_at`](Self::free_coherent_at) has
    /// given them back.
    pub fn free_coherent(&self, pages: Coherent) -> Result<(), Refused<Coherent, DmaError>> {
        let Coherent { held, bus, .. } = pages;
        self.give_back(held, bus).map_err(|Refused { value, error }| Refused {
            value: Coherent { held: value, ..pages },
            error,
        })
    }

    /// Gives pages back by the device's address alone.
    ///
    /// # Errors
    /// As for [`unmap_at`](Self::unmap_at).
    ///
    /// # Safety
    /// [`Coherent::into_bus`] returned `bus` for as many pages, which have not been given back. The
    /// guest has not been restored since. Nobody uses the pages any more: no device, no reference
    /// or pointer, no [`Coherent`] (I-1). As for `unmap_at`, not every wrong call is noticed.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// use swiotlb::{Dma, DmaMask};
    ///
    /// let (guest, pool, _) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// // A driver that keeps nothing but the address.
    /// let bus = dma.coherent(2, DmaMask::bits(64))?.into_bus();
    /// unsafe { dma.free_coherent_at(bus, 2) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn free_coherent_at(&self, bus: BusAddr, pages: usize) -> Result<(), DmaError> {
        let len_bytes = pages.saturating_mul(PAGE_SIZE);
        let pfn = self.pfn_in_pool(bus).ok_or_else(|| self.pool.stranger(bus))?;
        let held = self.pool.find(pfn, bus, SlotUse::whole(Purpose::Coherent, len_bytes))?;
        self.give_back(held, bus).map_err(|refused| refused.error)
    }

    fn give_back(&self, held: Held, bus: BusAddr) -> Result<(), Refused<Held, DmaError>> {
        if let Err(error) = self.pool.enter(&held, bus) {
            return Err(Refused { value: held, error });
        }
        let slots = held.what().slots();
        self.pool.close_run(held, slots);
        Ok(())
    }
}
