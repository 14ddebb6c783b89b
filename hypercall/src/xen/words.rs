//! Reads and writes of memory that may not be there: a frame of the guest's has no memory while a
//! balloon has it, and a page of the direct mapping is read-only while it is a table.
//!
//! Each instruction that may fault notes where to go on then (`fixup!`), so nothing is spent on it
//! as long as nothing faults. All accesses are volatile.

use core::arch::asm;

use x86_64::VirtAddr;

use super::trap::{fixup, try_load};
use crate::frame::PAGE_SIZE;
use crate::pte::Pte;

/// What a read that faulted leaves, and a word of memory hardly ever is. As an entry it is not
/// present.
pub(super) const NOTHING: u64 = u64::MAX - 1;

/// Reads a word at an aligned address; `None` if there is none.
#[inline(always)]
pub(super) fn read(at: *const u64) -> Option<u64> {
    match read_or_nothing(at) {
        NOTHING => read_again(at),
        value => Some(value),
    }
}

/// Reads a word that may be [`NOTHING`] for once.
#[cold]
#[inline(never)]
pub(super) fn read_again(at: *const u64) -> Option<u64> {
    try_load(VirtAddr::from_ptr(at))
}

/// Reads a word at an aligned address: [`NOTHING`] if there is none, and perhaps if there is one.
#[inline(always)]
pub(super) fn read_or_nothing(at: *const u64) -> u64 {
    let value: u64;
    // SAFETY: a load changes nothing; a fault in it goes on at 4, which stands outside the path.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{at}]",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {value}, -2",
            "jmp 3b",
            ".popsection",
            fixup!("2b", "3b", "4b"),
            value = out(reg) value,
            at = in(reg) at,
            options(nostack, preserves_flags, readonly),
        );
    }
    value
}

/// All bits that are set in any of eight words; all, if one of them is not there.
#[inline(always)]
pub(super) fn any_of_eight(at: *const u64) -> u64 {
    let any: u64;
    // SAFETY: as in `read`.
    unsafe {
        asm!(
            "2:",
            "mov {any}, [{at}]",
            "or {any}, [{at} + 8]",
            "or {any}, [{at} + 16]",
            "or {any}, [{at} + 24]",
            "or {any}, [{at} + 32]",
            "or {any}, [{at} + 40]",
            "or {any}, [{at} + 48]",
            "or {any}, [{at} + 56]",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {any}, -1",
            "jmp 3b",
            ".popsection",
            fixup!("2b", "3b", "4b"),
            any = out(reg) any,
            at = in(reg) at,
            options(nostack, readonly),
        );
    }
    any
}

/// Reads entries that follow one another; false if one of them is not there.
pub(super) fn read_entries(from: *const u64, into: &mut [Pte]) -> bool {
    let (eights, rest) = into.as_chunks_mut::<8>();
    let read = eights.as_flattened().len();
    if read > 0 {
        let mut left = -isize::try_from(size_of_val(eights)).unwrap_or_default();
        // SAFETY: only `eights` is written, from its start to its end; a fault in a load goes on
        // behind the loop, with what is left.
        unsafe {
            asm!(
                "2:",
                "mov {w0}, [{from} + {left}]",
                "mov {w1}, [{from} + {left} + 8]",
                "mov {w2}, [{from} + {left} + 16]",
                "mov {w3}, [{from} + {left} + 24]",
                "mov {w4}, [{from} + {left} + 32]",
                "mov {w5}, [{from} + {left} + 40]",
                "mov {w6}, [{from} + {left} + 48]",
                "mov {w7}, [{from} + {left} + 56]",
                "3:",
                "mov [{into} + {left}], {w0}",
                "mov [{into} + {left} + 8], {w1}",
                "mov [{into} + {left} + 16], {w2}",
                "mov [{into} + {left} + 24], {w3}",
                "mov [{into} + {left} + 32], {w4}",
                "mov [{into} + {left} + 40], {w5}",
                "mov [{into} + {left} + 48], {w6}",
                "mov [{into} + {left} + 56], {w7}",
                "add {left}, 64",
                "jnz 2b",
                "4:",
                fixup!("2b", "3b", "4b"),
                w0 = out(reg) _,
                w1 = out(reg) _,
                w2 = out(reg) _,
                w3 = out(reg) _,
                w4 = out(reg) _,
                w5 = out(reg) _,
                w6 = out(reg) _,
                w7 = out(reg) _,
                from = in(reg) from.wrapping_add(read),
                into = in(reg) eights.as_mut_ptr_range().end,
                left = inout(reg) left,
                options(nostack),
            );
        }
        if left != 0 {
            return false;
        }
    }
    let words = (0..).map(|k| self::read(from.wrapping_add(read + k)));
    rest.iter_mut().zip(words).all(|(pte, word)| match word {
        Some(word) => {
            *pte = Pte::from_raw(word);
            true
        }
        None => false,
    })
}

/// Writes a word at an aligned address; false if that is not allowed.
///
/// # Safety
/// What is written there is the caller's (I-1), if it can be written.
#[inline(always)]
pub(super) unsafe fn write(at: *mut u64, value: u64) -> bool {
    // SAFETY: the caller's promise; a fault goes on at the label.
    unsafe {
        asm!(
            "2:",
            "mov [{at}], {value}",
            "3:",
            fixup!("2b", "3b", "{failed}"),
            at = in(reg) at,
            value = in(reg) value,
            failed = label { return false; },
            options(nostack, preserves_flags),
        );
    }
    true
}

/// Copies `head` bytes, then whole words, then the bytes that remain of `len`; false if one of them
/// is not there or may not be written. Where `head` leads to a multiple of eight, each word is
/// moved at once: one instruction, and a step for a word.
///
/// # Safety
/// What is written is the caller's (I-1), if it can be written.
pub(super) unsafe fn copy(into: *mut u8, from: *const u8, len: usize, head: usize) -> bool {
    let rest = len - head;
    let mut left = head;
    // SAFETY: the caller's promise; a fault goes on behind the last copy, with what is left of the
    // one that faulted.
    unsafe {
        asm!(
            "2:",
            "rep movsb",
            "mov rcx, {words}",
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            "3:",
            fixup!("2b", "3b", "3b"),
            words = in(reg) rest / 8,
            tail = in(reg) rest % 8,
            inout("rcx") left,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
    left == 0
}

/// Fills a page with zeroes; false if that is not allowed.
///
/// # Safety
/// As for [`write`].
pub(super) unsafe fn clear_page(page: *mut u8) -> bool {
    let mut left = PAGE_SIZE / 8;
    // SAFETY: the caller's promise; a fault goes on behind it, with what is left. One instruction,
    // and the fewest steps that a page can be cleared in without vector registers.
    unsafe {
        asm!(
            "2:",
            "rep stosq",
            "3:",
            fixup!("2b", "3b", "3b"),
            inout("rcx") left,
            inout("rdi") page => _,
            in("rax") 0,
            options(nostack, preserves_flags),
        );
    }
    left == 0
}
