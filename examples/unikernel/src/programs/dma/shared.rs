//! The one device that a program is at: where the functions without `self`, which crate
//! `virtio-drivers` calls, find the guest's DMA.
#![expect(unsafe_code, reason = "leads functions without arguments to the program's own values")]

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use hypercall::{PAGE_SIZE, Pfn};
use swiotlb::hal::{DmaHal, DmaOperations, HalGuest};
use swiotlb::{BusAddr, GuestBytes};

use super::registers::Registers;
use crate::program::Platform;

/// What the drivers work with.
pub(super) struct Current<'a> {
    /// DMA for the device.
    pub(super) operations: &'a dyn DmaOperations,
    /// Who knows which frame is behind an address.
    pub(super) platform: &'a dyn Platform,
    /// The device's registers, and their bus address.
    pub(super) registers: &'a Registers,
    /// Where those are on the bus.
    pub(super) start: BusAddr,
}

/// The `Hal` of this kernel's drivers.
pub(super) type Hal = DmaHal<Kernel>;

/// The kernel, for [`DmaHal`].
pub(super) enum Kernel {}

/// A [`Current`] while [`Current::at`] runs; null otherwise.
static CURRENT: AtomicPtr<()> = AtomicPtr::new(null_mut());

impl Current<'_> {
    /// Does `work`, whose drivers are at this device. One program runs at a time, on one vCPU.
    pub(super) fn at<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.swap(core::ptr::from_ref(self).cast_mut().cast(), Ordering::AcqRel);
        assert!(before.is_null(), "there is a device already");
        let result = work();
        CURRENT.store(null_mut(), Ordering::Release);
        result
    }
}

/// Asks the device that the program is at.
fn current<T>(ask: impl FnOnce(&Current<'_>) -> T) -> T {
    let current: *const Current<'_> = CURRENT.load(Ordering::Acquire).cast();
    // SAFETY: null, or what `at` borrows until its work is done; drivers run in that work alone.
    match unsafe { current.as_ref() } {
        Some(current) => ask(current),
        None => panic!("a driver runs at no device"),
    }
}

// SAFETY: the platform knows the direct mapping, and the registers are the program's own mapping.
unsafe impl HalGuest for Kernel {
    fn with<T>(work: impl FnOnce(&dyn DmaOperations) -> T) -> T {
        current(|current| work(current.operations))
    }

    fn place(buffer: NonNull<[u8]>) -> Option<GuestBytes> {
        let start = buffer.cast::<u8>().addr().get();
        let len_bytes = buffer.len();
        let frame = |address| current(|current| current.platform.pfn_at(address));
        let (first, last) = (frame(start)?, frame(start.checked_add(len_bytes)?.checked_sub(1)?)?);
        let offset = start % PAGE_SIZE;
        let frames = (offset + len_bytes).div_ceil(PAGE_SIZE) as u64;
        let is_run = last == Pfn::new(first.raw() + frames - 1);
        is_run.then_some(GuestBytes { pfn: first, offset, len_bytes })
    }

    fn device_registers(start: BusAddr, len_bytes: usize) -> Option<NonNull<u8>> {
        current(|current| {
            let offset = start.offset_from(current.start)?;
            current.registers.at(usize::try_from(offset).ok()?, len_bytes)
        })
    }
}
