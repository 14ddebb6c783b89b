//! Descriptor tables: GDT, LDT, and the frames they lie in.
//!
//! Section 4.6 of the specification.

use hypercall::{Errno, Mfn};

use crate::page::WORDS;

use crate::state::{Answer, State};
use crate::types::PageType;

/// Most entries of a GDT: 14 frames.
const GDT_ENTRIES_MAX: u64 = 7168;

/// Present bit of a descriptor.
const PRESENT: u64 = 1 << 47;
/// Set for code and data, clear for system descriptors.
const CODE_OR_DATA: u64 = 1 << 44;
/// The privilege level.
const DPL: u64 = 3 << 45;
/// Type of a system descriptor.
const SYSTEM_TYPE: u64 = 0xf << 40;
const CALL_GATE: u64 = 0xc << 40;
/// Selectors from here up are Xen's own (`FIRST_RESERVED_GDT_BYTE`).
const FIRST_RESERVED_SELECTOR: u64 = 0xe000;

/// Returns what Xen makes of a descriptor; `None` if it refuses it (`check_descriptor`).
pub(crate) const fn check_descriptor(descriptor: u64) -> Option<u64> {
    if descriptor & PRESENT == 0 {
        return Some(descriptor);
    }
    if descriptor & CODE_OR_DATA != 0 {
        return Some(descriptor | DPL);
    }
    match descriptor & SYSTEM_TYPE {
        0 => Some(descriptor),
        CALL_GATE => {
            let selector = (descriptor >> 16) & 0xffff;
            let reserved = (descriptor >> 32) & 0xe0;
            let acceptable =
                selector & !3 == 0 || selector & 4 != 0 || selector < FIRST_RESERVED_SELECTOR;
            if reserved == 0 && acceptable { Some(descriptor | 3 << 16) } else { None }
        }
        _ => None,
    }
}

impl State {
    /// Validates a frame of descriptors, lowering their privilege (`validate_segdesc_page`).
    pub(crate) fn validate_descriptors(&mut self, mfn: Mfn) -> Answer {
        for index in 0..WORDS {
            let descriptor = self.frames.word(mfn, index);
            let checked = check_descriptor(descriptor).ok_or(Errno::EINVAL)?;
            if checked != descriptor {
                self.frames.words(mfn)[index] = checked;
            }
        }
        Ok(())
    }

    /// Carries out `set_gdt` (2): installs the frames of a GDT (`pv_set_gdt`).
    pub(crate) fn set_gdt(&mut self, frames: &[Mfn], entries: u64) -> Answer {
        if entries > GDT_ENTRIES_MAX {
            return Err(Errno::EINVAL);
        }
        let caller = self.caller();
        for (k, mfn) in frames.iter().enumerate() {
            let got = self.get_page_from_gfn(*mfn, caller);
            if got && self.get_page_type(*mfn, PageType::SegDesc).is_ok() {
                continue;
            }
            if got {
                self.put_page(*mfn);
            }
            for done in &frames[..k] {
                self.put_plain_page_and_type(*done);
            }
            return Err(Errno::EINVAL);
        }
        let old = core::mem::replace(&mut self.vcpu().gdt, frames.to_vec());
        self.vcpu().gdt_entries = entries;
        for mfn in old {
            self.put_plain_page_and_type(mfn);
        }
        self.statistics.asked_flushes += 1;
        self.vcpu().tlb.flush_local();
        Ok(())
    }

    /// Carries out `update_descriptor` (10) (`do_update_descriptor`).
    pub(crate) fn update_descriptor(&mut self, address: u64, descriptor: u64) -> Answer {
        let checked = check_descriptor(descriptor).ok_or(Errno::EINVAL)?;
        let mfn = Mfn::new(address >> hypercall::PAGE_SHIFT);
        let caller = self.caller();
        if !address.is_multiple_of(8) || !self.get_page_from_gfn(mfn, caller) {
            return Err(Errno::EINVAL);
        }
        let live = self.frames.page(mfn).kind;
        let kind = if live.kind == PageType::SegDesc && live.count > 0 {
            PageType::SegDesc
        } else {
            PageType::Writable
        };
        if self.get_page_type(mfn, kind).is_err() {
            self.put_page(mfn);
            return Err(Errno::EINVAL);
        }
        self.frames.words(mfn)[(address & 0xfff) as usize / 8] = checked;
        self.put_plain_page_and_type(mfn);
        Ok(())
    }

    /// Makes a page of the running LDT usable (`pv_map_ldt_shadow_page`); whether it could.
    pub(crate) fn map_ldt_page(&mut self, page: u64) -> bool {
        if self.vcpu().ldt.iter().any(|(known, _)| *known == page) {
            return true;
        }
        let Some(root) = self.vcpu().kernel_root else { return false };
        let va = self.vcpu().ldt_base.wrapping_add(page << hypercall::PAGE_SHIFT);
        let Some(table) = self.find_l1(root, va) else { return false };
        let entry = self.frames.word(table, Self::index_of(hypercall::Level::L1, va));
        let (mfn, caller) = (crate::l1e::frame_of(entry), self.caller());
        if entry & crate::l1e::PRESENT == 0 || !self.get_page_from_gfn(mfn, caller) {
            return false;
        }
        if self.get_page_type(mfn, PageType::SegDesc).is_err() {
            self.put_page(mfn);
            return false;
        }
        self.vcpu().ldt.push((page, mfn));
        true
    }

    /// Drops the LDT pages of the running vCPU.
    pub(crate) fn forget_ldt_pages_of(&mut self, vcpu: usize) {
        let domain = self.current.domain;
        let pages = core::mem::take(&mut self.domains[domain].vcpus[vcpu].ldt);
        for (_, mfn) in pages {
            self.put_plain_page_and_type(mfn);
        }
    }

    /// Drops the LDT pages of all vCPUs of the running domain (`pv_destroy_ldt`).
    pub(crate) fn forget_ldt_pages(&mut self) {
        for vcpu in 0..self.domain().vcpus.len() {
            self.forget_ldt_pages_of(vcpu);
        }
    }
}
