//! Page-table requests.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::commands::{ext, mmu};
use hypercall::{Level, PteFlags};

use super::{Env, Page, SELF, number};
use crate::Target;
use crate::check::Check;

/// What stands where Xen is to write how many it did.
pub(crate) const UNTOUCHED: u64 = 0x5555;

/// Where the count of done elements lies.
const DONE_PAGE: usize = 2;
const DONE_OFFSET: usize = 0;

/// What a request for several elements answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `rax`.
    pub(crate) rax: i64,
    /// How many were done, if Xen said so.
    pub(crate) done: Option<u64>,
}

impl Answer {
    /// Returns `rax`, and how many were done.
    pub(crate) const fn of(rax: i64, done: u64) -> Self {
        Self { rax, done: Some(done) }
    }

    /// Returns `rax`, and no word on how many were done.
    pub(crate) const fn untold(rax: i64) -> Self {
        Self { rax, done: None }
    }

    /// For a single element: `rax`, if the count goes with it.
    fn single(self) -> i64 {
        match (self.rax, self.done) {
            (0, Some(1)) => 0,
            (errno, Some(0)) if errno < 0 => errno,
            _ => i64::MIN,
        }
    }
}

impl<M: Target> Env<'_, M> {
    /// Returns where Xen writes how many it did, cleared.
    pub(crate) fn done_at(&self) -> u64 {
        self.put(DONE_PAGE, DONE_OFFSET, &[UNTOUCHED])
    }

    /// Returns what Xen wrote there.
    pub(crate) fn done(&self, rax: i64) -> Answer {
        match self.got(DONE_PAGE, DONE_OFFSET, 1)[0] {
            UNTOUCHED => Answer::untold(rax),
            done => Answer::of(rax, done),
        }
    }

    /// Issues `mmu_update` of some elements, on behalf of `domain`.
    pub(crate) fn updates(&self, elements: &[(u64, u64)], domain: u64) -> Answer {
        let words: Vec<u64> = elements.iter().flat_map(|(ptr, val)| [*ptr, *val]).collect();
        let list = self.put(0, 0, &words);
        let arguments = [list, elements.len() as u64, self.done_at(), domain, 0];
        let rax = self.call(number::MMU_UPDATE, arguments);
        self.done(rax)
    }

    /// Issues `mmu_update` of one element.
    pub(crate) fn update(&self, target: u64, value: u64) -> i64 {
        self.updates(&[(target, value)], SELF).single()
    }

    /// Issues `mmuext_op` of some elements, on behalf of `domain`.
    pub(crate) fn exts(&self, elements: &[(u32, u64, u64)], domain: u64) -> Answer {
        let words: Vec<u64> =
            elements.iter().flat_map(|(op, one, two)| [u64::from(*op), *one, *two]).collect();
        let list = self.put(0, 0, &words);
        let arguments = [list, elements.len() as u64, self.done_at(), domain, 0];
        let rax = self.call(number::MMUEXT_OP, arguments);
        self.done(rax)
    }

    /// Issues `mmuext_op` of one element.
    pub(crate) fn ext(&self, command: u32, one: u64, two: u64) -> i64 {
        self.exts(&[(command, one, two)], SELF).single()
    }

    /// Issues `update_va_mapping` without a flush.
    pub(crate) fn va_mapping(&self, va: u64, value: u64) -> i64 {
        self.call(number::UPDATE_VA_MAPPING, [va, value, 0, 0, 0])
    }

    /// Returns the machine address of an entry of a page.
    pub(crate) fn slot(&self, page: Page, index: u64) -> u64 {
        (self.mfn(page) << 12) + index * 8
    }

    /// Sets an entry of a page by `mmu_update`.
    pub(crate) fn set(&self, page: Page, index: u64, value: u64) -> i64 {
        self.update(self.slot(page, index) | mmu::NORMAL, value)
    }

    /// Reads an entry of a page through the direct mapping.
    pub(crate) fn get(&self, page: Page, index: u64) -> Check<u64> {
        self.load(self.va(page) + index * 8)
    }

    /// Writes an entry of a page by a store.
    pub(crate) fn fill(&self, page: Page, index: u64, value: u64) -> Check {
        self.store(self.va(page) + index * 8, value)
    }

    pub(crate) fn pin(&self, level: Level, page: Page) -> i64 {
        self.ext(ext::PIN_L1_TABLE + level as u32 - 1, self.mfn(page), 0)
    }

    pub(crate) fn unpin(&self, page: Page) -> i64 {
        self.ext(ext::UNPIN_TABLE, self.mfn(page), 0)
    }

    pub(crate) fn load_root(&self, mfn: u64) -> i64 {
        self.ext(ext::NEW_BASEPTR, mfn, 0)
    }

    pub(crate) fn load_user_root(&self, mfn: u64) -> i64 {
        self.ext(ext::NEW_USER_BASEPTR, mfn, 0)
    }

    /// Flushes the TLB.
    pub(crate) fn flush(&self) {
        // Xen never refuses it.
        let _ = self.ext(ext::TLB_FLUSH_LOCAL, 0, 0);
    }

    /// Issues `vm_assist`: command 0 enables, 1 disables.
    pub(crate) fn assist(&self, command: u64, kind: u64) -> i64 {
        self.call(number::VM_ASSIST, [command, kind, 0, 0, 0])
    }

    /// Issues `set_gdt` with the frames given.
    pub(crate) fn set_gdt(&self, frames: &[u64], entries: u64) -> i64 {
        let list = self.put(0, 0, frames);
        self.call(number::SET_GDT, [list, entries, 0, 0, 0])
    }

    /// Sets the entry that maps the page in the direct mapping. The TLB is as it was.
    pub(crate) fn set_direct(&self, page: Page, value: u64) -> Check {
        let rax = self.update(self.frames[page.0].direct.machine_address(), value);
        if rax == 0 { Ok(()) } else { Err(format!("its direct mapping was refused: {rax}")) }
    }

    /// Returns the entry that maps the page in the direct mapping.
    pub(crate) fn direct(&self, page: Page) -> Check<u64> {
        let slot = self.frames[page.0].direct;
        let table = self.machine.machine_to_phys(slot.table).ok_or("the table has no pfn")?;
        let entry = self.machine.read_entry(table, slot.index);
        entry.map(hypercall::Pte::raw).map_err(|error| format!("{error}"))
    }

    /// Lets the direct mapping of the page show what `value` maps.
    pub(crate) fn show(&self, page: Page, value: u64) -> Check {
        self.set_direct(page, value)?;
        self.flush();
        Ok(())
    }

    /// Maps the page read-only.
    pub(crate) fn ro(&self, page: Page) -> Check {
        self.show(page, self.entry(page, self.machine.offered(PteFlags::KERNEL_RO).bits()))
    }

    /// Maps the page writable.
    pub(crate) fn rw(&self, page: Page) -> Check {
        self.show(page, self.entry(page, self.machine.offered(PteFlags::KERNEL_RW).bits()))
    }

    /// Maps the page nowhere.
    pub(crate) fn hide(&self, page: Page) -> Check {
        self.show(page, 0)
    }

    /// Returns an entry for the page.
    pub(crate) fn entry(&self, page: Page, flags: u64) -> u64 {
        self.mfn(page) << 12 | flags
    }

    /// Back to the guest's own roots, no descriptor tables, the assists as they were.
    pub(super) fn leave_modes(&self) -> Vec<String> {
        let left = [
            ("the root", self.load_root(self.facts.root.1.raw())),
            ("the user root", self.load_user_root(0)),
            ("the LDT", self.ext(ext::SET_LDT, 0, 0)),
            ("the GDT", self.set_gdt(&[], 0)),
            ("the assist", self.assist(0, 2)),
            ("the strict M2P", self.assist(1, 32)),
        ];
        let refused = left.into_iter().filter(|(_, rax)| *rax != 0);
        refused.map(|(what, rax)| format!("{what} was refused: {rax}")).collect()
    }
}
