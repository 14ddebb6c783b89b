//! Scatter lists: many buffers for one transfer.
//!
//! Buffers that are neighbours on the bus become one run, as far as the device takes it. So a
//! transfer needs as few descriptors as the machine's memory allows.

use core::fmt;

use hypercall::{FrameAccess, Refused};

use crate::address::BusAddr;
use crate::direction::Direction;
use crate::error::DmaError;
use crate::stream::{Buffer, Device, Dma, DmaMapping};

/// An item of a list: a buffer before the transfer, a mapping during it.
#[derive(Debug)]
pub enum Item<D> {
    /// Nothing.
    Empty,
    /// A buffer that is not mapped.
    Buffer(Buffer),
    /// A buffer that is mapped.
    Mapped(DmaMapping<D>),
}

/// The contents of a descriptor: bytes that are contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRun {
    /// The first byte.
    pub start: BusAddr,
    /// The number of bytes.
    pub len_bytes: u64,
}

impl BusRun {
    /// An empty run, to build storage with.
    pub const EMPTY: Self = Self { start: BusAddr::from_raw(0), len_bytes: 0 };
}

/// An item of a list that could not be mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemError {
    /// Its index.
    pub item: usize,
    /// The reason.
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
    /// Maps all buffers of a list, and stores in `runs` how the device sees them. Returns the
    /// number of runs, at most `items.len()`.
    ///
    /// # Errors
    /// The first buffer that could not be mapped, or [`DmaError::RunsFull`] if `runs` is too short.
    /// No buffer is mapped then, and none has changed. [`DmaError::MappedAlready`] if an item is
    /// mapped already: it stays mapped, because a device may be using it.
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

    /// Unmaps all buffers of a list. A failure does not keep it from the rest.
    ///
    /// # Errors
    /// The first failure and its item, which is still mapped.
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

/// Returns whether `next` is directly behind `last`, and the device takes both as one.
fn merges(device: &Device, last: BusRun, next: BusRun) -> bool {
    let len_bytes = last.len_bytes + next.len_bytes;
    last.start.checked_add(last.len_bytes) == Some(next.start)
        && device.run_bytes_max.is_none_or(|max| len_bytes <= max.get())
}
