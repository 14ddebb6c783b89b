//! Stacks, each above a page that nothing maps once [`guard`] has run: what overflows one faults,
//! and changes nothing of anyone's. Exceptions come on the stack that they interrupt, for this
//! kernel has no user mode.

use core::arch::asm;
use core::cell::UnsafeCell;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::xen::{Xen, try_load};
use hypercall::{Call, GuestVa, Hypercalls as _, PAGE_SIZE, Pfn, Pte, Request, VaFlush, VaMapping};

use super::boot;

/// A stack of so many bytes, a multiple of a page.
#[repr(C, align(4096))]
pub(super) struct Stack<const BYTES: usize> {
    guard: [u8; PAGE_SIZE],
    bytes: UnsafeCell<[u8; BYTES]>,
}

// SAFETY: only the vCPU that it is the stack of touches it.
unsafe impl<const BYTES: usize> Sync for Stack<BYTES> {}

impl<const BYTES: usize> Stack<BYTES> {
    pub(super) const fn new() -> Self {
        Self { guard: [0; PAGE_SIZE], bytes: UnsafeCell::new([0; BYTES]) }
    }

    /// The first byte after it, where it begins.
    pub(super) fn top(&self) -> u64 {
        self.bytes.get().addr() as u64 + BYTES as u64
    }

    /// The address of the page below it.
    fn guard(&self) -> u64 {
        self.guard.as_ptr().addr() as u64
    }
}

/// The stack of the first vCPU, from its first instruction on.
pub(super) static FIRST: Stack<{ 128 * 1024 }> = Stack::new();
/// The stack of the second one.
pub(super) static SECOND: Stack<{ 64 * 1024 }> = Stack::new();

/// Takes the pages below the stacks out of the kernel's mapping, and with it out of the direct map,
/// which has the same entries. Their pfns.
///
/// # Errors
/// A sentence.
pub(super) fn guard(xen: &Xen) -> Result<Vec<Pfn>, String> {
    let mut pfns = Vec::new();
    for address in [FIRST.guard(), SECOND.guard()] {
        let va = GuestVa::new(address).map_err(|error| format!("a stack: {error}"))?;
        pfns.extend(boot::image_pfn(va));
        let mapping = VaMapping { va: va.addr(), pte: Pte::ABSENT, flush: VaFlush::PageAll };
        let mut calls = [Call::new(Request::VaMapping(mapping))];
        // SAFETY: nothing but the stack's overflow is ever in the page (I-2).
        let issued = unsafe { xen.issue(&mut calls) };
        issued
            .and_then(|()| calls[0].result())
            .map_err(|error| format!("the page below the stack at {va}: {error}"))?;
        if try_load(va.addr()).is_some() {
            return Err(format!("the page below the stack at {va} is there still"));
        }
    }
    Ok(pfns)
}

/// Pushes a word below the end of the stack, as `fault overflow` asks. Xen pushes the exception on
/// the same stack, fails, and ends the guest.
pub(super) fn overflow_on_purpose() -> ! {
    let end = FIRST.guard() + PAGE_SIZE as u64;
    // SAFETY: none, on purpose: the push faults. If it does not, the stack is as it was.
    unsafe {
        asm!(
            "mov {old}, rsp",
            "mov rsp, {end}",
            "push {end}",
            "mov rsp, {old}",
            old = out(reg) _,
            end = in(reg) end,
        );
    }
    panic!("an overflow of the stack went unnoticed")
}
