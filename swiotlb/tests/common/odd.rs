//! A machine around the model with a fault, or with somebody beside it.

use hypercall::memory::MemoryOp;
use hypercall::{AccessError, Assist, Call, FrameAccess, GuestVa, Hypercalls, Mfn, Pfn, Pte};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

/// The model, but for what is said here.
pub struct Odd<'m> {
    pub model: &'m Model,
    /// M2P does not know this one.
    pub forgets: Option<Pfn>,
    /// This one cannot be written.
    pub spares: Option<Pfn>,
    /// Is done before and after each request.
    pub beside: &'m dyn Fn(),
}

impl<'m> Odd<'m> {
    pub fn new(model: &'m Model) -> Self {
        Self { model, forgets: None, spares: None, beside: &|| {} }
    }

    fn request<R>(&self, ask: impl FnOnce() -> R) -> R {
        (self.beside)();
        let answer = ask();
        (self.beside)();
        answer
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for Odd<'_> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.model.read_entry(table, index)
    }

    unsafe fn write_entry(
        &self,
        pfn: Pfn,
        at: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.model.write_entry(pfn, at, pte) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.model.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        if self.spares == Some(pfn) {
            return Err(AccessError::ReadOnly(pfn));
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { self.model.write_bytes(pfn, offset, from) }
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.model.machine_to_phys(mfn).filter(|pfn| self.forgets != Some(*pfn))
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.model.direct_map(pfn)
    }
}

// SAFETY: as above.
unsafe impl Hypercalls for Odd<'_> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), hypercall::Error> {
        // SAFETY: the caller's promise is handed on.
        self.request(|| unsafe { self.model.issue(calls) })
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, hypercall::Error> {
        // SAFETY: the caller's promise is handed on.
        self.request(|| unsafe { self.model.memory_op(op) })
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), hypercall::Error> {
        self.model.enable_assist(assist)
    }
}
