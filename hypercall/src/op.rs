//! The elements of MMU hypercalls. They *are* the ABI structures, built by typed constructors, so a
//! run of them goes to Xen as it is in memory.

use core::fmt;

use x86_64::VirtAddr;

use crate::commands::{ext, mmu};
use crate::frame::{Mfn, PAGE_SHIFT, Pfn};
use crate::pte::{Level, Pte, Slot};

/// A domain as hypercalls name it (`domid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The caller (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
    /// Owner of I/O frames (`DOMID_IO`).
    pub const IO: Self = Self(0x7ff1);
    /// Owner of Xen's own frames (`DOMID_XEN`).
    pub const XEN: Self = Self(0x7ff2);
}

/// One element of `mmu_update` (`struct mmu_update`, 16 bytes).
///
/// The low three bits of `target` are the command; the rest is the machine address of an entry, or
/// of the frame whose M2P entry changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct MmuUpdate {
    target: u64,
    value: u64,
}

impl MmuUpdate {
    /// A placeholder to build storage with: a valid request to clear slot 0 of frame 0, which Xen
    /// refuses.
    pub const EMPTY: Self = Self { target: 0, value: 0 };

    /// Makes an update that sets the entry at `slot` (`MMU_NORMAL_PT_UPDATE`).
    ///
    /// ```
    /// use hypercall::{Mfn, MmuUpdate, Pte, PteFlags, Slot};
    /// use x86_64::structures::paging::PageTableIndex;
    ///
    /// let slot = Slot { table: Mfn::new(7), index: PageTableIndex::new(3) };
    /// let update = MmuUpdate::set(slot, Pte::new(Mfn::new(9), PteFlags::USER_RW));
    /// assert_eq!(update.target(), 7 * 4096 + 3 * 8);
    /// ```
    #[must_use]
    pub fn set(slot: Slot, pte: Pte) -> Self {
        Self { target: slot.machine_address() | mmu::NORMAL, value: pte.raw() }
    }

    /// Makes an update that sets the entry at `slot` and keeps its accessed and dirty bits
    /// (`MMU_PT_UPDATE_PRESERVE_AD`).
    ///
    /// ```
    /// # use hypercall::commands::mmu;
    /// # use hypercall::{Mfn, MmuUpdate, Pte, PteFlags, Slot};
    /// # use x86_64::structures::paging::PageTableIndex;
    /// let slot = Slot { table: Mfn::new(7), index: PageTableIndex::new(3) };
    /// let update = MmuUpdate::set_preserving_ad(slot, Pte::new(Mfn::new(9), PteFlags::USER_RW));
    /// assert_eq!(update.target() & mmu::MASK, mmu::PRESERVE_AD);
    /// ```
    #[must_use]
    pub fn set_preserving_ad(slot: Slot, pte: Pte) -> Self {
        Self { target: slot.machine_address() | mmu::PRESERVE_AD, value: pte.raw() }
    }

    /// Makes an update that sets the pfn of `mfn` in M2P (`MMU_MACHPHYS_UPDATE`). Xen believes any
    /// value.
    ///
    /// ```
    /// use hypercall::{Mfn, MmuUpdate, Pfn};
    ///
    /// let update = MmuUpdate::machphys(Mfn::new(0x203), Pfn::new(7));
    /// assert_eq!((update.frame(), update.value()), (Mfn::new(0x203), 7));
    /// ```
    #[must_use]
    pub const fn machphys(mfn: Mfn, pfn: Pfn) -> Self {
        Self { target: mfn.raw() << PAGE_SHIFT | mmu::MACHPHYS, value: pfn.raw() }
    }

    /// Makes an element of exactly these words, sensible or not.
    #[must_use]
    pub const fn from_raw(target: u64, value: u64) -> Self {
        Self { target, value }
    }

    /// Returns the machine address and command.
    #[must_use]
    pub const fn target(self) -> u64 {
        self.target
    }

    /// Returns the new entry, or the new M2P value.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.value
    }

    /// Returns the frame of the target.
    #[must_use]
    pub const fn frame(self) -> Mfn {
        Mfn::new(self.target >> PAGE_SHIFT)
    }
}

impl fmt::Debug for MmuUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = match self.target & mmu::MASK {
            mmu::NORMAL => "set",
            mmu::MACHPHYS => "m2p",
            mmu::PRESERVE_AD => "set-keep-ad",
            mmu::NO_TRANSLATE => "set-no-translate",
            _ => "bad-command",
        };
        write!(f, "{command} {:x} := {:016x}", self.target & !mmu::MASK, self.value)
    }
}

/// A set of vCPUs with numbers below 32: as many as a PV guest has without further arrangements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct VcpuSet(pub u32);

impl VcpuSet {
    /// No vCPU.
    pub const NONE: Self = Self(0);

