//! What every operation needs to know of its surroundings.

use hypercall::{
    Call, DomId, Error, FrameAccess, Hypercalls, Mfn, MmuExtOp, Pfn, Pte, Request, Slot,
};
use p2m::P2m;
use x86_64::structures::paging::PageTableIndex;

use crate::error::WalkError;
use crate::walk::walk;

/// The guest around an operation: a bundle of borrows, handed on by value.
#[derive(Debug)]
pub struct Context<'a, M> {
    /// The machine.
    pub machine: &'a M,
    /// The frame map.
    pub p2m: &'a P2m<'a>,
    /// The root that the kernel runs on, whose upper half holds the direct mapping.
    pub kernel_root: Pfn,
}

impl<M> Clone for Context<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Context<'_, M> {}

impl<M: Hypercalls> Context<'_, M> {
    /// Asks Xen for one extended operation.
    ///
    /// # Safety
    /// As for [`Hypercalls::issue`].
    #[expect(unsafe_code, reason = "hands the promise on to the seam")]
    pub(crate) unsafe fn submit_op(&self, op: MmuExtOp) -> Result<(), Error> {
        let ops = [op];
        let mut calls = [Call::new(Request::MmuExt(&ops, DomId::SELF))];
        // SAFETY: the caller's promise is the one that `issue` asks for.
        unsafe { self.machine.issue(&mut calls) }?;
        calls[0].result()
    }
}

impl<M: FrameAccess> Context<'_, M> {
    /// The place of the entry that maps `pfn` in the direct mapping, and the entry.
    pub(crate) fn direct_map_entry(&self, pfn: Pfn) -> Result<(Slot, Pte), WalkError> {
        let va = self.machine.direct_map(pfn)?;
        walk(self, self.kernel_root, va)?.leaf().ok_or(WalkError::NotMapped(va))
    }

    /// The place of entry `index` of the table in frame `table`.
    pub(crate) fn slot(&self, table: Pfn, index: PageTableIndex) -> Result<Slot, WalkError> {
        Ok(Slot { table: self.mfn(table)?, index })
    }

    /// The machine frame behind `pfn`.
    pub(crate) fn mfn(&self, pfn: Pfn) -> Result<Mfn, WalkError> {
        Ok(self.p2m.mfn(pfn)?)
    }
}
