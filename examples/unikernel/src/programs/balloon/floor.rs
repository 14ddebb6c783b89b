//! What Xen takes for a page: bare requests with nothing around them.
#![expect(unsafe_code, reason = "bare requests about frames that it took from the pool")]

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{
    BatchStorage, Cpu, DomId, Frame, FrameAccess as _, FrameSource as _, Hypercalls as _, Machine,
    MmuUpdate, Pte, PteFlags,
};
use p2m::DirectEntries;

use super::super::OrSay;
use crate::program::Kernel;

/// Pages of a measurement.
pub(in crate::programs) const PAGES: usize = 512;

/// Ticks for a page.
#[derive(Clone, Copy, Debug)]
pub(in crate::programs) struct Floors {
    wipe: u64,
    clear: u64,
    decrease: u64,
    populate: u64,
    fill: u64,
}

impl Floors {
    /// Out.
    pub(in crate::programs) const fn out(&self) -> u64 {
        self.wipe + self.clear + self.decrease
    }

    /// In.
    pub(in crate::programs) const fn back(&self) -> u64 {
        self.populate + self.fill
    }
}

impl fmt::Display for Floors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wipe, clear, decrease, populate, fill } = self;
        write!(
            f,
            "floor of a page: out {} (wipe {wipe}, clear entry {clear}, decrease {decrease}); \
             in {} (populate {populate}, fill entry {fill})",
            self.out(),
            self.back()
        )
    }
}

/// Sends single pages out and in by bare requests, each kind timed.
pub(in crate::programs) fn measure<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
) -> Result<Floors, String> {
    let mut frames: Vec<Frame> = Vec::with_capacity(PAGES);
    for _ in 0..PAGES {
        frames.push(kernel.pool.take().ok_or("the pool is too small")?);
    }
    let mut storage = Box::new(BatchStorage::<PAGES, 1>::new());
    let wipe = time(kernel, |kernel| {
        frames.iter().try_for_each(|frame| {
            // SAFETY: the frame is the program's by its token (I-1).
            unsafe { kernel.guest.machine().clear_frame(frame.pfn()) }.or_say("wipe")
        })
    })?;
    let mut extents = Vec::with_capacity(PAGES);
    for frame in &frames {
        // SAFETY: the frame is the program's by its token (I-1), and goes to Xen below.
        extents.push(Extent::from_mfn(
            unsafe { kernel.guest.p2m().depopulate(frame.pfn()) }.or_say("depopulate")?,
        ));
    }
    let clear = map(kernel, &frames, &mut storage, |_| Pte::ABSENT)?;
    let decrease = time(kernel, |kernel| all(kernel, MemoryOp::Decrease(list(&mut extents))))?;
    for (extent, frame) in extents.iter_mut().zip(&frames) {
        *extent = Extent::from_pfn(frame.pfn());
    }
    let populate = time(kernel, |kernel| all(kernel, MemoryOp::Populate(list(&mut extents))))?;
    for (extent, frame) in extents.iter().zip(&frames) {
        // SAFETY: Xen has just put the frame behind the pfn, whose token is the program's.
        unsafe { kernel.guest.p2m().populate(frame.pfn(), extent.mfn()) }.or_say("populate")?;
    }
    let flags = kernel.guest.machine().offered(PteFlags::KERNEL_RW);
    let new = |at: usize| Pte::new(extents[at].mfn(), flags);
    let fill = map(kernel, &frames, &mut storage, new)?;
    frames.into_iter().rev().for_each(|frame| kernel.pool.give(frame));
    Ok(Floors { wipe, clear, decrease, populate, fill })
}

/// Ticks for each page of what `work` does.
fn time<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    work: impl FnOnce(&mut Kernel<'_, M>) -> Result<(), String>,
) -> Result<u64, String> {
    let start = kernel.cpu.ticks();
    work(kernel)?;
    Ok(kernel.cpu.ticks().wrapping_sub(start) / PAGES as u64)
}

fn list(extents: &mut [Extent]) -> Reservation<'_> {
    Reservation { extents, order: 0, flags: 0, domain: DomId::SELF }
}

fn all<M: Machine + Cpu>(kernel: &Kernel<'_, M>, mut op: MemoryOp<'_>) -> Result<(), String> {
    // SAFETY: the pages are the program's, and nothing maps them.
    match unsafe { kernel.guest.machine().memory_op(&mut op) }.or_say("memory_op")? {
        done if done == PAGES as u64 => Ok(()),
        done => Err(alloc::format!("{} did {done} of {PAGES}", op.name())),
    }
}

/// Sets the entries of all frames in the direct mapping, in one `mmu_update`.
fn map<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    frames: &[Frame],
    storage: &mut BatchStorage<PAGES, 1>,
    new: impl Fn(usize) -> Pte,
) -> Result<u64, String> {
    let mut batch = storage.batch();
    let mut direct = DirectEntries::new(kernel.guest);
    for (at, frame) in frames.iter().enumerate() {
        let (slot, old) = direct.find(frame.pfn()).or_say("direct mapping")?;
        batch.update(MmuUpdate::set(slot, new(at)), old.raw()).or_say("batch")?;
    }
    time(kernel, |kernel| {
        // SAFETY: entries of frames that are the program's (I-1).
        unsafe { batch.submit(kernel.guest.machine()) }.or_say("mapping")
    })
}
