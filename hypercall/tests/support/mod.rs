//! A machine that does nothing and says yes, for the tests of machines around machines.
#![expect(unsafe_code, reason = "the seam's signatures; the machine has no memory")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::cell::RefCell;

use hypercall::grants::{GrantMap, GrantUnmap, Grants};
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{
    AccessError, Assist, Call, DomId, Error, FrameAccess, GuestVa, Hypercalls, Mfn, Outcome, Pfn,
    Pte, VaFlush, VaMapping,
};
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

/// Does nothing, says yes, and keeps what it was asked. Frames below 0x100 have the pfn 0x10 less.
#[derive(Default)]
pub(crate) struct Inside(RefCell<Vec<String>>);

impl Inside {
    pub(crate) fn note(&self, name: impl ToString) {
        self.0.borrow_mut().push(name.to_string());
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Hypercalls for Inside {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        for call in calls {
            self.note(format!("{} x{}", call.request.hypercall(), call.request.len()));
            call.outcome = Outcome::Done;
        }
        Ok(())
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        self.note(format!("{} x{}", op.name(), op.extents()));
        Ok(op.extents() as u64)
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.note(format!("{assist:?}"));
        Ok(())
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Grants for Inside {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        self.note(format!("map x{}", maps.len()));
        maps.iter_mut().for_each(|map| map.status = 0);
        Ok(())
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        self.note(format!("unmap x{}", unmaps.len()));
        unmaps.iter_mut().for_each(|unmap| unmap.status = 0);
        Ok(())
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        self.note(format!("table x{}", frames.len()));
        Ok(())
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for Inside {
    fn read_entry(&self, table: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
        if table == Pfn::new(9) { Err(AccessError::Unmapped(table)) } else { Ok(Pte::ABSENT) }
    }

    unsafe fn write_entry(&self, _: Pfn, _: PageTableIndex, _: Pte) -> Result<(), AccessError> {
        Ok(())
    }

    fn read_bytes(&self, _: Pfn, _: usize, into: &mut [u8]) -> Result<(), AccessError> {
        into.fill(0x5a);
        Ok(())
    }

    unsafe fn write_bytes(&self, _: Pfn, _: usize, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        (0x10..0x100).contains(&mfn.raw()).then(|| Pfn::new(mfn.raw() - 0x10))
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}

pub(crate) fn va() -> GuestVa {
    GuestVa::new(0x5000).expect("user half")
}

pub(crate) fn mapping() -> VaMapping {
    VaMapping { va: VirtAddr::new(0x5000), pte: Pte::from_raw(0x12067), flush: VaFlush::TlbAll }
}

pub(crate) fn list(extents: &mut [Extent]) -> Reservation<'_> {
    Reservation { extents, order: 0, flags: 0, domain: DomId::SELF }
}
