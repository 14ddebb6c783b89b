//! Scatter lists: many buffers for one transfer.
//!
//! Buffers that turn out to be neighbours on the bus become one run, as far as the device takes it:
//! a transfer needs as few descriptors as the machine's memory allows.

use hypercall::FrameAccess;

use crate::address::BusAddr;
use crate::error::Error;
use crate::stream::{Buffer, Device, Direction, Dma, Mapping};

/// A place in a list: the buffer before the transfer, the mapping while it lasts.
#[derive(Debug)]
pub enum Item<D> {
    /// Nothing.
    Empty,
    /// A buffer that is not mapped.
    Buffer(Buffer),
    /// One that is.
    Mapped(Mapping<D>),
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

impl<D: Direction> Item<D> {
    fn map<M: FrameAccess>(&mut self, dma: &Dma<'_, '_, M>, device: &Device) -> Result<(), Error> {
        match core::mem::replace(self, Self::Empty) {
            Self::Buffer(buffer) => match dma.map(device, buffer) {
                Ok(mapping) => *self = Self::Mapped(mapping),
                Err((error, buffer)) => {
                    *self = Self::Buffer(buffer);
                    return Err(error);
                }
            },
            other => *self = other,
        }
        Ok(())
    }

    fn unmap(
        &mut self,
        how: impl FnOnce(Mapping<D>) -> Result<Buffer, (Error, Mapping<D>)>,
    ) -> Result<(), Error> {
        match core::mem::replace(self, Self::Empty) {
            Self::Mapped(mapping) => match how(mapping) {
                Ok(buffer) => *self = Self::Buffer(buffer),
                Err((error, mapping)) => {
                    *self = Self::Mapped(mapping);
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
    /// The first buffer that could not be mapped, or [`Error::RunsFull`] if `runs` is too short; no
    /// buffer is mapped then, and none was changed. [`Error::MappedAlready`] if something in the
    /// list is mapped before: a device may be using it, so it stays as it is.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// # use hypercall::Pfn;
    /// use swiotlb::{Buffer, BusAddr, BusRun, Device, Dma, DmaMask, Item, Place, ToDevice};
    ///
    /// let (guest, pool, page) = dma::a_guest_and_its_pool();
    /// let dma = Dma { machine: guest.model, p2m: guest.p2m, pool: &pool, vcpu: 0 };
    /// let page = |at| Place { pfn: Pfn::new(page.raw() + at), offset: 0, len_bytes: 4096 };
    /// let mut items =
    ///     [0, 1, 2].map(|at| Item::<ToDevice>::Buffer(unsafe { Buffer::claim(page(at)) }));
    /// let mut runs = [BusRun { start: BusAddr::from_raw(0), len_bytes: 0 }; 3];
    /// let device = Device::new(DmaMask::bits(64));
    /// let used = dma.map_list(&device, &mut items, &mut runs).map_err(|(_, error)| error)?;
    /// assert_eq!(runs[..used].iter().map(|run| run.len_bytes).sum::<u64>(), 3 * 4096);
    /// dma.unmap_list(&mut items).map_err(|(_, error)| error)?;
    /// # Ok::<(), swiotlb::Error>(())
    /// ```
    pub fn map_list<D: Direction>(
        &self,
        device: &Device,
        items: &mut [Item<D>],
        runs: &mut [BusRun],
    ) -> Result<usize, (usize, Error)> {
        for (at, item) in items.iter().enumerate() {
            if let Item::Mapped(mapping) = item {
                return Err((at, Error::MappedAlready { address: mapping.bus() }));
            }
        }
        for at in 0..items.len() {
            if let Err(error) = items[at].map(self, device) {
                return Err((at, self.cancel_all(&mut items[..at]).err().unwrap_or(error)));
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
                let error = Error::RunsFull { runs: used };
                return Err((at, self.cancel_all(items).err().unwrap_or(error)));
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
    pub fn unmap_list<D: Direction>(&self, items: &mut [Item<D>]) -> Result<(), (usize, Error)> {
        let mut result = Ok(());
        for (at, item) in items.iter_mut().enumerate() {
            let unmapped = item.unmap(|mapping| self.unmap(mapping));
            result = result.and(unmapped.map_err(|error| (at, error)));
        }
        result
    }

    /// Takes all buffers back as they were.
    fn cancel_all<D: Direction>(&self, items: &mut [Item<D>]) -> Result<(), Error> {
        let mut result = Ok(());
        for item in items.iter_mut().rev() {
            result = result.and(item.unmap(|mapping| self.cancel(mapping)));
        }
        result
    }
}

/// Whether `next` lies behind `last`, and the device takes both as one.
fn merges(device: &Device, last: BusRun, next: BusRun) -> bool {
    let len_bytes = last.len_bytes + next.len_bytes;
    last.start.checked_add(last.len_bytes) == Some(next.start)
        && device.run_bytes_max.is_none_or(|max| len_bytes <= max.get())
}
