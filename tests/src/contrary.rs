//! A machine that contradicts itself: it does what it is asked, says so of every request, and
//! refuses the trap as a whole.
#![expect(unsafe_code, reason = "forwards calls with the promises of their callers")]

use core::cell::Cell;

use hypercall::memory::MemoryOp;
use hypercall::{Assist, Call, Errno, Error, Hypercall, Hypercalls};

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

crate::forward_accesses!([M: FrameAccess] Contrary<M>);
