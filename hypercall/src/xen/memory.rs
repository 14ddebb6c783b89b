//! The guest's frames through its direct mapping, and M2P. All accesses are volatile: Xen, the CPU
//! or another domain may change what is there.

use core::ops::Range;
use core::sync::atomic::Ordering;

use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

use super::Xen;
use super::trap::{load_or, try_compare_exchange, try_load, try_store};
use crate::frame::{ENTRIES, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::machine::{AccessError, Cpu, Fault, FrameAccess, check_run};
use crate::pte::Pte;
use crate::va::GuestVa;

/// Entries of M2P from here up stand for no pfn: invalid, or shared.
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

    #[inline]
    fn entry(&self, table: Pfn, index: PageTableIndex) -> Result<*mut u64, AccessError> {
        if table.raw() >= self.mapped_frames() {
            return Err(AccessError::Unmapped(table));
        }
        // I-3: the frame is mapped there, so the sum does not overflow; each access to a table
        // comes through here.
        let page = self.direct_map.load(Ordering::Relaxed);
        let page = page.wrapping_add(table.raw() << PAGE_SHIFT);
        let page: *mut u64 = VirtAddr::new_truncate(page).as_mut_ptr();
        Ok(page.wrapping_add(usize::from(index)))
    }
}

// SAFETY: reads and writes go through the direct mapping (I-3), names through M2P.
unsafe impl FrameAccess for Xen {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        let entry = self.entry(table, index)?;
        // SAFETY: I-3: inside a mapped page, aligned, and any bits are an entry.
        Ok(Pte::from_raw(unsafe { entry.read_volatile() }))
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        let entry = self.entry(table, index)?;
        // SAFETY: I-3: inside a mapped page and aligned; the caller owns the frame (I-1).
        unsafe { entry.write_volatile(pte.raw()) };
        Ok(())
    }

    fn read_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        into: &mut [Pte],
    ) -> Result<(), AccessError> {
        check_run(table, first, into.len())?;
        let from = self.entry(table, first)?;
        // SAFETY: I-3: inside one mapped page, as `check_run` says, aligned, and any bits are an
        // entry.
        let read = |k| Pte::from_raw(unsafe { from.wrapping_add(k).read_volatile() });
        let mut done = 0;
        // Eight at a time: this loop is most of what a walk over a table costs the guest.
        let (eights, rest) = into.as_chunks_mut::<8>();
        for eight in eights {
            *eight = core::array::from_fn(|k| read(done + k));
            done += 8;
        }
        for (k, pte) in rest.iter_mut().enumerate() {
            *pte = read(done + k);
        }
        Ok(())
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        let start = self.entry(table, PageTableIndex::new(0))?;
        // SAFETY: I-3: inside one mapped page for an index below 512, aligned, and any bits are an
        // entry.
        let read = |at: u16| unsafe { start.wrapping_add(usize::from(at)).read_volatile() };
        let end = slots.end.min(ENTRIES);
        let mut at = slots.start;
        while at < end {
            // Eight at a time, where that is possible: tables are mostly empty, or full.
            if at.is_multiple_of(8) && at + 8 <= end {
                let any = read(at)
                    | read(at + 1)
                    | read(at + 2)
                    | read(at + 3)
                    | read(at + 4)
                    | read(at + 5)
                    | read(at + 6)
                    | read(at + 7);
                if !Pte::from_raw(any).is_present() {
                    at += 8;
                    continue;
                }
            }
            let pte = Pte::from_raw(read(at));
            if pte.is_present() {
                return Ok(Some((PageTableIndex::new_truncate(at), pte)));
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
        let into = self.entry(table, first)?;
        // SAFETY: I-3: inside one mapped page, as `check_run` says; the caller owns the frame
        // (I-1).
        let write = |k, pte: Pte| unsafe { into.wrapping_add(k).write_volatile(pte.raw()) };
        let mut done = 0;
        let (eights, rest) = from.as_chunks::<8>();
        for eight in eights {
            eight.iter().enumerate().for_each(|(k, pte)| write(done + k, *pte));
            done += 8;
        }
        rest.iter().enumerate().for_each(|(k, pte)| write(done + k, *pte));
        Ok(())
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        let from = self.bytes(pfn, offset, into.len())?;
        // SAFETY: I-3: inside one mapped page, as `bytes` checked.
        let byte = |k| unsafe { from.wrapping_add(k).read_volatile() };
        // SAFETY: as above, and a whole word whose address is a multiple of eight.
        let word = |k| unsafe { from.wrapping_add(k).cast::<u64>().read_volatile() };
        let (head, rest) = into.split_at_mut(bytes_to_word(from, into.len()));
        let mut done = head.len();
        head.iter_mut().enumerate().for_each(|(k, into)| *into = byte(k));
        let (words, tail) = rest.as_chunks_mut::<8>();
        for into in words {
            *into = word(done).to_ne_bytes();
            done += 8;
        }
        tail.iter_mut().enumerate().for_each(|(k, into)| *into = byte(done + k));
        Ok(())
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        let into = self.bytes(pfn, offset, from.len())?;
        // SAFETY: I-3: inside one mapped page, as `bytes` checked; the caller owns the frame (I-1).
        let byte = |k, value| unsafe { into.wrapping_add(k).write_volatile(value) };
        let (head, rest) = from.split_at(bytes_to_word(into, from.len()));
        head.iter().enumerate().for_each(|(k, from)| byte(k, *from));
        let (words, tail) = rest.as_chunks::<8>();
        // SAFETY: as above, and whole words whose addresses are multiples of eight: each is stored
        // at once. One instruction, and a step for a word.
        unsafe {
            core::arch::asm!(
                "rep movsq",
                inout("rcx") words.len() => _,
                inout("rsi") words.as_ptr() => _,
                inout("rdi") into.wrapping_add(head.len()) => _,
                options(nostack, preserves_flags),
            );
        }
        let done = head.len() + words.as_flattened().len();
        tail.iter().enumerate().for_each(|(k, from)| byte(done + k, *from));
        Ok(())
    }

    unsafe fn clear_frame(&self, pfn: Pfn) -> Result<(), AccessError> {
        let page = self.bytes(pfn, 0, PAGE_SIZE)?;
        // SAFETY: I-3: one mapped page, and the caller owns the frame (I-1). One instruction, and
        // the fewest steps that a page can be cleared in without vector registers.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / 8 => _,
                inout("rdi") page => _,
                in("rax") 0,
                options(nostack, preserves_flags),
            );
        }
        Ok(())
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        if mfn.raw() >= self.m2p_entries.load(Ordering::Relaxed) {
            return None;
        }
        // A hole in the table reads as what stands there for no pfn.
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

/// How many of `len` bytes at `start` come before the first whole word.
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
