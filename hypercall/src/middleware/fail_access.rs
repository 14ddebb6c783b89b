//! A machine that fails some accesses to frames.

use core::ops::Range;

use x86_64::structures::paging::PageTableIndex;

use super::accesses::Accessed;
use super::fail_each::FailEach;
use crate::frame::{Mfn, Pfn};
use crate::machine::{AccessError, FrameAccess};
use crate::pte::{Pte, PteFlags};
use crate::va::GuestVa;

impl<M> FailEach<'_, M> {
    /// Counts an access that changes nothing.
    fn reach(&self, method: &'static str, pfn: Pfn) -> Result<(), AccessError> {
        let access = Accessed { method, pfn, requests: self.plan.seen() };
        self.plan.accesses().count(access).map_err(|_| AccessError::Unmapped(pfn))
    }

    /// Counts a write. A write that fails finds the frame unmapped or read-only, in turn.
    fn write(&self, method: &'static str, pfn: Pfn) -> Result<(), AccessError> {
        let access = Accessed { method, pfn, requests: self.plan.seen() };
        self.plan.accesses().count(access).map_err(|number| match number % 2 {
            0 => AccessError::ReadOnly(pfn),
            _ => AccessError::Unmapped(pfn),
        })
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on, or is not made and is
// reported as failed.
unsafe impl<M: FrameAccess> FrameAccess for FailEach<'_, M> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.reach("read_entry", table)?;
        self.machine.read_entry(table, index)
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        self.write("write_entry", table)?;
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_entry(table, index, pte) }
    }

    fn read_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        into: &mut [Pte],
    ) -> Result<(), AccessError> {
        self.reach("read_entries", table)?;
        self.machine.read_entries(table, first, into)
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        self.reach("next_present", table)?;
        self.machine.next_present(table, slots)
    }

    unsafe fn write_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        from: &[Pte],
    ) -> Result<(), AccessError> {
        self.write("write_entries", table)?;
        // SAFETY: as above.
        unsafe { self.machine.write_entries(table, first, from) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.reach("read_bytes", pfn)?;
        self.machine.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        self.write("write_bytes", pfn)?;
        // SAFETY: as above.
        unsafe { self.machine.write_bytes(pfn, offset, from) }
    }

    unsafe fn clear_frame(&self, pfn: Pfn) -> Result<(), AccessError> {
        self.write("clear_frame", pfn)?;
        // SAFETY: as above.
        unsafe { self.machine.clear_frame(pfn) }
    }

    fn missing_flags(&self) -> PteFlags {
        self.machine.missing_flags()
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.machine.machine_to_phys(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.reach("direct_map", pfn)?;
        self.machine.direct_map(pfn)
    }
}
