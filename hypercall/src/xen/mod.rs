//! The real machine: Xen under the guest, and the guest's memory through its direct mapping.
//!
//! Compiled for bare metal targets only; all pointers and assembly of the crate are in this folder.
#![expect(unsafe_code, reason = "this folder is where hypercalls and memory are real")]

mod events;
mod grants;
mod memory;
mod mmu;
mod platform;
mod raw;
mod trap;
mod vcpu;
mod words;

pub use events::Resumed;
pub use platform::{Features, ShutdownReason, TrapInfo, Version};
pub use trap::{fault_fixup, hypercall, try_compare_exchange, try_load, try_store};
pub use vcpu::{VcpuContext, VcpuStart};

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::frame::Pfn;
use crate::machine::Hypercalls;
use crate::memory::{MachphysMapping, MemoryOp};
use crate::pte::PteFlags;
use crate::va::GuestVa;

/// Numbers of the hypercalls used here (public/xen.h).
pub(crate) mod number {
    pub(crate) const SET_TRAP_TABLE: u32 = 0;
    pub(crate) const MMU_UPDATE: u32 = 1;
    pub(crate) const MEMORY_OP: u32 = 12;
    pub(crate) const MULTICALL: u32 = 13;
    pub(crate) const UPDATE_VA_MAPPING: u32 = 14;
    pub(crate) const XEN_VERSION: u32 = 17;
    pub(crate) const SET_TIMER_OP: u32 = 15;
    pub(crate) const CONSOLE_IO: u32 = 18;
    pub(crate) const GRANT_TABLE_OP: u32 = 20;
    pub(crate) const VM_ASSIST: u32 = 21;
    pub(crate) const VCPU_OP: u32 = 24;
    pub(crate) const MMUEXT_OP: u32 = 26;
    pub(crate) const SCHED_OP: u32 = 29;
    pub(crate) const CALLBACK_OP: u32 = 30;
    pub(crate) const EVENT_CHANNEL_OP: u32 = 32;
    pub(crate) const PHYSDEV_OP: u32 = 33;
}

/// The machine a PV guest runs on.
///
/// # Invariants
/// I-3: `direct_map + pfn * 4096` maps `pfn`, or nothing, for every pfn below `mapped_frames`.
#[derive(Debug)]
pub struct Xen {
    /// A [`GuestVa`], which nothing but [`Xen::set_direct_map`] changes.
    direct_map: AtomicU64,
    mapped_frames: AtomicU64,
    m2p_start: u64,
    m2p_entries: AtomicU64,
    /// [`PteFlags`] that this CPU lacks.
    missing_flags: AtomicU64,
}

impl Xen {
    /// Creates the machine of a guest whose pfn 0 is mapped at `direct_map`, followed by the other
    /// `mapped_frames` frames in order. Records a CPU without NX
    /// ([`missing_flags`](crate::FrameAccess::missing_flags)).
    ///
    /// # Errors
    /// If Xen does not say where M2P is.
    ///
    /// # Hypercalls
    /// Two `memory_op`.
    ///
    /// # Safety
    /// The mapping is as described and stays so, except that a page there may be taken out (I-3).
    /// The guest has a page-fault handler that asks [`fault_fixup`]; or it names only frames that
    /// are in the mapping, writable where it writes, and reads M2P only for its own frames.
    pub unsafe fn new(direct_map: GuestVa, mapped_frames: u64) -> Result<Self, Error> {
        let direct_map = AtomicU64::new(direct_map.raw());
        let mapped_frames = AtomicU64::new(mapped_frames);
        let m2p_entries = AtomicU64::new(0);
        let missing_flags = AtomicU64::new(0);
        let mut xen = Self { direct_map, mapped_frames, m2p_start: 0, m2p_entries, missing_flags };
        xen.m2p_start = xen.measure()?;
        Ok(xen)
    }

    /// Asks again how long M2P is and what the CPU lacks: after a restore the machine may be
    /// another one. Every Xen shows M2P at the same address.
    ///
    /// # Errors
    /// If Xen does not say; then nothing has changed.
    ///
    /// # Hypercalls
    /// Two `memory_op`.
    pub fn remeasure(&self) -> Result<(), Error> {
        self.measure().map(drop)
    }

    /// Records the length of M2P and what the CPU lacks, and returns the address of M2P.
    fn measure(&self) -> Result<u64, Error> {
        let mut mapping = MachphysMapping::default();
        // SAFETY: both operations only report.
        unsafe { self.memory_op(&mut MemoryOp::MachphysMapping(&mut mapping)) }?;
        // SAFETY: as above.
        let ram_end = unsafe { self.memory_op(&mut MemoryOp::MaximumRamPage) }?;
        let entries = ram_end.min(mapping.end.saturating_sub(mapping.start) / 8);
        // Relaxed, each by itself: these are plain numbers, which make nothing else visible.
        self.m2p_entries.store(entries, Ordering::Relaxed);
        let missing = if has_nx() { PteFlags::empty() } else { PteFlags::NO_EXECUTE };
        self.missing_flags.store(missing.bits(), Ordering::Relaxed);
        Ok(mapping.start)
    }

    /// Records that the direct mapping has grown to `frames` frames.
    ///
    /// # Safety
    /// It has (I-3).
    pub unsafe fn set_mapped_frames(&self, frames: u64) {
        // Relaxed: what maps the new frames are page tables, which Xen has changed before it
        // answered. No store of ours has to be seen before this one.
        self.mapped_frames.store(frames, Ordering::Relaxed);
    }

    /// Records that the direct mapping has moved: pfn 0 is at `start`, followed by the other
    /// `frames` frames. What is mapped at the old place stays there.
    ///
    /// # Safety
    /// It has (I-3), for all frames that are memory. No other vCPU uses this machine meanwhile: it
    /// could combine the start of one mapping with the length of the other.
    pub unsafe fn set_direct_map(&self, start: GuestVa, frames: u64) {
        // Relaxed: nobody looks between the two, and later readers were told by other means.
        self.direct_map.store(start.raw(), Ordering::Relaxed);
        self.mapped_frames.store(frames, Ordering::Relaxed);
    }

    /// Returns the number of frames in the direct mapping.
    pub fn mapped_frames(&self) -> u64 {
        // Relaxed: see `set_mapped_frames`.
        self.mapped_frames.load(Ordering::Relaxed)
    }

    /// Returns the frame that the direct mapping shows at `va`.
    #[must_use]
    pub fn pfn_at(&self, va: GuestVa) -> Option<Pfn> {
        let offset = va.raw().checked_sub(self.direct_map.load(Ordering::Relaxed))?;
        let pfn = offset >> crate::frame::PAGE_SHIFT;
        (pfn < self.mapped_frames()).then_some(Pfn::new(pfn))
    }
}

/// Returns whether entries may have NO_EXECUTE: bit 20 of `edx` in leaf 0x80000001 of what Xen says
/// of the CPU. Xen emulates this form of the instruction in every PV guest (`ud2`, "xen", `cpuid`).
fn has_nx() -> bool {
    const FEATURES: u32 = 0x8000_0001;
    const NX: u32 = 1 << 20;
    let edx: u32;
    // SAFETY: it reads a word of the CPU's into four registers, of which rbx is kept aside.
    unsafe {
        asm!(
            "mov {kept}, rbx",
            "ud2",
            ".ascii \"xen\"",
            "cpuid",
            "mov rbx, {kept}",
            kept = out(reg) _,
            inout("eax") FEATURES => _,
            inout("ecx") 0 => _,
            out("edx") edx,
            options(nostack, nomem, preserves_flags),
        );
    }
    edx & NX != 0
}
