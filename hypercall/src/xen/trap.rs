//! The trampolines, which carry a number and up to five words into Xen.
//!
//! A 64-bit PV guest calls Xen with a bare `syscall`: number in `rax`, arguments in `rdi`, `rsi`,
//! `rdx`, `r10` and `r8`, result in `rax`; the instruction clobbers `rcx` and `r11`
//! (public/arch-x86/xen-x86_64.h). A hypercall page holds nothing else, so none is used. A debug
//! build of Xen overwrites the argument registers, so all are clobbered. Xen restarts an
//! interrupted hypercall from its `syscall`. In between the guest may take an event upcall on its
//! own stack: hence no `nostack`.

use core::arch::asm;

use x86_64::VirtAddr;

/// Makes hypercall `number` with five arguments.
///
/// # Safety
/// The caller's ownership must allow whatever the hypercall does to memory, and every argument that
/// is an address must point to what this hypercall expects there.
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

/// Records, in a section of its own, instructions that may fault and where to continue then: the
/// first of them, the first after them, and the continuation. These are words, aligned as
/// [`fault_fixup`] reads them; the unikernel's kernel.ld asserts that.
macro_rules! fixup {
    ($first:literal, $end:literal, $go_on:literal) => {
        concat!(
            ".pushsection hypercall_fixups, \"aR\", @progbits\n",
            ".balign 8\n",
            ".quad ",
            $first,
            ", ",
            $end,
            ", ",
            $go_on,
            "\n",
            ".popsection",
        )
    };
}
pub(super) use fixup;

// The linker's bounds of the section that `fixup!` fills.
unsafe extern "C" {
    #[link_name = "__start_hypercall_fixups"]
    static FIXUPS_START: [u64; 3];
    #[link_name = "__stop_hypercall_fixups"]
    static FIXUPS_END: [u64; 3];
}

/// Reads 8 bytes that may not be mapped. Returns `otherwise` if the read faulted and the guest's
/// page-fault handler consulted [`fault_fixup`].
#[inline]
#[must_use]
pub(crate) fn load_or(address: u64, otherwise: u64) -> u64 {
    let mut value = otherwise;
    // SAFETY: a load changes nothing; a fault in it goes on behind it, with the register as it was.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{address}]",
            "3:",
            fixup!("2b", "3b", "3b"),
            value = inout(reg) value,
            address = in(reg) address,
            options(nostack, preserves_flags, readonly),
        );
    }
    value
}

/// Reads 8 bytes that may not be mapped. Returns `None` if the read faulted and the guest's
/// page-fault handler consulted [`fault_fixup`].
#[must_use]
pub fn try_load(va: VirtAddr) -> Option<u64> {
    let value: u64;
    let mut loaded = 0u64;
    // SAFETY: as in `load_or`; a fault skips what notes that there was none.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{address}]",
            "3:",
            "mov {loaded:e}, 1",
            "4:",
            fixup!("2b", "3b", "4b"),
            value = out(reg) value,
            loaded = inout(reg) loaded,
            address = in(reg) va.as_u64(),
            options(nostack, preserves_flags, readonly),
        );
    }
    (loaded == 1).then_some(value)
}

/// Writes 8 bytes where that may not be allowed. Returns false if the write faulted and the guest's
/// page-fault handler consulted [`fault_fixup`]. Xen emulates a write to a live
/// L1 table, and lets it fault if it refuses the entry.
///
/// # Safety
/// If the address is mapped writable, the memory there is the caller's, and not a Rust object.
#[must_use]
pub unsafe fn try_store(va: VirtAddr, value: u64) -> bool {
    // SAFETY: the caller owns what is written; a fault goes on at the label.
    unsafe {
        asm!(
            "2:",
            "mov [{address}], {value}",
            "3:",
            fixup!("2b", "3b", "{failed}"),
            address = in(reg) va.as_u64(),
            value = in(reg) value,
            failed = label { return false; },
            options(nostack, preserves_flags),
        );
    }
    true
}

/// Compares and exchanges 8 bytes as [`try_store`] writes them. Returns `None` if it faulted.
///
/// # Safety
/// As for [`try_store`].
#[must_use]
pub unsafe fn try_compare_exchange(va: VirtAddr, current: u64, new: u64) -> Option<u64> {
    let seen: u64;
    let mut stored = 0u64;
    // SAFETY: the caller owns what is written; a fault skips what notes that there was none.
    unsafe {
        asm!(
            "2:",
            "lock cmpxchg [{address}], {new}",
            "3:",
            "mov {stored:e}, 1",
            "4:",
            fixup!("2b", "3b", "4b"),
            stored = inout(reg) stored,
            address = in(reg) va.as_u64(),
            new = in(reg) new,
            inout("rax") current => seen,
            options(nostack),
        );
    }
    (stored == 1).then_some(seen)
}

/// Returns where to continue after a page fault at `rip`, if a fault is to be expected there. A
/// guest's page-fault handler must ask before it reports the fault.
#[must_use]
pub fn fault_fixup(rip: u64) -> Option<u64> {
    let (start, end) = (&raw const FIXUPS_START, &raw const FIXUPS_END);
    let count = (end as usize - start as usize) / size_of::<[u64; 3]>();
    // SAFETY: the linker's bounds of a section that holds nothing but aligned triples of words, and
    // never changes.
    let fixups = unsafe { core::slice::from_raw_parts(start, count) };
    let found = fixups.iter().find(|[first, end, _]| (*first..*end).contains(&rip));
    found.map(|[_, _, go_on]| *go_on)
}
