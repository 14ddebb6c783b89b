//! The CPU of a guest on the model: loads and stores that may fault, or that Xen emulates.
#![expect(unsafe_code, reason = "the seam's stores are declared unsafe; nothing here is")]

use hypercall::{Cpu, Fault, GuestVa};

use crate::emulate::low_word;
use crate::model::{Model, Vcpu};
use crate::tlb::Mode;

/// Bytes of a word.
const WORD_BYTES: usize = 8;

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Cpu for Vcpu<'_> {
    fn load(&self, va: GuestVa) -> Result<u64, Fault> {
        let mut bytes = [0; WORD_BYTES];
        self.load(va.raw(), &mut bytes, Mode::Kernel).map_err(|_| Fault(va))?;
        Ok(u64::from_le_bytes(bytes))
    }

    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
        self.store(va.raw(), &value.to_le_bytes(), Mode::Kernel).map_err(|_| Fault(va))
    }

    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault> {
        let (expected, new) = (u128::from(current), u128::from(new));
        let seen = self.compare_exchange(va.raw(), expected, new, WORD_BYTES);
        seen.map(low_word).map_err(|_| Fault(va))
    }

    /// There is no time on the model.
    fn ticks(&self) -> u64 {
        0
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Cpu for Model {
    fn load(&self, va: GuestVa) -> Result<u64, Fault> {
        Cpu::load(&self.guest(), va)
    }

    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise is handed on.
        unsafe { Cpu::store(&self.guest(), va, value) }
    }

    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault> {
        // SAFETY: the caller's promise is handed on.
        unsafe { Cpu::compare_exchange(&self.guest(), va, current, new) }
    }

    fn ticks(&self) -> u64 {
        0
    }
}
