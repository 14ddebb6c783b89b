//! A machine that refuses one request, to show what the code above makes of it.

use core::cell::Cell;

use super::{forward_cpu, forward_frame_access};
use crate::call::{Call, Outcome, Request};
use crate::error::{Errno, Error, Hypercall};
use crate::frame::{Mfn, Pfn};
use crate::grants::{GrantMap, GrantStatus, GrantUnmap, Grants};
use crate::machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls};
use crate::memory::{MemoryOp, Reservation};
use crate::pte::Pte;
use crate::va::GuestVa;
use x86_64::structures::paging::PageTableIndex;

/// Which request is refused, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Counted from 0 over everything issued: each request of a multicall counts, each `memory_op`
    /// counts.
    pub request: u64,
    /// The errno.
    pub errno: Errno,
    /// How many elements of it take effect before the refusal (fewer if it has not that many).
    pub done: usize,
}

/// Wraps a machine and refuses one request; all others, also those of the same multicall behind it,
/// go through, as with Xen.
#[derive(Debug)]
pub struct FailNth<M> {
    machine: M,
    refusal: Refusal,
    seen: Cell<u64>,
}

impl<M> FailNth<M> {
    /// Will refuse what `refusal` says.
    ///
    /// ```
    /// use hypercall::{BatchStorage, Errno, FailNth, MmuExtOp, Refusal};
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

    /// Requests seen so far. If the count stays at or below `refusal.request`, nothing was refused.
    pub const fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Whether the request has been refused.
    pub const fn has_refused(&self) -> bool {
        self.seen.get() > self.refusal.request
    }

    /// The machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }

    /// Counts `requests` more; the index among them of the one to refuse.
    fn count(&self, requests: usize) -> Option<usize> {
        let first = self.seen.get();
        self.seen.set(first + requests as u64);
        let index = usize::try_from(self.refusal.request.checked_sub(first)?).ok()?;
        (index < requests).then_some(index)
    }
}

/// The first `count` elements of a request.
fn prefix<'a>(request: Request<'a>, count: usize) -> Request<'a> {
    match request {
        Request::MmuUpdate(updates, domains) => Request::MmuUpdate(&updates[..count], domains),
        Request::MmuExt(ops, domain) => Request::MmuExt(&ops[..count], domain),
        Request::VaMapping(_) => request,
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
impl<M: Hypercalls> FailNth<M> {
    /// Runs the part of `call` that is to take effect and marks it refused.
    ///
    /// # Safety
    /// As for [`Hypercalls::issue`].
    unsafe fn refuse(&self, call: &mut Call<'_>) -> Result<(), Error> {
        let done = self.refusal.done.min(call.request.len() - 1);
        let mut part = [Call::new(prefix(call.request, done))];
        if done > 0 {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.machine.issue(&mut part) }?;
        }
        let part = part[0];
        call.outcome = match part.outcome {
            // The machine's own refusal comes first.
            Outcome::Refused { .. } => part.outcome,
            _ => Outcome::Refused {
                errno: self.refusal.errno,
                done: u32::try_from(done).unwrap_or(u32::MAX),
            },
        };
        Ok(())
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls> Hypercalls for FailNth<M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        let Some(at) = self.count(calls.len()) else {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.issue(calls) };
        };
        let (before, rest) = calls.split_at_mut(at);
        // SAFETY: a part of what the caller vouches for, in its order.
        unsafe { self.machine.issue(before) }?;
        let (refused, after) = rest.split_at_mut(1);
        // SAFETY: as above.
        unsafe { self.refuse(&mut refused[0]) }?;
        // SAFETY: as above.
        unsafe { self.machine.issue(after) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        let hypercall = Hypercall::MemoryOp(op.name());
        if self.count(1).is_none() {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.memory_op(op) };
        }
        let (wrap, list): (fn(Reservation<'_>) -> MemoryOp<'_>, _) = match op {
            MemoryOp::Increase(list) => (|part| MemoryOp::Increase(part), list),
            MemoryOp::Decrease(list) => (|part| MemoryOp::Decrease(part), list),
            MemoryOp::Populate(list) => (|part| MemoryOp::Populate(part), list),
            _ => return Err(Error { hypercall, errno: self.refusal.errno, done: 0 }),
        };
        // Operations on extents are never refused with an errno: they come up short.
        let done = self.refusal.done.min(list.extents.len().saturating_sub(1));
        if done == 0 {
            return Ok(0);
        }
        let part = Reservation { extents: &mut list.extents[..done], ..*list };
        // SAFETY: a part of what the caller vouches for.
        unsafe { self.machine.memory_op(&mut wrap(part)) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        if self.count(1).is_some() {
            let hypercall = Hypercall::VmAssist;
            return Err(Error { hypercall, errno: self.refusal.errno, done: 0 });
        }
        self.machine.enable_assist(assist)
    }
}

/// Grants are answered one by one: element `done` of the request is refused, those around it go
/// through.
#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Grants> Grants for FailNth<M> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        if maps.is_empty() || self.count(1).is_none() {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.grant_map(maps) };
        }
        let (before, rest) = maps.split_at_mut(self.refusal.done.min(maps.len() - 1));
        let (refused, after) = rest.split_at_mut(1);
        // SAFETY: a part of what the caller vouches for.
        unsafe { self.machine.grant_map(before) }?;
        refused[0].status = GrantStatus::GENERAL_ERROR.0;
        // SAFETY: as above.
        unsafe { self.machine.grant_map(after) }
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        if unmaps.is_empty() || self.count(1).is_none() {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.grant_unmap(unmaps) };
        }
        let (before, rest) = unmaps.split_at_mut(self.refusal.done.min(unmaps.len() - 1));
        let (refused, after) = rest.split_at_mut(1);
        // SAFETY: a part of what the caller vouches for.
        unsafe { self.machine.grant_unmap(before) }?;
        refused[0].status = GrantStatus::GENERAL_ERROR.0;
        // SAFETY: as above.
        unsafe { self.machine.grant_unmap(after) }
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        if self.count(1).is_some() {
            let hypercall = Hypercall::GrantTableOp("setup_table");
            return Err(Error { hypercall, errno: self.refusal.errno, done: 0 });
        }
        self.machine.grant_table(frames)
    }
}

forward_frame_access!([M: FrameAccess] FailNth<M>, self => self.machine);
// What the CPU does asks Xen by a fault: it is no request.
forward_cpu!([M: Cpu] FailNth<M>, self => self.machine);
