//! Hypercalls by number, and the CPU's less usual writes, for those who must be able to be wrong.
#![expect(unsafe_code, reason = "the seam's methods are declared unsafe; nothing here is")]

use hypercall::raw::{RawCpu, RawHypercalls, RawWrite};

use crate::emulate::low_word;
use crate::model::{Model, Vcpu};
use crate::tlb::Mode;

/// A selector's table bit: the LDT.
const OF_LDT: u16 = 4;

impl RawHypercalls for Vcpu<'_> {
    unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64 {
        self.hypercall(u64::from(number), arguments)
    }
}

impl RawCpu for Vcpu<'_> {
    unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
        let bytes = value.to_le_bytes();
        let store = |len: usize| self.store(address, &bytes[..len], Mode::Kernel).ok().map(|()| 0);
        match how {
            RawWrite::Store1 => store(1),
            RawWrite::Store2 => store(2),
            RawWrite::Store4 => store(4),
            RawWrite::Store8 => store(8),
            RawWrite::Exchange => locked(self, address, |_| value),
            RawWrite::Or => locked(self, address, |seen| seen | value).map(|_| 0),
            RawWrite::CompareExchange16 => {
                let seen = self.compare_exchange(address, 0, u128::from(value), 16);
                seen.ok().map(low_word)
            }
        }
    }

    unsafe fn load_selector(&self, selector: u16) -> bool {
        let index = u64::from(selector >> 3);
        selector & OF_LDT == 0 || self.load_ldt_selector(index).is_ok()
    }
}

/// Replaces the word at `address` in one step; nothing else runs in between.
fn locked(guest: &Vcpu<'_>, address: u64, change: impl Fn(u64) -> u64) -> Option<u64> {
    let mut bytes = [0; 8];
    guest.load(address, &mut bytes, Mode::Kernel).ok()?;
    let seen = u64::from_le_bytes(bytes);
    let new = u128::from(change(seen));
    guest.compare_exchange(address, u128::from(seen), new, 8).ok().map(low_word)
}

impl RawHypercalls for Model {
    unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64 {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.guest().raw(number, arguments) }
    }
}

impl RawCpu for Model {
    unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.guest().write(address, how, value) }
    }

    unsafe fn load_selector(&self, selector: u16) -> bool {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.guest().load_selector(selector) }
    }
}
