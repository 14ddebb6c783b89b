//! A device's registers, in the kernel's address space: in the places of a few frames in the direct
//! mapping, which stay out of it meanwhile.
#![expect(unsafe_code, reason = "maps a device in place of its own frames, and reads it")]

use core::ptr::NonNull;

use alloc::format;
use alloc::string::String;

use hypercall::middleware::Counting;
use hypercall::{
    Call, FrameAccess as _, Frames, Hypercalls as _, Machine, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn, Pte,
    PteFlags, Request, VaFlush, VaMapping,
};
use p2m::P2m;

use crate::program::Kernel;
use crate::programs::OrSay;

/// Registers that are mapped.
pub(super) struct Registers {
    frames: Frames,
    address: NonNull<u8>,
    len_bytes: usize,
}

impl Registers {
    /// Maps the `len_bytes` at bus address `start`.
    pub(super) fn map<M: Machine>(
        kernel: &mut Kernel<'_, M>,
        start: u64,
        len_bytes: u64,
    ) -> Result<Self, String> {
        if !start.is_multiple_of(PAGE_SIZE as u64) {
            return Err(format!("registers at {start:#x} begin within a page"));
        }
        let pages = len_bytes.div_ceil(PAGE_SIZE as u64);
        let frames = kernel.pool.take_run(pages).ok_or("the pool has no such run")?;
        let flags = PteFlags::KERNEL_RW | PteFlags::PCD | PteFlags::PWT;
        let flags = kernel.guest.machine().offered(flags);
        for page in 0..pages {
            let pfn = Pfn::new(frames.start().raw() + page);
            let mfn = Mfn::new((start >> PAGE_SHIFT) + page);
            set(kernel.guest.machine(), pfn, Pte::new(mfn, flags))?;
        }
        let va =
            kernel.guest.machine().inner().direct_map(frames.start()).or_say("direct mapping")?;
        let address = kernel.platform.words(va).ok_or("this program does not run on its tables")?;
        let len_bytes = usize::try_from(len_bytes).or_say("registers")?;
        Ok(Self { frames, address: address.cast(), len_bytes })
    }

    /// The frames show their own memory again.
    pub(super) fn unmap<M: Machine>(
        self,
        machine: &Counting<&M>,
        p2m: &P2m<'_>,
    ) -> Result<Frames, String> {
        for page in 0..self.frames.count() {
            let pfn = Pfn::new(self.frames.start().raw() + page);
            let mfn = p2m.mfn(pfn).or_say("P2M")?;
            set(machine, pfn, Pte::new(mfn, machine.offered(PteFlags::KERNEL_RW)))?;
        }
        Ok(self.frames)
    }

    /// Where byte `offset` is, if `len_bytes` bytes from there are registers.
    pub(super) fn at(&self, offset: usize, len_bytes: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len_bytes)?;
        // SAFETY: inside what is mapped.
        (end <= self.len_bytes).then(|| unsafe { self.address.add(offset) })
    }

    /// Reads a register of 4 bytes.
    pub(super) fn read(&self, offset: usize) -> Result<u32, String> {
        let at = self.aligned(offset, 4)?.cast::<u32>();
        // SAFETY: a mapped register, aligned.
        Ok(unsafe { at.read_volatile() })
    }

    /// Writes a register of 4 bytes.
    pub(super) fn write(&self, offset: usize, value: u32) -> Result<(), String> {
        let at = self.aligned(offset, 4)?.cast::<u32>();
        // SAFETY: a mapped register, aligned; what the device does is the program's concern.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    /// Reads a register of 8 bytes.
    pub(super) fn read_long(&self, offset: usize) -> Result<u64, String> {
        let at = self.aligned(offset, 8)?.cast::<u64>();
        // SAFETY: a mapped register, aligned.
        Ok(unsafe { at.read_volatile() })
    }

    /// Writes a register of 8 bytes.
    pub(super) fn write_long(&self, offset: usize, value: u64) -> Result<(), String> {
        let at = self.aligned(offset, 8)?.cast::<u64>();
        // SAFETY: as above.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    fn aligned(&self, offset: usize, len_bytes: usize) -> Result<NonNull<u8>, String> {
        let at = self.at(offset, len_bytes).filter(|_| offset.is_multiple_of(len_bytes));
        at.ok_or_else(|| format!("no register at {offset:#x}"))
    }
}

/// Sets the entry of `pfn` in the direct mapping.
fn set<M: Machine>(machine: &Counting<&M>, pfn: Pfn, pte: Pte) -> Result<(), String> {
    let va = machine.inner().direct_map(pfn).or_say("direct mapping")?.addr();
    let mapping = VaMapping { va, pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the page is the program's, taken from the pool, and nothing is in it.
    unsafe { machine.issue(&mut calls) }.or_say("mapping")?;
    calls[0].result().or_say("mapping")
}
