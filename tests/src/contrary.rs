//! A machine that contradicts itself: it does what it is asked, says so of every request, and
//! refuses the trap as a whole.
#![expect(unsafe_code, reason = "forwards calls with the promises of their callers")]

use core::cell::Cell;
use core::ops::Range;

use hypercall::{
    AccessError, Assist, Call, Errno, Error, FrameAccess, GuestVa, Hypercall, Hypercalls, MemoryOp,
    Mfn, Pfn, Pte, PteFlags,
};
use x86_64::structures::paging::PageTableIndex;

/// Wraps a machine and refuses one trap as a whole, after it was done.
///
/// ```
/// use hypercall::{BatchStorage, MmuExtOp};
/// use pv_tests::contrary::Contrary;
///
/// let model = xen_model::Model::builder().build()?;
/// let machine = Contrary::new(&model, 0);
/// let mut storage = BatchStorage::<0, 1>::new();
/// let mut batch = storage.batch();
/// batch.op(MmuExtOp::tlb_flush_all())?;
/// let refused = unsafe { batch.submit(&machine) };
/// assert!(refused.is_err() && batch.applied().count() == 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Contrary<M> {
    machine: M,
    trap: u64,
    seen: Cell<u64>,
}

impl<M> Contrary<M> {
    /// Refuses trap number `trap`, from 0.
    pub const fn new(machine: M, trap: u64) -> Self {
        Self { machine, trap, seen: Cell::new(0) }
    }

    /// Whether that trap has come.
    pub const fn has_refused(&self) -> bool {
        self.seen.get() > self.trap
    }
}

// SAFETY: what it says of each request is what the machine inside says.
unsafe impl<M: Hypercalls> Hypercalls for Contrary<M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.issue(calls) }?;
        let trap = self.seen.replace(self.seen.get() + 1);
        let error = Error { hypercall: Hypercall::Multicall, errno: Errno::EFAULT, done: 0 };
        if trap == self.trap { Err(error) } else { Ok(()) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.memory_op(op) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.machine.enable_assist(assist)
    }
}

// SAFETY: every access goes to the machine inside, whose answer is handed on.
unsafe impl<M: FrameAccess> FrameAccess for Contrary<M> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.machine.read_entry(table, index)
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_entry(table, index, pte) }
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        self.machine.next_present(table, slots)
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.machine.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_bytes(pfn, offset, from) }
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.machine.machine_to_phys(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.machine.direct_map(pfn)
    }

    fn missing_flags(&self) -> PteFlags {
        self.machine.missing_flags()
    }
}
