//! Grants, as far as page tables are concerned.

use hypercall::explain::Cause as C;

use super::{Message, Role, row};

const MISUSED: &[C] = &[C::GrantMisused];

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "grant-flags",
        role: Role::Refusal("mapping a grant"),
        meaning: "the flags of a grant request are none that Xen takes",
        causes: MISUSED,
        wordings: &[
            row(301, 409, "Bad flags in grant map op ({flags})."),
            row(410, 420, "Bad flags in grant map op: {flags}"),
        ],
    },
    Message {
        name: "grant-domain",
        role: Role::Refusal("mapping a grant"),
        meaning: "the granting domain does not exist, or not any more",
        causes: MISUSED,
        wordings: &[
            row(300, 420, "Could not find domain {owner}"),
            row(300, 409, "Bad domid {owner}."),
        ],
    },
    Message {
        name: "grant-reference",
        role: Role::Refusal("mapping a grant"),
        meaning: "there is no such grant reference",
        causes: MISUSED,
        wordings: &[
            row(410, 420, "Bad ref {x} for {owner}"),
            row(410, 420, "Bad grant reference {x}"),
            row(301, 408, "Bad grant reference ({n})"),
            row(300, 300, "Bad ref ({n}) or flags ({flags})."),
            row(301, 408, "Bad ref ({n})."),
            row(409, 409, "Bad ref {x}"),
        ],
    },
    Message {
        name: "grant-entry",
        role: Role::Refusal("mapping a grant"),
        meaning: "the grant is not for this domain, or not in use",
        causes: MISUSED,
        wordings: &[
            row(410, 420, "Bad flags ({flags}) or dom ({owner}); expected {wanted}"),
            row(300, 409, "Bad flags ({flags}) or dom ({owner}). ("),
        ],
    },
    Message {
        name: "grant-read-only",
        role: Role::Refusal("mapping a grant"),
        meaning: "a grant that is read-only was to be mapped writable",
        causes: MISUSED,
        wordings: &[row(300, 420, "Attempt to write-pin a r/o grant entry")],
    },
    Message {
        name: "grant-frame",
        role: Role::Request("mapping a grant"),
        meaning: "the granted frame cannot be used as asked: it is a page table of its owner, or \
                  gone",
        causes: &[C::TableNotReleased, C::FrameGone],
        wordings: &[
            row(300, 420, "Could not pin grant frame {mfn}"),
            row(406, 420, "Could not get writable frame {mfn}"),
        ],
    },
    Message {
        name: "grant-handle",
        role: Role::Refusal("unmapping a grant"),
        meaning: "the handle is not, or no longer, that of a mapping",
        causes: &[C::DoneTwice, C::GrantMisused],
        wordings: &[
            row(300, 408, "Bad handle ({n})."),
            row(409, 409, "Bad handle {x}"),
            row(410, 420, "Bad {wanted} handle {x}"),
            row(300, 408, "Zero flags for handle ({n})."),
            row(409, 409, "Zero flags for handle {x}"),
            row(410, 420, "Zero flags for {wanted} handle {x}"),
        ],
    },
    Message {
        name: "grant-entry-changed",
        role: Role::Refusal("unmapping a grant"),
        meaning: "the page-table entry does not hold the grant any more: it can never be unmapped",
        causes: MISUSED,
        wordings: &[
            row(410, 420, "PTE {pte} for {x} doesn't match grant ({saw})"),
            row(300, 409, "PTE entry {pte} for address {x} doesn't match frame {mfn}"),
        ],
    },
    Message {
        name: "grant-flags-changed",
        role: Role::Note,
        meaning: "flags of an entry that maps a grant were changed: it is unmapped all the same",
        causes: &[],
        wordings: &[row(410, 420, "PTE flags {flags} for {x} don't match grant (")],
    },
    Message {
        name: "grant-no-entry",
        role: Role::Refusal("mapping or unmapping a grant"),
        meaning: "there is no L1 entry where the grant was to be mapped",
        causes: MISUSED,
        wordings: &[
            row(410, 420, "Could not find L1 PTE for linear address {x}"),
            row(410, 420, "Could not find L1 PTE for linear {x}"),
            row(300, 409, "Could not find L1 PTE for address {x}"),
            row(300, 300, "Could not find PTE entry for address {x}"),
            row(410, 420, "Misaligned PTE address {x}"),
            row(300, 303, "Grant map attempted to update a non-L1 page"),
        ],
    },
    Message {
        name: "grant-delete",
        role: Role::Refusal("unmapping a grant"),
        meaning: "the page-table entry of a grant could not be cleared",
        causes: MISUSED,
        wordings: &[row(300, 409, "Cannot delete PTE entry at {x}")],
    },
];
