//! A machine together with the promise of the caller of [`Prover::step`](crate::Prover::step): the
//! arena's frames are nobody else's. With it in hand the operations are safe, since they touch
//! nothing but these frames, the entries that map them, and frames that Xen refuses to give.
#![expect(unsafe_code, reason = "one place where the promise is handed on")]

use hypercall::{
    AccessError, Assist, Call, EmulatedWrites, Error, Faulted, GuestVa, Machine, MemoryOp, Mfn,
    PageTableIndex, Pfn, Pte, Width,
};

/// The machine, and the promise.
pub(crate) struct Trusted<'m>(&'m dyn Provable);

/// What operations need of a machine.
pub(crate) trait Provable: Machine + EmulatedWrites {}

impl<M: Machine + EmulatedWrites> Provable for M {}

impl<'m> Trusted<'m> {
    /// # Safety
    /// As for [`Prover::step`](crate::Prover::step).
    pub(crate) const unsafe fn new(machine: &'m dyn Provable) -> Self {
        Self(machine)
    }

    pub(crate) fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.0.issue(calls) }
    }

    pub(crate) fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.0.memory_op(op) }
    }

    pub(crate) fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.0.enable_assist(assist)
    }

    pub(crate) fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.0.read_entry(table, index)
    }

    /// Stores to a frame that is mapped writable, and therefore is no live table.
    pub(crate) fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        // SAFETY: the promise that `new` was given; what is a live table is not mapped writable.
        unsafe { self.0.write_entry(table, index, pte) }
    }

    pub(crate) fn write_bytes(
        &self,
        pfn: Pfn,
        offset: usize,
        from: &[u8],
    ) -> Result<(), AccessError> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.0.write_bytes(pfn, offset, from) }
    }

    pub(crate) fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.0.machine_to_phys(mfn)
    }

    pub(crate) fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.0.direct_map(pfn)
    }

    pub(crate) fn store(&self, va: GuestVa, value: u64, width: Width) -> Result<(), Faulted> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.0.store(va, value, width) }
    }

    pub(crate) fn compare_exchange(
        &self,
        va: GuestVa,
        expected: u64,
        new: u64,
    ) -> Result<u64, Faulted> {
        // SAFETY: the promise that `new` was given.
        unsafe { self.0.compare_exchange(va, expected, new) }
    }
}
