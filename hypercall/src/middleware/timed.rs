//! A machine that measures how long requests take.

use core::cell::Cell;

use super::forward_frame_access;
use crate::call::Call;
use crate::error::Error;
use crate::frame::{Mfn, Pfn};
use crate::machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls};
use crate::memory::MemoryOp;
use crate::pte::Pte;
use crate::va::GuestVa;
use x86_64::structures::paging::PageTableIndex;

/// Wraps a machine and adds up the ticks spent inside its requests and inside the stores of
/// [`Cpu`], which Xen emulates if they go to a table. That is the hypervisor's share of an
/// operation, with the few instructions that load its registers. Faults elsewhere are not counted.
#[derive(Debug)]
pub struct Timed<'a, M> {
    machine: &'a M,
    ticks: Cell<u64>,
}

impl<'a, M: Cpu> Timed<'a, M> {
    /// Wraps `machine`, and starts from zero.
    ///
    /// ```
    /// use hypercall::middleware::Timed;
    /// use hypercall::{Assist, Hypercalls};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let machine = Timed::new(&model);
    /// machine.enable_assist(Assist::WritablePageTables)?;
    /// println!("{} ticks", machine.ticks_in_requests());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(machine: &'a M) -> Self {
        Self { machine, ticks: Cell::new(0) }
    }

    /// Returns the ticks spent inside requests so far.
    pub const fn ticks_in_requests(&self) -> u64 {
        self.ticks.get()
    }

    fn time<T>(&self, request: impl FnOnce(&M) -> T) -> T {
        let start = self.machine.ticks();
        let result = request(self.machine);
        let took = self.machine.ticks().wrapping_sub(start);
        self.ticks.set(self.ticks.get().wrapping_add(took));
        result
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls + Cpu> Hypercalls for Timed<'_, M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        self.time(|machine| unsafe { machine.issue(calls) })
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the caller's promise is handed on.
        self.time(|machine| unsafe { machine.memory_op(op) })
    }

    unsafe fn memory_op_counted(
        &self,
        op: &mut MemoryOp<'_>,
    ) -> (Result<u64, Error>, Result<u64, Error>) {
        // SAFETY: the caller's promise is handed on.
        self.time(|machine| unsafe { machine.memory_op_counted(op) })
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.time(|machine| machine.enable_assist(assist))
    }
}

forward_frame_access!([M: FrameAccess] Timed<'_, M>, self => self.machine);

#[expect(unsafe_code, reason = "forwards stores with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Cpu> Cpu for Timed<'_, M> {
    fn load(&self, va: GuestVa) -> Result<u64, Fault> {
        self.machine.load(va)
    }

    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise is handed on.
        self.time(|machine| unsafe { machine.store(va, value) })
    }

    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault> {
        // SAFETY: the caller's promise is handed on.
        self.time(|machine| unsafe { machine.compare_exchange(va, current, new) })
    }

    fn ticks(&self) -> u64 {
        self.machine.ticks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which a request takes seven ticks, and reading the clock one.
    struct Slow(Cell<u64>);

    #[expect(unsafe_code, reason = "the seam's signatures")]
    // SAFETY: the machine has no memory: nothing it says is about any.
    unsafe impl Hypercalls for Slow {
        unsafe fn issue(&self, _: &mut [Call<'_>]) -> Result<(), Error> {
            self.0.set(self.0.get() + 7);
            Ok(())
        }

        unsafe fn memory_op(&self, _: &mut MemoryOp<'_>) -> Result<u64, Error> {
            self.0.set(self.0.get() + 7);
            Ok(0)
        }

        fn enable_assist(&self, _: Assist) -> Result<(), Error> {
            self.0.set(self.0.get() + 7);
            Ok(())
        }
    }

    #[expect(unsafe_code, reason = "the seam's signatures")]
    // SAFETY: the machine has no memory: nothing it says is about any.
    unsafe impl Cpu for Slow {
        fn load(&self, va: GuestVa) -> Result<u64, Fault> {
            Err(Fault(va))
        }

        unsafe fn store(&self, va: GuestVa, _: u64) -> Result<(), Fault> {
            self.0.set(self.0.get() + 7);
            Err(Fault(va))
        }

        unsafe fn compare_exchange(&self, va: GuestVa, _: u64, _: u64) -> Result<u64, Fault> {
            Err(Fault(va))
        }

        fn ticks(&self) -> u64 {
            self.0.set(self.0.get() + 1);
            self.0.get()
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "asks a machine that does nothing")]
    fn only_what_passes_inside_requests_and_stores_is_counted() {
        let slow = Slow(Cell::new(0));
        let timed = Timed::new(&slow);
        // SAFETY: asks for nothing.
        assert_eq!(unsafe { timed.issue(&mut []) }, Ok(()));
        // What the guest does in between is its own.
        slow.0.set(slow.0.get() + 1000);
        assert_eq!(timed.enable_assist(Assist::WritablePageTables), Ok(()));
        let va = GuestVa::new(0).unwrap();
        // SAFETY: the machine stores nothing.
        assert_eq!(unsafe { timed.store(va, 1) }, Err(Fault(va)));
        assert_eq!(timed.load(va), Err(Fault(va)));
        assert_eq!(timed.ticks_in_requests(), 3 * (7 + 1));
    }
}
