//! The guest's frames through its direct mapping, and M2P. All accesses are volatile: Xen, the CPU
//! or another domain may change the memory or take it away.

use core::ops::Range;
use core::sync::atomic::Ordering;

use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

use super::Xen;
use super::trap::{load_or, try_compare_exchange, try_load, try_store};
use super::words;
use crate::frame::{ENTRIES, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::machine::{AccessError, Cpu, Fault, FrameAccess, check_run};
use crate::pte::{Pte, PteFlags};
use crate::va::GuestVa;

/// Entries of M2P from here up mean no pfn: invalid, or shared.
const M2P_NO_PFN: u64 = u64::MAX - 1;

impl Xen {
    fn bytes(&self, pfn: Pfn, offset: usize, len_bytes: usize) -> Result<*mut u8, AccessError> {
        let end = offset.checked_add(len_bytes);
        if end.is_none_or(|end| end > PAGE_SIZE) {
            return Err(AccessError::OutsideFrame { pfn, offset, len_bytes });
        }
        let page: *mut u8 = self.direct_map(pfn)?.addr().as_mut_ptr();
        Ok(page.wrapping_add(offset))
    }

    #[inline(always)]
    fn table(&self, table: Pfn) -> Result<*mut u64, AccessError> {
        if table.raw() >= self.mapped_frames() {
            return Err(AccessError::Unmapped(table));
        }
        // I-3: the frame has its page there, so the sum does not overflow. Each access to a table
        // comes through here.
        let page = self.direct_map.load(Ordering::Relaxed);
        let page = page.wrapping_add(table.raw() << PAGE_SHIFT);
        Ok(VirtAddr::new_truncate(page).as_mut_ptr())
    }
}

// SAFETY: reads and writes go through the direct mapping (I-3), names through M2P.
unsafe impl FrameAccess for Xen {
    #[inline(always)]
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        let word = words::read(self.table(table)?, usize::from(index));
        word.map(Pte::from_raw).ok_or(AccessError::Unmapped(table))
    }

    #[inline(always)]
    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        let start = self.table(table)?;
        // SAFETY: I-3: inside the frame's page and aligned; the caller owns the frame (I-1).
        let is_written = unsafe { words::write(start, usize::from(index), pte.raw()) };
        if is_written { Ok(()) } else { Err(refused(table, start.cast())) }
    }

    fn read_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        into: &mut [Pte],
    ) -> Result<(), AccessError> {
        check_run(table, first, into.len())?;
        let from = self.table(table)?.wrapping_add(usize::from(first));
        if words::read_entries(from, into) { Ok(()) } else { Err(AccessError::Unmapped(table)) }
    }

    #[inline]
    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        let start = self.table(table)?;
        let end = slots.end.min(ENTRIES);
        let mut at = slots.start;
        while at < end {
            let index = usize::from(at);
            // Eight at a time where possible: tables are mostly empty, or full.
            if at.is_multiple_of(8) && at + 8 <= end {
                let any = words::any_of_eight(start, index);
                if !Pte::from_raw(any).is_present() {
                    at += 8;
                    continue;
                }
            }
            let word = words::read_or_nothing(start, index);
            let pte = Pte::from_raw(word);
            if pte.is_present() {
                return Ok(Some((PageTableIndex::new_truncate(at), pte)));
            }
            if word == words::NOTHING && words::read_again(start, index).is_none() {
                return Err(AccessError::Unmapped(table));
            }
            at += 1;
        }
        Ok(None)
    }

    unsafe fn write_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        from: &[Pte],
    ) -> Result<(), AccessError> {
        check_run(table, first, from.len())?;
        let into = self.table(table)?.wrapping_add(usize::from(first));
        // SAFETY: I-3: inside the frame's page, as `check_run` says; the caller owns the frame
        // (I-1).
        let are_written =
            unsafe { words::copy(into.cast(), from.as_ptr().cast(), size_of_val(from), 0) };
        if are_written { Ok(()) } else { Err(refused(table, into.cast())) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        let from = self.bytes(pfn, offset, into.len())?;
        let head = bytes_to_word(from, into.len());
        // SAFETY: what is written is all of `into`.
        let are_read = unsafe { words::copy(into.as_mut_ptr(), from, into.len(), head) };
        if are_read { Ok(()) } else { Err(AccessError::Unmapped(pfn)) }
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        let into = self.bytes(pfn, offset, from.len())?;
        let head = bytes_to_word(into, from.len());
        // SAFETY: I-3: inside the frame's page, as `bytes` checked; the caller owns the frame
        // (I-1).
        let are_written = unsafe { words::copy(into, from.as_ptr(), from.len(), head) };
        if are_written { Ok(()) } else { Err(refused(pfn, into)) }
    }

    unsafe fn clear_frame(&self, pfn: Pfn) -> Result<(), AccessError> {
        let page = self.bytes(pfn, 0, PAGE_SIZE)?;
        // SAFETY: I-3: the frame's page, and the caller owns the frame (I-1).
        let is_cleared = unsafe { words::clear_page(page) };
        if is_cleared { Ok(()) } else { Err(refused(pfn, page)) }
    }

    fn missing_flags(&self) -> PteFlags {
        PteFlags::from_bits_retain(self.missing_flags.load(Ordering::Relaxed))
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        if mfn.raw() >= self.m2p_entries.load(Ordering::Relaxed) {
            return None;
        }
        // A hole in the table reads as "no pfn".
        let pfn = load_or(self.m2p_start + mfn.raw() * 8, u64::MAX);
        (pfn < M2P_NO_PFN).then_some(Pfn::new(pfn))
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        if pfn.raw() >= self.mapped_frames() {
            return Err(AccessError::Unmapped(pfn));
        }
        let start = GuestVa::new(self.direct_map.load(Ordering::Relaxed));
        start
            .and_then(|start| start.checked_add_pages(pfn.raw()))
            .map_err(|_| AccessError::Unmapped(pfn))
    }
}

/// Returns why a write to `pfn` at `at` faulted, by trying to read it.
#[cold]
#[inline(never)]
fn refused(pfn: Pfn, at: *const u8) -> AccessError {
    match try_load(VirtAddr::from_ptr(at).align_down(8u64)) {
        Some(_) => AccessError::ReadOnly(pfn),
        None => AccessError::Unmapped(pfn),
    }
}

/// Returns how many of `len` bytes at `start` come before the first whole word.
fn bytes_to_word(start: *const u8, len: usize) -> usize {
    (start.addr().wrapping_neg() % 8).min(len)
}

// SAFETY: the accesses are the CPU's own.
unsafe impl Cpu for Xen {
    fn load(&self, va: GuestVa) -> Result<u64, Fault> {
        try_load(va.addr()).ok_or(Fault(va))
    }

    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise is the one that `try_store` asks for.
        if unsafe { try_store(va.addr(), value) } { Ok(()) } else { Err(Fault(va)) }
    }

    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault> {
        // SAFETY: the caller's promise is the one that `try_compare_exchange` asks for.
        unsafe { try_compare_exchange(va.addr(), current, new) }.ok_or(Fault(va))
    }

    fn ticks(&self) -> u64 {
        // SAFETY: reading the time-stamp counter has no other effect, and Xen allows it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}
