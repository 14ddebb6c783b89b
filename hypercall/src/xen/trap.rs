//! The trampolines: how a number and up to five words get into Xen.
//!
//! A 64-bit PV guest calls Xen with a bare `syscall`: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10` and
//! `r8`, result in `rax`; `rcx` and `r11` are lost to the instruction (public/arch-x86/xen-x86_64.h). A hypercall
//! page holds nothing else, so there is none. A debug build of Xen overwrites the argument registers, so each
//! counts as lost. An interrupted hypercall is run again from its `syscall`, in between the guest may take an
//! event upcall on its own stack: hence no `nostack`.

use core::arch::{asm, global_asm};

use super::Xen;
use crate::emulated::{EmulatedWrites, Faulted, Width};
use crate::va::GuestVa;

/// Calls hypercall `number` with five arguments.
///
/// # Safety
/// Whatever the hypercall does to memory must be allowed by its caller's ownership, and every argument that is
/// an address must point to what this hypercall expects there.
#[inline]
pub unsafe fn hypercall(number: u32, arguments: [u64; 5]) -> i64 {
    let [a1, a2, a3, a4, a5] = arguments;
    let result: i64;
    // SAFETY: all registers that Xen may change are declared; memory is assumed changed by default.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") u64::from(number) => result,
            inlateout("rdi") a1 => _,
            inlateout("rsi") a2 => _,
            inlateout("rdx") a3 => _,
            inlateout("r10") a4 => _,
            inlateout("r8") a5 => _,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

// One load that may fault. The guest's page-fault handler asks `fault_fixup` whether it may go on.
global_asm!(
    ".global hypercall_probe_load",
    ".type hypercall_probe_load, @function",
    "hypercall_probe_load:",
    "mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    "hypercall_probe_fixup:",
    "mov edx, 1",
    "ret",
    ".global hypercall_probe_fixup",
    ".size hypercall_probe_load, . - hypercall_probe_load",
);

// Stores that may fault: each answers 0, or 1 from its fixup.
global_asm!(
    ".macro hypercall_probe_store name, source",
    ".global hypercall_probe_\\name",
    "hypercall_probe_\\name:",
    "mov [rdi], \\source",
    "xor eax, eax",
    "ret",
    ".endm",
    "hypercall_probe_store store1, sil",
    "hypercall_probe_store store2, si",
    "hypercall_probe_store store4, esi",
    "hypercall_probe_store store8, rsi",
    ".purgem hypercall_probe_store",
    ".global hypercall_probe_store_fixup",
    "hypercall_probe_store_fixup:",
    "mov eax, 1",
    "ret",
    // What was there in rax, whether it faulted in rdx.
    ".global hypercall_probe_exchange",
    ".global hypercall_probe_exchange_faults",
    "hypercall_probe_exchange:",
    "mov rax, rsi",
    "mov rcx, rdx",
    "hypercall_probe_exchange_faults:",
    "lock cmpxchg [rdi], rcx",
    "mov edx, 0",
    "ret",
);

#[repr(C)]
struct Probe {
    value: u64,
    faulted: u64,
}

// Both are defined above; the first follows the C calling convention and returns its pair in rax:rdx.
unsafe extern "C" {
    fn hypercall_probe_load(address: u64) -> Probe;
    static hypercall_probe_fixup: u8;
    fn hypercall_probe_store1(address: u64, value: u64) -> u32;
    fn hypercall_probe_store2(address: u64, value: u64) -> u32;
    fn hypercall_probe_store4(address: u64, value: u64) -> u32;
    fn hypercall_probe_store8(address: u64, value: u64) -> u32;
    static hypercall_probe_store_fixup: u8;
    fn hypercall_probe_exchange(address: u64, expected: u64, new: u64) -> Probe;
    static hypercall_probe_exchange_faults: u8;
}

/// Reads 8 bytes that may not be mapped; `None` if the read faulted and the guest's page-fault handler
/// consulted [`fault_fixup`].
pub(super) fn probe(address: u64) -> Option<u64> {
    // SAFETY: the load writes nothing, and a fault in it is turned into `faulted`.
    let probe = unsafe { hypercall_probe_load(address) };
    (probe.faulted == 0).then_some(probe.value)
}

/// Where to go on after a page fault at `rip`, if the fault was to be expected there. A guest's page-fault
/// handler must ask before it reports the fault.
#[must_use]
pub fn fault_fixup(rip: u64) -> Option<u64> {
    let load = hypercall_probe_load as *const () as u64;
    let exchange = &raw const hypercall_probe_exchange_faults as u64;
    if rip == load || rip == exchange {
        return Some(&raw const hypercall_probe_fixup as u64);
    }
    let stores = [
        hypercall_probe_store1 as *const () as u64,
        hypercall_probe_store2 as *const () as u64,
        hypercall_probe_store4 as *const () as u64,
        hypercall_probe_store8 as *const () as u64,
    ];
    stores.contains(&rip).then_some(&raw const hypercall_probe_store_fixup as u64)
}

impl EmulatedWrites for Xen {
    unsafe fn store(&self, va: GuestVa, value: u64, width: Width) -> Result<(), Faulted> {
        let store = match width {
            Width::Byte => hypercall_probe_store1,
            Width::Word => hypercall_probe_store2,
            Width::Double => hypercall_probe_store4,
            Width::Quad => hypercall_probe_store8,
        };
        // SAFETY: the caller vouches for what is there; a fault becomes an answer.
        let faulted = unsafe { store(va.raw(), value) };
        if faulted == 0 { Ok(()) } else { Err(Faulted) }
    }

    unsafe fn compare_exchange(
        &self,
        va: GuestVa,
        expected: u64,
        new: u64,
    ) -> Result<u64, Faulted> {
        // SAFETY: as above.
        let probe = unsafe { hypercall_probe_exchange(va.raw(), expected, new) };
        if probe.faulted == 0 { Ok(probe.value) } else { Err(Faulted) }
    }
}
