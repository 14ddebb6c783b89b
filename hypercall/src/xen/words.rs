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

/// What a read that faulted leaves, and a word of memory hardly ever is.
const NOTHING: u64 = u64::MAX;

/// Reads a word at an aligned address; `None` if there is none.
#[inline]
pub(super) fn read(at: *const u64) -> Option<u64> {
    let value: u64;
    // SAFETY: a load changes nothing; a fault in it goes on at 4, which stands outside the path.
    unsafe {
        asm!(
            "2:",
            "mov {value}, [{at}]",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {value}, -1",
            "jmp 3b",
            ".popsection",
            fixup!("2b", "4b"),
            value = out(reg) value,
            at = in(reg) at,
            options(nostack, preserves_flags, readonly),
        );
    }
    if value == NOTHING { try_load(VirtAddr::from_ptr(at)) } else { Some(value) }
}

/// All bits that are set in any of eight words; all, if one of them is not there.
#[inline]
pub(super) fn any_of_eight(at: *const u64) -> u64 {
    let any: u64;
    // SAFETY: as in `read`.
    unsafe {
        asm!(
            "2:",
            "mov {any}, [{at}]",
            fixup!("2b", "4f"),
            ".irp offset, 8, 16, 24, 32, 40, 48, 56",
            "2:",
            "or {any}, [{at} + \\offset]",
            fixup!("2b", "4f"),
            ".endr",
            "3:",
            ".pushsection .text.hypercall_fixups, \"ax\", @progbits",
            "4:",
            "mov {any}, -1",
            "jmp 3b",
            ".popsection",
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
                "3:",
                ".irp offset, 0, 8, 16, 24, 32, 40, 48, 56",
                "2:",
                "mov {word}, [{from} + {left} + \\offset]",
                "mov [{into} + {left} + \\offset], {word}",
                fixup!("2b", "4f"),
                ".endr",
                "add {left}, 64",
                "jnz 3b",
                "4:",
                word = out(reg) _,
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
#[inline]
pub(super) unsafe fn write(at: *mut u64, value: u64) -> bool {
    // SAFETY: the caller's promise; a fault goes on at the label.
    unsafe {
        asm!(
            "2:",
            "mov [{at}], {value}",
            fixup!("2b", "{failed}"),
            at = in(reg) at,
            value = in(reg) value,
            failed = label { return false; },
            options(nostack, preserves_flags),
        );
    }
    true
}

/// Writes entries that follow one another; false if that is not allowed, then perhaps some of them
/// are written.
///
/// # Safety
/// As for [`write`].
pub(super) unsafe fn write_entries(into: *mut u64, from: &[Pte]) -> bool {
    let (eights, rest) = from.as_chunks::<8>();
    let written = eights.as_flattened().len();
    if written > 0 {
        let mut left = -isize::try_from(size_of_val(eights)).unwrap_or_default();
        // SAFETY: the caller's promise; only `eights` is read. A fault in a store goes on behind
        // the loop, with what is left.
        unsafe {
            asm!(
                "3:",
                ".irp offset, 0, 8, 16, 24, 32, 40, 48, 56",
                "mov {word}, [{from} + {left} + \\offset]",
                "2:",
                "mov [{into} + {left} + \\offset], {word}",
                fixup!("2b", "4f"),
                ".endr",
                "add {left}, 64",
                "jnz 3b",
                "4:",
                word = out(reg) _,
                from = in(reg) eights.as_ptr_range().end,
                into = in(reg) into.wrapping_add(written),
                left = inout(reg) left,
                options(nostack),
            );
        }
        if left != 0 {
            return false;
        }
    }
    rest.iter().enumerate().all(|(k, pte)| {
        // SAFETY: the caller's promise is handed on.
        unsafe { write(into.wrapping_add(written + k), pte.raw()) }
    })
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
            "3:",
            "rep movsq",
            "mov rcx, {tail}",
            "4:",
            "rep movsb",
            "5:",
            fixup!("2b", "5b"),
            fixup!("3b", "5b"),
            fixup!("4b", "5b"),
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
            fixup!("2b", "3b"),
            inout("rcx") left,
            inout("rdi") page => _,
            in("rax") 0,
            options(nostack, preserves_flags),
        );
    }
    left == 0
}