    /// Returns the set of vCPU `number` alone, or the empty set if the number is too high.
    #[must_use]
    pub const fn one(number: u32) -> Self {
        Self(if number < 32 { 1 << number } else { 0 })
    }

    /// Returns the union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for number in (0..32).filter(|number| self.0 >> number & 1 != 0) {
            write!(f, "{before}{number}")?;
            before = ", ";
        }
        if self.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// One element of `mmuext_op` (`struct mmuext_op`, 24 bytes).
///
/// Xen reads the vCPUs of a `*_MULTI` flush through a pointer, as many bits as the guest has vCPUs.
/// They are in the four bytes that Xen's structure leaves unused, and [`Batch`](crate::Batch)
/// points Xen there. So nobody above handles a pointer, and nothing needs to outlive the element.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct MmuExtOp {
    command: u32,
    vcpus: u32,
    argument1: u64,
    argument2: u64,
}

impl MmuExtOp {
    /// A placeholder to build storage with.
    pub const EMPTY: Self = Self::from_raw(ext::TLB_FLUSH_LOCAL, 0, 0);

    /// Makes an operation that validates `table` as a table of `level` and keeps it so
    /// (`MMUEXT_PIN_L1_TABLE` to `_L4_TABLE`).
    ///
    /// ```
    /// use hypercall::commands::ext;
    /// use hypercall::{Level, Mfn, MmuExtOp};
    ///
    /// let pin = MmuExtOp::pin(Level::L4, Mfn::new(0x203));
    /// assert_eq!(pin.command(), ext::PIN_L4_TABLE);
    /// ```
    #[must_use]
    pub const fn pin(level: Level, table: Mfn) -> Self {
        Self::from_raw(ext::PIN_L1_TABLE + level as u32 - 1, table.raw(), 0)
    }

    /// Makes an operation that undoes a pin (`MMUEXT_UNPIN_TABLE`).
    #[must_use]
    pub const fn unpin(table: Mfn) -> Self {
        Self::from_raw(ext::UNPIN_TABLE, table.raw(), 0)
    }

    /// Makes an operation that loads the kernel's root (`MMUEXT_NEW_BASEPTR`).
    #[must_use]
    pub const fn new_baseptr(root: Mfn) -> Self {
        Self::from_raw(ext::NEW_BASEPTR, root.raw(), 0)
    }

    /// Makes an operation that sets the root for user mode, or none (`MMUEXT_NEW_USER_BASEPTR`).
    #[must_use]
    pub const fn new_user_baseptr(root: Option<Mfn>) -> Self {
        let mfn = match root {
            Some(mfn) => mfn.raw(),
            None => 0,
        };
        Self::from_raw(ext::NEW_USER_BASEPTR, mfn, 0)
    }

    /// Makes an operation that flushes this vCPU's TLB (`MMUEXT_TLB_FLUSH_LOCAL`).
    #[must_use]
    pub const fn tlb_flush_local() -> Self {
        Self::from_raw(ext::TLB_FLUSH_LOCAL, 0, 0)
    }

    /// Makes an operation that flushes every vCPU's TLB (`MMUEXT_TLB_FLUSH_ALL`).
    #[must_use]
    pub const fn tlb_flush_all() -> Self {
        Self::from_raw(ext::TLB_FLUSH_ALL, 0, 0)
    }

    /// Makes an operation that flushes one page from this vCPU's TLB (`MMUEXT_INVLPG_LOCAL`).
    #[must_use]
    pub const fn invlpg_local(va: VirtAddr) -> Self {
        Self::from_raw(ext::INVLPG_LOCAL, va.as_u64(), 0)
    }

    /// Makes an operation that flushes one page from every vCPU's TLB (`MMUEXT_INVLPG_ALL`).
    #[must_use]
    pub const fn invlpg_all(va: VirtAddr) -> Self {
        Self::from_raw(ext::INVLPG_ALL, va.as_u64(), 0)
    }

    /// Makes an operation that flushes the TLBs of some vCPUs (`MMUEXT_TLB_FLUSH_MULTI`), in a
    /// batch.
    ///
    /// ```
    /// use hypercall::{MmuExtOp, VcpuSet};
    ///
    /// let both = VcpuSet::one(0).union(VcpuSet::one(2));
    /// assert_eq!(MmuExtOp::tlb_flush_vcpus(both).vcpus(), both);
    /// ```
    #[must_use]
    pub const fn tlb_flush_vcpus(vcpus: VcpuSet) -> Self {
        Self { vcpus: vcpus.0, ..Self::from_raw(ext::TLB_FLUSH_MULTI, 0, 0) }
    }

