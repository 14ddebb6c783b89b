//! A machine that refuses one request, to show how the code above copes.

use core::cell::Cell;
use core::slice;

use super::fail_each::{FailEach, Refusal, Refusals};
use super::{forward_cpu, forward_frame_access};
use crate::call::Call;
use crate::error::Error;
use crate::frame::{Mfn, Pfn};
use crate::grants::{GrantMap, GrantUnmap, Grants};
use crate::machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls};
use crate::memory::MemoryOp;
use crate::pte::Pte;
use crate::va::GuestVa;
use x86_64::structures::paging::PageTableIndex;

/// Wraps a machine and refuses one request. All others go through as on Xen, also those after it in
/// a multicall.
#[derive(Debug)]
pub struct FailNth<M> {
    machine: M,
    refusal: Refusal,
    seen: Cell<u64>,
}

impl<M> FailNth<M> {
    /// Wraps `machine`, and refuses what `refusal` says.
    ///
    /// ```
    /// use hypercall::middleware::{FailNth, Refusal};
    /// use hypercall::{BatchStorage, Errno, MmuExtOp};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let machine = FailNth::new(&model, Refusal { request: 0, done: 0, errno: Errno::ENOMEM });
    /// let mut storage = BatchStorage::<0, 1>::new();
    /// let mut batch = storage.batch();
    /// batch.op(MmuExtOp::tlb_flush_all())?;
    /// let refused = unsafe { batch.submit(&machine) }.unwrap_err();
    /// assert_eq!(refused.error.errno, Errno::ENOMEM);
    /// assert!(machine.has_refused());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(machine: M, refusal: Refusal) -> Self {
        Self { machine, refusal, seen: Cell::new(0) }
    }

    /// Returns the number of requests so far. If it stays at or below `refusal.request`, nothing
    /// was refused.
    pub const fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Returns whether the request has been refused.
    pub const fn has_refused(&self) -> bool {
        self.seen.get() > self.refusal.request
    }

    /// Returns the machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }

    /// Lets `ask` ask the machine, with the pending refusal between them.
    fn ask<T>(&self, ask: impl FnOnce(&FailEach<'_, &M>) -> T) -> T {
        let plan = Refusals::at(slice::from_ref(&self.refusal), self.seen.get());
        let answer = ask(&FailEach::new(&self.machine, &plan));
        self.seen.set(plan.seen());
        answer
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls> Hypercalls for FailNth<M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        self.ask(|machine| unsafe { machine.issue(calls) })
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the caller's promise is handed on.
        self.ask(|machine| unsafe { machine.memory_op(op) })
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.ask(|machine| machine.enable_assist(assist))
    }
}

/// Grants are answered one by one: element `done` of the request is refused, those around it go
/// through.
#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Grants> Grants for FailNth<M> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        self.ask(|machine| unsafe { machine.grant_map(maps) })
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        self.ask(|machine| unsafe { machine.grant_unmap(unmaps) })
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        self.ask(|machine| machine.grant_table(frames))
    }
}

forward_frame_access!([M: FrameAccess] FailNth<M>, self => self.machine);
// The CPU's accesses reach Xen by a fault; they are not requests.
forward_cpu!([M: Cpu] FailNth<M>, self => self.machine);
