//! Scatter lists: many buffers for one transfer.
//!
//! Buffers that turn out to be neighbours on the bus become one run, as far as the device takes it:
//! a transfer needs as few descriptors as the machine's memory allows.

use core::fmt;

use hypercall::{FrameAccess, Refused};

use crate::address::BusAddr;
use crate::direction::Direction;
use crate::error::DmaError;
use crate::stream::{Buffer, Device, Dma, DmaMapping};

/// A place in a list: the buffer before the transfer, the mapping while it lasts.
#[derive(Debug)]
pub enum Item<D> {
    /// Nothing.
    Empty,
    /// A buffer that is not mapped.
    Buffer(Buffer),
    /// One that is.
    Mapped(DmaMapping<D>),
}

/// What a descriptor is filled with: bytes that are contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRun {
    /// The first byte.
    pub start: BusAddr,
    /// How many.
    pub len_bytes: u64,
}

impl BusRun {
    /// Room for a run, to build storage with.
    pub const EMPTY: Self = Self { start: BusAddr::from_raw(0), len_bytes: 0 };
}

/// An item of a list that could not be mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemError {
    /// Which one, from 0 on.
    pub item: usize,
    /// Why.
    pub error: DmaError,
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "item {} of the list: {}", self.item, self.error)
    }
}

impl core::error::Error for ItemError {}

impl<D: Direction> Item<D> {
    fn map<M: FrameAccess>(
        &mut self,
        dma: &Dma<'_, '_, M>,
        device: &Device,
    ) -> Result<(), DmaError> {
        match core::mem::replace(self, Self::Empty) {
            Self::Buffer(buffer) => match dma.map(device, buffer) {
                Ok(mapping) => *self = Self::Mapped(mapping),
                Err(Refused { value, error }) => {
                    *self = Self::Buffer(value);
                    return Err(error);
                }
            },
            other => *self = other,
        }
        Ok(())
    }

    fn unmap(
        &mut self,
        how: impl FnOnce(DmaMapping<D>) -> Result<Buffer, Refused<DmaMapping<D>, DmaError>>,
    ) -> Result<(), DmaError> {
        match core::mem::replace(self, Self::Empty) {
            Self::Mapped(mapping) => match how(mapping) {
                Ok(buffer) => *self = Self::Buffer(buffer),
                Err(Refused { value, error }) => {
                    *self = Self::Mapped(value);
                    return Err(error);
                }
            },
            other => *self = other,
        }
        Ok(())
    }
}

impl<M: FrameAccess> Dma<'_, '_, M> {
    /// Maps all buffers of a list, and fills in how the device sees them; how many runs that are.
    /// No more than `items.len()` are needed.
    ///
    /// # Errors
    /// The first buffer that could not be mapped, or [`DmaError::RunsFull`] if `runs` is too short;
    /// no buffer is mapped then, and none was changed. [`DmaError::MappedAlready`] if something in
    /// the list is mapped before: a device may be using it, so it stays as it is.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// # use hypercall::Pfn;
    /// use swiotlb::direction::ToDevice;
    /// use swiotlb::scatter_list::{BusRun, Item};
    /// use swiotlb::{Buffer, Device, Dma, DmaMask, GuestBytes};
    ///
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { guest: guest.guest, pool: &pool, vcpu: 0 };
    /// let page = |at| GuestBytes { pfn: Pfn::new(page.raw() + at), offset: 0, len_bytes: 4096 };
    /// let mut items =
    ///     [0, 1, 2].map(|at| Item::<ToDevice>::Buffer(unsafe { Buffer::claim(page(at)) }));
    /// let mut runs = [BusRun::EMPTY; 3];
    /// let device = Device::new(DmaMask::bits(64));
    /// let used = dma.map_list(&device, &mut items, &mut runs)?;
    /// assert_eq!(runs[..used].iter().map(|run| run.len_bytes).sum::<u64>(), 3 * 4096);
    /// dma.unmap_list(&mut items)?;
    /// # Ok::<(), swiotlb::scatter_list::ItemError>(())
    /// ```
    pub fn map_list<D: Direction>(
        &self,
        device: &Device,
        items: &mut [Item<D>],
        runs: &mut [BusRun],
    ) -> Result<usize, ItemError> {
        for (at, item) in items.iter().enumerate() {
            if let Item::Mapped(mapping) = item {
                let error = DmaError::MappedAlready { address: mapping.bus() };
                return Err(ItemError { item: at, error });
            }
        }
        for at in 0..items.len() {
            if let Err(error) = items[at].map(self, device) {
                let error = self.cancel_all(&mut items[..at]).err().unwrap_or(error);
                return Err(ItemError { item: at, error });
            }
        }
        let mut used = 0usize;
        for at in 0..items.len() {
            let Item::Mapped(mapping) = &items[at] else { continue };
            let next = BusRun { start: mapping.bus(), len_bytes: mapping.len_bytes() as u64 };
            if let Some(last) = used.checked_sub(1).map(|last| &mut runs[last])
                && merges(device, *last, next)
            {
                last.len_bytes += next.len_bytes;
                continue;
            }
            let Some(run) = runs.get_mut(used) else {
                let error = DmaError::RunsFull { runs: used };
                let error = self.cancel_all(items).err().unwrap_or(error);
                return Err(ItemError { item: at, error });
            };
            *run = next;
            used += 1;
        }
        Ok(used)
    }

    /// Unmaps all buffers of a list. It goes on behind one that fails.
    ///
    /// # Errors
    /// The first failure and where it was: that one is still mapped.
    ///
    /// # Hypercalls
    /// None.
    pub fn unmap_list<D: Direction>(&self, items: &mut [Item<D>]) -> Result<(), ItemError> {
        let mut result = Ok(());
        for (at, item) in items.iter_mut().enumerate() {
            let unmapped = item.unmap(|mapping| self.unmap(mapping));
            result = result.and(unmapped.map_err(|error| ItemError { item: at, error }));
        }
        result
    }

    /// Takes all buffers back as they were.
    fn cancel_all<D: Direction>(&self, items: &mut [Item<D>]) -> Result<(), DmaError> {
        let mut result = Ok(());
        for item in items.iter_mut().rev() {
            result = result.and(item.unmap(|mapping| self.cancel(mapping)));
        }
        result
    }
}

/// Returns whether `next` lies behind `last`, and the device takes both as one.
fn merges(device: &Device, last: BusRun, next: BusRun) -> bool {
    let len_bytes = last.len_bytes + next.len_bytes;
    last.start.checked_add(last.len_bytes) == Some(next.start)
        && device.run_bytes_max.is_none_or(|max| len_bytes <= max.get())
}
