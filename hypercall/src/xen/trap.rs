//! The trampolines: how a number and up to five words get into Xen.
//!
//! A 64-bit PV guest calls Xen with a bare `syscall`: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10` and
//! `r8`, result in `rax`; `rcx` and `r11` are lost to the instruction (public/arch-x86/xen-x86_64.h). A hypercall
//! page holds nothing else, so there is none. A debug build of Xen overwrites the argument registers, so each
//! counts as lost. An interrupted hypercall is run again from its `syscall`, in between the guest may take an
//! event upcall on its own stack: hence no `nostack`.

use core::arch::{asm, global_asm};

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

#[repr(C)]
struct Probe {
    value: u64,
    faulted: u64,
}

// Both are defined above; the first follows the C calling convention and returns its pair in rax:rdx.
unsafe extern "C" {
    fn hypercall_probe_load(address: u64) -> Probe;
    static hypercall_probe_fixup: u8;
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
    let fixup = &raw const hypercall_probe_fixup as u64;
    (rip == load).then_some(fixup)
}
