//! A machine beside which something else goes on: another vCPU that uses its pages, say.
#![expect(unsafe_code, reason = "forwards calls with the promises of their callers")]

use core::fmt;

use hypercall::memory::MemoryOp;
use hypercall::{Assist, Call, Cpu, Error, Fault, GuestVa, Hypercalls};

/// Wraps a machine and does something before and after each request, also of those that go to Xen
/// in one multicall.
///
/// ```
/// use core::cell::Cell;
/// use hypercall::{Assist, Hypercalls};
/// use pv_tests::meanwhile::Meanwhile;
///
/// let model = xen_model::Model::builder().build()?;
/// let times = Cell::new(0);
/// let count = || times.set(times.get() + 1);
/// let machine = Meanwhile::new(&model, &count);
/// machine.enable_assist(Assist::WritablePageTables)?;
/// assert_eq!(times.get(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Meanwhile<'w, M> {
    machine: M,
    what: &'w dyn Fn(),
    when: When,
}

/// When something else goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Before and after each request.
    Requests,
    /// Before each trap.
    BeforeTraps,
    /// After each trap.
    AfterTraps,
}

impl<'w, M> Meanwhile<'w, M> {
    /// Does `what` before and after each request.
    pub const fn new(machine: M, what: &'w dyn Fn()) -> Self {
        Self { machine, what, when: When::Requests }
    }

    /// Does `what` before each trap only.
    pub const fn before_traps(machine: M, what: &'w dyn Fn()) -> Self {
        Self { machine, what, when: When::BeforeTraps }
    }

    /// Does `what` after each trap only: when all is in effect that went to Xen together.
    pub const fn after_traps(machine: M, what: &'w dyn Fn()) -> Self {
        Self { machine, what, when: When::AfterTraps }
    }

    /// Returns the machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }

    fn around<T>(&self, ask: impl FnOnce(&M) -> T) -> T {
        if self.when != When::AfterTraps {
            (self.what)();
        }
        let answer = ask(&self.machine);
        if self.when != When::BeforeTraps {
            (self.what)();
        }
        answer
    }
}

impl<M: fmt::Debug> fmt::Debug for Meanwhile<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meanwhile").field("machine", &self.machine).finish_non_exhaustive()
    }
}

// SAFETY: every request goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls> Hypercalls for Meanwhile<'_, M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        if self.when != When::Requests {
            // SAFETY: the caller's promise is handed on.
            return self.around(|machine| unsafe { machine.issue(calls) });
        }
        for call in calls {
            // SAFETY: a part of what the caller vouches for, in its order.
            self.around(|machine| unsafe { machine.issue(core::slice::from_mut(call)) })?;
        }
        Ok(())
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the caller's promise is handed on.
        self.around(|machine| unsafe { machine.memory_op(op) })
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.around(|machine| machine.enable_assist(assist))
    }
}

crate::forward_accesses!([M: FrameAccess] Meanwhile<'_, M>);

// SAFETY: every access goes to the machine inside, whose answer is handed on.
unsafe impl<M: Cpu> Cpu for Meanwhile<'_, M> {
    fn load(&self, va: GuestVa) -> Result<u64, Fault> {
        self.machine.load(va)
    }

    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise is handed on.
        self.around(|machine| unsafe { machine.store(va, value) })
    }

    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault> {
        // SAFETY: the caller's promise is handed on.
        self.around(|machine| unsafe { machine.compare_exchange(va, current, new) })
    }

    fn ticks(&self) -> u64 {
        self.machine.ticks()
    }
}
