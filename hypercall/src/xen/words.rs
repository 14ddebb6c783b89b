//! Reads and writes of memory that may be missing: one of the guest's frames has no memory while
//! the balloon has it, and a page of the direct mapping is read-only while it is a table.
//!
//! Each instruction that may fault records where to continue (`fixup!`), so it costs nothing unless
//! it faults. All accesses are volatile.

use core::arch::asm;

use x86_64::VirtAddr;

use super::trap::{fixup, try_load};
use crate::frame::PAGE_SIZE;
use crate::pte::Pte;

/// What a read that faulted returns, and memory hardly ever holds. As an entry it is not present.
pub(super) const NOTHING: u64 = u64::MAX - 1;

/// Reads the word at `index` from an aligned address. Returns `None` if there is no memory.
#[inline(always)]
pub(super) fn read(start: *const u64, index: usize) -> Option<u64> {
    match read_or_nothing(start, index) {
        NOTHING => read_again(start, index),
        value => Some(value),
    }
}

/// Reads again a word that may really hold [`NOTHING`].
#[cold]
#[inline(never)]
pub(super) fn read_again(start: *const u64, index: usize) -> Option<u64> {
    try_load(VirtAddr::from_ptr(start.wrapping_add(index)))
}

/// Reads the word at `index` from an aligned address. Returns [`NOTHING`] if there is no memory,
/// and perhaps if there is.
#[inline(always)]
pub(super) fn read_or_nothing(start: *const u64, index: usize) -> u64 {
    let value: u64;
    // SAFETY: a load changes nothing; a fault in it goes on at 4, which stands outside the path.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{start} + {index} * 8]",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {value}, -2",
            "jmp 3b",
            ".popsection",
            fixup!("2b", "3b", "4b"),
            value = out(reg) value,
            start = in(reg) start,
            index = in(reg) index,
            options(nostack, preserves_flags, readonly),
        );
    }
    value
}

/// Returns all bits that are set in any of eight words from `index` on; all bits, if one of the
/// words is missing.
#[inline(always)]
pub(super) fn any_of_eight(start: *const u64, index: usize) -> u64 {
    let any: u64;
    // SAFETY: as in `read`.
    unsafe {
        asm!(
            "2:",
            "mov {any}, [{start} + {index} * 8]",
            "or {any}, [{start} + {index} * 8 + 8]",
            "or {any}, [{start} + {index} * 8 + 16]",
            "or {any}, [{start} + {index} * 8 + 24]",
            "or {any}, [{start} + {index} * 8 + 32]",
            "or {any}, [{start} + {index} * 8 + 40]",
            "or {any}, [{start} + {index} * 8 + 48]",
            "or {any}, [{start} + {index} * 8 + 56]",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {any}, -1",
            "jmp 3b",
            ".popsection",
            fixup!("2b", "3b", "4b"),
            any = out(reg) any,
            start = in(reg) start,
            index = in(reg) index,
            options(nostack, readonly),
        );
    }
    any
}

/// Reads consecutive entries. Returns false if one of them is missing.
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
    let words = (0..).map(|k| self::read(from, read + k));
    rest.iter_mut().zip(words).all(|(pte, word)| match word {
        Some(word) => {
            *pte = Pte::from_raw(word);
            true
        }
        None => false,
    })
}

/// Writes the word at `index` from an aligned address. Returns false if that is not allowed.
///
/// # Safety
/// What is written there is the caller's (I-1), if it can be written.
#[inline(always)]
pub(super) unsafe fn write(start: *mut u64, index: usize, value: u64) -> bool {
    // SAFETY: the caller's promise; a fault goes on at the label.
    unsafe {
        asm!(
            "2:",
            "mov [{start} + {index} * 8], {value}",
            "3:",
            fixup!("2b", "3b", "{failed}"),
            start = in(reg) start,
            index = in(reg) index,
            value = in(reg) value,
            failed = label { return false; },
            options(nostack, preserves_flags),
        );
    }
    true
}

/// Copies `head` bytes, then whole words, then the rest of `len` bytes. Returns false if one of
/// them is missing or may not be written. Where `head` leads to a multiple of eight, each word is
/// moved at once: one instruction, and one step for each word.
///
/// # Safety
/// What is written is the caller's (I-1), if it can be written.
pub(super) unsafe fn copy(into: *mut u8, from: *const u8, len: usize, head: usize) -> bool {
    let rest = len - head;
    let mut left = head;
    // SAFETY: the caller's promise; a fault goes on after the last copy, with what is left of the
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

/// Fills a page with zeroes. Returns false if that is not allowed.
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
