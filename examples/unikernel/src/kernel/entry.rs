//! ELF notes and the first instructions.
//!
//! The notes are what Xen's builder and libxl read (public/elfnote.h): a kernel for `xen-3.0` that
//! any PV loader may load, linked at VIRT_BASE. There is no HYPERCALL_PAGE: hypercalls are made by
//! a bare `syscall`. One note, INIT_P2M, is not Xen's as it is built: `cargo xtask run --init-p2m`
//! signs it over, and then the builder maps the P2M list there. At entry `rsi` points to
//! `start_info`, events are masked, and the builder's page tables map the image.

use core::arch::global_asm;

use super::stack;

global_asm!(
    ".macro note type, value:vararg",
    "    note_of Xen, \\type, \\value",
    ".endm",
    ".macro note_of owner, type, value:vararg",
    "    .balign 4",
    "    .long 4, 2f - 1f, \\type",
    "    .asciz \"\\owner\"",
    "1:  \\value",
    "2:  .balign 4",
    ".endm",
    ".pushsection .note.Xen, \"a\", @note",
    "note 6, .asciz \"pvmmu\"",               // GUEST_OS
    "note 8, .asciz \"generic\"",             // LOADER
    "note 5, .asciz \"xen-3.0\"",             // XEN_VERSION
    "note 3, .quad 0xffffffff80000000",       // VIRT_BASE
    "note 4, .quad 0",                        // PADDR_OFFSET
    "note 1, .quad kernel_entry",             // ENTRY
    "note 10, .asciz \"writable_page_tables|pae_pgdir_above_4gb\"", // FEATURES: what it can do with
    "note 14, .long 1",                       // SUSPEND_CANCEL: a suspend may be taken back
    "note_of off, 15, .quad 0xffffb00000000000", // INIT_P2M
    ".popsection",
    ".pushsection .text.kernel_entry, \"ax\", @progbits",
    ".global kernel_entry",
    ".type kernel_entry, @function",
    "kernel_entry:",
    "    cld",
    "    lea rsp, [rip + {stack} + {stack_bytes}]",
    "    xor ebp, ebp",
    "    mov rdi, rsi",
    "    call {main}",
    "    ud2",
    ".size kernel_entry, . - kernel_entry",
    ".popsection",
    stack = sym stack::FIRST,
    stack_bytes = const size_of_val(&stack::FIRST),
    main = sym super::kernel_main,
);
