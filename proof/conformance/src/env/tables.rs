//! Tables made of pages, and the entries that go into them.

use hypercall::{Level, XEN_SLOTS};

use super::{Env, Page};
use crate::Target;
use crate::check::Check;

/// Present, accessed.
pub(crate) const KERNEL_RO: u64 = 0x61;
/// Present, writable, accessed, dirty.
pub(crate) const KERNEL_RW: u64 = 0x63;
/// An entry that points to a table.
pub(crate) const TABLE: u64 = 0x67;
/// The same without the right to write.
pub(crate) const TABLE_RO: u64 = 0x65;
/// Xen's mark of a kernel mapping.
pub(crate) const GUEST_KERNEL: u64 = 1 << 52;
/// No execute.
const NO_EXECUTE: u64 = 1 << 63;

/// The all-ones frame.
pub(crate) const INVALID: u64 = 0xff_ffff_ffff;
/// A frame beyond every physical address width.
pub(crate) const OUT_OF_RANGE: u64 = 0xff_0000_0000;
/// A frame below 4 GiB where no machine has RAM.
pub(crate) const NON_RAM: u64 = 0xfe000;

impl<M: Target> Env<'_, M> {
    /// [`NO_EXECUTE`], on a CPU that has it.
    pub(crate) fn nx(&self) -> u64 {
        NO_EXECUTE & !self.machine.missing_flags().bits()
    }

    /// Returns a page with these entries, mapped read-only, no table yet.
    pub(crate) fn loose(&mut self, entries: &[(u64, u64)]) -> Check<Page> {
        let page = self.take()?;
        for (index, value) in entries {
            self.fill(page, *index, *value)?;
        }
        self.ro(page)?;
        Ok(page)
    }

    /// Returns a pinned table with these entries.
    pub(crate) fn table(&mut self, level: Level, entries: &[(u64, u64)]) -> Check<Page> {
        let page = self.loose(entries)?;
        want!(self.pin(level, page), 0, "for a table of {level}");
        Ok(page)
    }

    /// Returns the pinned L1 table in whose entries an assertion maps what it wants to.
    pub(crate) fn bed(&mut self) -> Check<Page> {
        if let Some(bed) = self.bed {
            return Ok(bed);
        }
        let bed = self.table(Level::L1, &[])?;
        self.bed = Some(bed);
        Ok(bed)
    }

    /// Returns what Xen answers to a writable mapping of the page, which is taken away again: 0 if
    /// its frame is no table.
    pub(crate) fn try_rw(&mut self, page: Page) -> Check<i64> {
        let bed = self.bed()?;
        let rax = self.set(bed, 500, self.entry(page, KERNEL_RW));
        want!(self.set(bed, 500, 0), 0);
        Ok(rax)
    }

    /// Returns whether nothing holds the page but its allocation: takes its direct mapping away and
    /// exchanges its frame.
    pub(crate) fn try_exchange(&mut self, page: Page) -> Check<i64> {
        self.hide(page)?;
        self.exchange(page)
    }

    /// Returns a root on which the guest can run: a copy of its own, not pinned.
    pub(crate) fn root_copy(&mut self) -> Check<Page> {
        let (pfn, _) = self.facts.root;
        let va = self.machine.direct_map(pfn).map_err(|error| alloc::format!("{error}"))?;
        let page = self.take()?;
        for index in 0..512_u16 {
            let at = hypercall::GuestVa::new(va.raw() + u64::from(index) * 8);
            let at = at.map_err(|error| alloc::format!("{error}"))?;
            let value = self.machine.load(at).map_err(|fault| alloc::format!("{fault}"))?;
            if value != 0 && !XEN_SLOTS.contains(&index) {
                self.fill(page, u64::from(index), value)?;
            }
        }
        self.ro(page)?;
        Ok(page)
    }
}