    /// Makes an operation that flushes one page from the TLBs of some vCPUs
    /// (`MMUEXT_INVLPG_MULTI`), in a batch.
    #[must_use]
    pub const fn invlpg_vcpus(va: VirtAddr, vcpus: VcpuSet) -> Self {
        Self { vcpus: vcpus.0, ..Self::from_raw(ext::INVLPG_MULTI, va.as_u64(), 0) }
    }

    /// Returns the vCPUs of a `*_MULTI` flush.
    #[must_use]
    pub const fn vcpus(self) -> VcpuSet {
        VcpuSet(self.vcpus)
    }

    /// Makes a `*_MULTI` flush refer to its own vCPUs. It must stay where it is until Xen has read
    /// it.
    pub(crate) fn point_at_vcpus(&mut self) {
        if matches!(self.command, ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI) {
            self.argument2 = (&raw const self.vcpus) as u64;
        }
    }

    /// Makes an operation that fills a frame with zeroes (`MMUEXT_CLEAR_PAGE`).
    #[must_use]
    pub const fn clear_page(mfn: Mfn) -> Self {
        Self::from_raw(ext::CLEAR_PAGE, mfn.raw(), 0)
    }

    /// Makes an operation that copies a frame (`MMUEXT_COPY_PAGE`).
    #[must_use]
    pub const fn copy_page(to: Mfn, from: Mfn) -> Self {
        Self::from_raw(ext::COPY_PAGE, to.raw(), from.raw())
    }

    /// Makes an element of exactly these words, sensible or not.
    #[must_use]
    pub const fn from_raw(command: u32, argument1: u64, argument2: u64) -> Self {
        Self { command, vcpus: 0, argument1, argument2 }
    }

    /// Returns the command.
    #[must_use]
    pub const fn command(self) -> u32 {
        self.command
    }

    /// Returns the frame or address.
    #[must_use]
    pub const fn argument1(self) -> u64 {
        self.argument1
    }

    /// Returns the count, mask address or source frame.
    #[must_use]
    pub const fn argument2(self) -> u64 {
        self.argument2
    }
}

impl fmt::Debug for MmuExtOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command {
            level @ 0..=3 => write!(f, "pin L{} {}", level + 1, Mfn::new(self.argument1)),
            ext::UNPIN_TABLE => write!(f, "unpin {}", Mfn::new(self.argument1)),
            ext::NEW_BASEPTR => write!(f, "baseptr {}", Mfn::new(self.argument1)),
            command => write!(f, "ext {command} {:x} {:x}", self.argument1, self.argument2),
        }
    }
}

/// The TLB flush that goes with an `update_va_mapping` (`UVMF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VaFlush {
    /// None.
    None,
    /// This page, on this vCPU.
    PageLocal,
    /// This page, on every vCPU.
    PageAll,
    /// Everything, on this vCPU.
    TlbLocal,
    /// Everything, on every vCPU.
    TlbAll,
}

impl VaFlush {
    /// Returns the argument as Xen wants it.
    #[must_use]
    pub const fn raw(self) -> u64 {
        match self {
            Self::None => 0,
            Self::TlbLocal => 1,
            Self::PageLocal => 2,
            Self::TlbAll => 1 | 4,
            Self::PageAll => 2 | 4,
        }
    }
}

/// The arguments of `update_va_mapping`: changes the L1 entry that maps `va` in the running tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VaMapping {
    /// Any canonical address; Xen refuses one of its own, and one without an L1 table.
    pub va: VirtAddr,
    /// The new entry.
    pub pte: Pte,
    /// The flush that follows a change.
    pub flush: VaFlush,
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86_64::structures::paging::PageTableIndex;

    #[test]
    fn constructors_make_xens_words() {
        let slot = Slot { table: Mfn::new(0x203), index: PageTableIndex::new(2) };
        let pte = Pte::from_raw(0x5063);
        assert_eq!(MmuUpdate::set(slot, pte), MmuUpdate::from_raw(0x20_3010, 0x5063));
        assert_eq!(MmuUpdate::set_preserving_ad(slot, pte).target(), 0x20_3012);
        let machphys = MmuUpdate::machphys(Mfn::new(0x203), Pfn::new(9));
        assert_eq!((machphys.target(), machphys.value()), (0x20_3001, 9));
        assert_eq!(MmuExtOp::pin(Level::L4, Mfn::new(5)), MmuExtOp::from_raw(3, 5, 0));
        assert_eq!(MmuExtOp::new_user_baseptr(None), MmuExtOp::from_raw(15, 0, 0));
    }

    #[test]
    fn elements_print_as_one_short_line() {
        let update = MmuUpdate::from_raw(0x20_3012, 0x5063);
        assert_eq!(format!("{update:?}"), "set-keep-ad 203010 := 0000000000005063");
        assert_eq!(format!("{:?}", MmuExtOp::pin(Level::L1, Mfn::new(0xb1d89))), "pin L1 b1d89");
    }
}
