//! The CPU's other ways to write, each able to fault.

use core::arch::asm;

use super::Xen;
use super::trap::{fixup, hypercall};
use crate::raw::{RawCpu, RawHypercalls, RawWrite};

/// Runs an instruction that writes rax, or part of it, at the address in rdi. Is what rax holds
/// afterwards, or `None` if it faulted. The caller owns what is written.
macro_rules! tried {
    ($instruction:literal, $address:expr, $value:expr) => {{
        let mut seen: u64 = $value;
        let mut written = 0u64;
        // SAFETY: the caller owns what is written; a fault skips what notes that there was none.
        unsafe {
            asm!(
                "2:",
                $instruction,
                "3:",
                "mov {written:e}, 1",
                "4:",
                fixup!("2b", "3b", "4b"),
                written = inout(reg) written,
                in("rdi") $address,
                inout("rax") seen,
                options(nostack),
            );
        }
        (written == 1).then_some(seen)
    }};
}

/// Exchanges two words that are zero for `value` and zero. Returns the first that was there, or
/// `None` if that faulted.
///
/// # Safety
/// The caller owns what is written.
unsafe fn try_exchange16(address: u64, value: u64) -> Option<u64> {
    let seen: u64;
    let mut written = 0u64;
    // SAFETY: the caller's promise; rbx is put back, after a fault too.
    unsafe {
        asm!(
            "xchg {value}, rbx",
            "2:",
            "lock cmpxchg16b [rdi]",
            "3:",
            "mov {written:e}, 1",
            "4:",
            "xchg {value}, rbx",
            fixup!("2b", "3b", "4b"),
            value = inout(reg) value => _,
            written = inout(reg) written,
            in("rdi") address,
            in("rcx") 0,
            inout("rax") 0u64 => seen,
            inout("rdx") 0u64 => _,
            options(nostack),
        );
    }
    (written == 1).then_some(seen)
}

impl RawHypercalls for Xen {
    unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64 {
        // SAFETY: the caller's promise is the one that `hypercall` asks for.
        unsafe { hypercall(number, arguments) }
    }
}

impl RawCpu for Xen {
    unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
        match how {
            RawWrite::Store1 => tried!("mov [rdi], al", address, value).map(|_| 0),
            RawWrite::Store2 => tried!("mov [rdi], ax", address, value).map(|_| 0),
            RawWrite::Store4 => tried!("mov [rdi], eax", address, value).map(|_| 0),
            RawWrite::Store8 => tried!("mov [rdi], rax", address, value).map(|_| 0),
            RawWrite::Exchange => tried!("xchg [rdi], rax", address, value),
            RawWrite::Or => tried!("lock or [rdi], rax", address, value).map(|_| 0),
            // SAFETY: the caller's promise is handed on.
            RawWrite::CompareExchange16 => unsafe { try_exchange16(address, value) },
        }
    }

    unsafe fn load_selector(&self, selector: u16) -> bool {
        // Nothing uses es in 64-bit mode, and nothing is written.
        tried!("mov es, edi", u64::from(selector), 0).is_some()
    }
}
