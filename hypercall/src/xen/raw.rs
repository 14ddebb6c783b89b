//! The CPU's other ways to write, each able to fault.

use core::arch::global_asm;

use super::Xen;
use super::trap::{Tried, fixup_at, hypercall};
use crate::raw::{RawCpu, RawHypercalls, RawWrite};

// Each of these may fault at the label `..._at`; the guest's page-fault handler then continues at
// the failure exit.
global_asm!(
    ".global hypercall_raw_store1, hypercall_raw_store2, hypercall_raw_store4",
    ".global hypercall_raw_store8",
    ".global hypercall_raw_exchange, hypercall_raw_exchange_at, hypercall_raw_or",
    ".global hypercall_raw_exchange16, hypercall_raw_exchange16_at",
    ".global hypercall_raw_selector, hypercall_raw_failed, hypercall_raw_failed16",
    "hypercall_raw_store1:",
    "mov [rdi], sil",
    "jmp hypercall_raw_done",
    "hypercall_raw_store2:",
    "mov [rdi], si",
    "jmp hypercall_raw_done",
    "hypercall_raw_store4:",
    "mov [rdi], esi",
    "jmp hypercall_raw_done",
    "hypercall_raw_store8:",
    "mov [rdi], rsi",
    "jmp hypercall_raw_done",
    "hypercall_raw_or:",
    "lock or [rdi], rsi",
    "jmp hypercall_raw_done",
    "hypercall_raw_selector:",
    "mov es, edi",
    "hypercall_raw_done:",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    "hypercall_raw_exchange:",
    "mov rax, rsi",
    "hypercall_raw_exchange_at:",
    "xchg [rdi], rax",
    "xor edx, edx",
    "ret",
    "hypercall_raw_exchange16:",
    "mov r8, rbx",
    "mov rbx, rsi",
    "xor ecx, ecx",
    "xor eax, eax",
    "xor edx, edx",
    "hypercall_raw_exchange16_at:",
    "lock cmpxchg16b [rdi]",
    "mov rbx, r8",
    "xor edx, edx",
    "ret",
    "hypercall_raw_failed16:",
    "mov rbx, r8",
    "hypercall_raw_failed:",
    "mov edx, 1",
    "ret",
);

// Defined above; they follow the C calling convention and return their pair in rax:rdx.
unsafe extern "C" {
    fn hypercall_raw_store1(address: u64, value: u64) -> Tried;
    fn hypercall_raw_store2(address: u64, value: u64) -> Tried;
    fn hypercall_raw_store4(address: u64, value: u64) -> Tried;
    fn hypercall_raw_store8(address: u64, value: u64) -> Tried;
    fn hypercall_raw_exchange(address: u64, value: u64) -> Tried;
    fn hypercall_raw_or(address: u64, value: u64) -> Tried;
    fn hypercall_raw_exchange16(address: u64, value: u64) -> Tried;
    fn hypercall_raw_selector(selector: u64) -> Tried;
    static hypercall_raw_exchange_at: u8;
    static hypercall_raw_exchange16_at: u8;
    static hypercall_raw_failed: u8;
    static hypercall_raw_failed16: u8;
}

type Writer = unsafe extern "C" fn(u64, u64) -> Tried;

/// Returns where to continue after a page fault at `rip`, if a fault is to be expected there. A
/// guest's page-fault handler must ask before it reports the fault.
#[must_use]
pub fn fault_fixup(rip: u64) -> Option<u64> {
    fixup_at(rip).or_else(|| fixup(rip))
}

/// Returns where to continue after a page fault at `rip`, if it is one of the instructions above.
fn fixup(rip: u64) -> Option<u64> {
    let plain: [Writer; 5] = [
        hypercall_raw_store1,
        hypercall_raw_store2,
        hypercall_raw_store4,
        hypercall_raw_store8,
        hypercall_raw_or,
    ];
    let at_start = plain.iter().any(|writer| *writer as *const () as u64 == rip)
        || rip == hypercall_raw_selector as *const () as u64
        || rip == &raw const hypercall_raw_exchange_at as u64;
    if at_start {
        Some(&raw const hypercall_raw_failed as u64)
    } else if rip == &raw const hypercall_raw_exchange16_at as u64 {
        Some(&raw const hypercall_raw_failed16 as u64)
    } else {
        None
    }
}

impl RawHypercalls for Xen {
    unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64 {
        // SAFETY: the caller's promise is the one that `hypercall` asks for.
        unsafe { hypercall(number, arguments) }
    }
}

impl RawCpu for Xen {
    unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
        let writer: Writer = match how {
            RawWrite::Store1 => hypercall_raw_store1,
            RawWrite::Store2 => hypercall_raw_store2,
            RawWrite::Store4 => hypercall_raw_store4,
            RawWrite::Store8 => hypercall_raw_store8,
            RawWrite::Exchange => hypercall_raw_exchange,
            RawWrite::Or => hypercall_raw_or,
            RawWrite::CompareExchange16 => hypercall_raw_exchange16,
        };
        // SAFETY: the caller owns what is written, and a fault is turned into `failed`.
        let tried = unsafe { writer(address, value) };
        (tried.failed == 0).then_some(tried.value)
    }

    unsafe fn load_selector(&self, selector: u16) -> bool {
        // SAFETY: nothing uses es in 64-bit mode, and a fault is turned into `failed`.
        let tried = unsafe { hypercall_raw_selector(u64::from(selector)) };
        tried.failed == 0
    }
}
