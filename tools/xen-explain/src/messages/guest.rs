//! What a Linux guest says when Xen refuses: multicall warnings, call traces, its own end.

use super::{Message, Role, any};

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "early-boot",
        role: Role::GuestBoot,
        meaning: "the guest kernel is setting up its memory",
        causes: &[],
        wordings: &[
            any("mapping kernel into physical memory"),
            any("about to get started..."),
            any("Xen: setup ISA identity maps"),
        ],
    },
    Message {
        name: "multicall-failed",
        role: Role::GuestTrouble,
        meaning: "entries of a multicall were refused; Linux goes on as if they had worked",
        causes: &[],
        wordings: &[
            any("{n} multicall(s) failed: cpu {vcpu}"),
            any(" multicall(s) failed: cpu {vcpu}"),
        ],
    },
    Message {
        name: "multicall-entry",
        role: Role::GuestCall,
        meaning: "the refused entry",
        causes: &[],
        wordings: &[
            any(": op={n} arg=[{x}] result={errno}"),
            any(": op={n} result={errno} caller={word}"),
        ],
    },
    Message {
        name: "warning",
        role: Role::GuestTrouble,
        meaning: "a warning of the guest kernel",
        causes: &[],
        wordings: &[any("WARNING: at {word}"), any("WARNING: CPU: {n} PID: ")],
    },
    Message {
        name: "bug",
        role: Role::GuestTrouble,
        meaning: "the guest kernel stopped itself",
        causes: &[],
        wordings: &[
            any("kernel BUG at {word}"),
            any("BUG: unable to handle "),
            any("BUG: Bad page "),
            any("Kernel panic - not syncing"),
            any("general protection fault"),
        ],
    },
    Message {
        name: "trace",
        role: Role::GuestFrame,
        meaning: "a function in a call trace",
        causes: &[],
        wordings: &[any("{word}+0x{x}/0x")],
    },
];
