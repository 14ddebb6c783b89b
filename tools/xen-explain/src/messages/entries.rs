//! Entries that Xen refuses, and the references to frames that they need.

use hypercall::explain::Cause as C;

use super::{Message, Role, row};

/// A frame that is not the guest's to use.
const NOT_OWNED: &[C] = &[C::FrameGone, C::NotConverted, C::ForeignFrame, C::MapsDisagree];

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "not-owner",
        role: Role::Cause,
        meaning: "a frame does not belong to the domain that it was taken for, or is free",
        causes: NOT_OWNED,
        wordings: &[
            row(410, 420, "Error mfn {mfn}: rd={wanted} od={owner} caf={caf} taf={taf}"),
            row(406, 409, "Error pfn {mfn}: rd={wanted} od={owner} caf={caf} taf={taf}"),
            row(302, 405, "Error pfn {mfn}: rd={wanted}, od={owner}, caf={caf}, taf={taf}"),
        ],
    },
    Message {
        name: "no-reference",
        role: Role::Cause,
        meaning: "a frame is no memory, or not the guest's",
        causes: NOT_OWNED,
        wordings: &[
            row(300, 408, "Could not get page ref for pfn {mfn}"),
            row(409, 420, "Could not get page ref for mfn {mfn}"),
        ],
    },
    Message {
        name: "not-writable",
        role: Role::Detail,
        meaning: "the frame is in use as something else than writable memory",
        causes: &[C::TableNotReleased, C::MappedOverTables],
        wordings: &[row(402, 420, "Could not get page type PGT_writable_page")],
    },
    Message {
        name: "bad-l1-entry",
        role: Role::Cause,
        meaning: "Xen did not grant what an L1 entry asks for",
        causes: NOT_OWNED,
        wordings: &[
            row(300, 304, "Error getting mfn {mfn} (pfn {pfn}) from L1 entry {pte} for dom{owner}"),
            row(
                400,
                408,
                "Error getting mfn {mfn} (pfn {pfn}) from L1 entry {pte} for \
                 l1e_owner={wanted}, pg_owner={owner}",
            ),
            row(
                409,
                420,
                "Error getting mfn {mfn} (pfn {pfn}) from L1 entry {pte} for \
                 l1e_owner {wanted}, pg_owner {owner}",
            ),
        ],
    },
    Message {
        name: "other-owner",
        role: Role::Cause,
        meaning: "a frame belongs to another domain than the request says",
        causes: NOT_OWNED,
        wordings: &[row(
            402,
            420,
            "pg_owner {wanted} l1e_owner {domain}, but real_pg_owner {owner}",
        )],
    },
    Message {
        name: "bad-flags",
        role: Role::Cause,
        meaning: "an entry has flags that Xen does not grant",
        causes: &[C::FlagsRefused],
        wordings: &[
            row(300, 420, "Bad L1 flags {flags}"),
            row(300, 420, "Bad L2 flags {flags}"),
            row(300, 420, "Bad L3 flags {flags}"),
            row(300, 420, "Bad L4 flags {flags}"),
        ],
    },
    Message {
        name: "xen-slots",
        role: Role::Refusal("mmu_update"),
        meaning: "the guest wrote to a slot of a table that is Xen's",
        causes: &[C::XenSlots],
        wordings: &[
            row(409, 420, "L2 update in Xen-private area, slot {slot}"),
            row(409, 409, "L3 update in Xen-private area, slot {slot}"),
            row(409, 420, "L4 update in Xen-private area, slot {slot}"),
            row(300, 408, "Illegal L2 update attempt in Xen-private area {x}"),
            row(300, 408, "Illegal L3 update attempt in Xen-private area {x}"),
            row(300, 408, "Illegal L4 update attempt in Xen-private area {x}"),
        ],
    },
    Message {
        name: "no-io-permission",
        role: Role::Cause,
        meaning: "the guest mapped a frame that is no memory and that it has no permission for",
        causes: &[C::NoIoPermission, C::NotConverted],
        wordings: &[
            row(300, 302, "Non-privileged attempt to map I/O space {mfn}"),
            row(303, 408, "Non-privileged ({wanted}) attempt to map I/O space {mfn}"),
            row(409, 420, "{wanted} non-privileged attempt to map MMIO space {mfn}"),
            row(403, 408, "{wanted} attempted to map I/O space {mfn} in dom{domain} to dom"),
            row(409, 420, "{wanted} attempted to map MMIO space {mfn} in d{domain} to d"),
        ],
    },
    Message {
        name: "cache-attributes",
        role: Role::Cause,
        meaning: "the guest mapped one of Xen's pages with other cache attributes",
        causes: &[C::FlagsRefused],
        wordings: &[row(302, 420, "Attempt to change cache attributes of Xen heap page")],
    },
    Message {
        name: "cache-update-failed",
        role: Role::Cause,
        meaning: "Xen could not change the cache attributes of its own mapping of a frame",
        causes: &[C::NoMemory],
        wordings: &[row(
            401,
            416,
            "Error updating mappings for mfn {mfn} (pfn {pfn}, from L1 entry {pte})",
        )],
    },
    Message {
        name: "global-in-kernel",
        role: Role::Note,
        meaning: "the guest set GLOBAL on a kernel mapping: Xen takes the entry as it is",
        causes: &[],
        wordings: &[
            row(300, 409, "Global bit is set to kernel page {mfn}"),
            row(410, 420, "Global bit is set in kernel page {mfn}"),
        ],
    },
    Message {
        name: "implicit-grant-unmap",
        role: Role::Refusal("update of an entry that maps a grant"),
        meaning: "the guest changed an entry that maps a grant: the grant can never be unmapped",
        causes: &[C::GrantMisused],
        wordings: &[
            row(300, 416, "Attempt to implicitly unmap a granted PTE {pte}"),
            row(417, 420, "Attempt to implicitly unmap {owner}'s grant PTE {pte}"),
        ],
    },
    Message {
        name: "lost-race",
        role: Role::Cause,
        meaning: "an entry changed while Xen was about to change it",
        causes: &[C::MapsDisagree],
        wordings: &[row(300, 414, "Failed to update {pte} -> {x}: saw {saw}")],
    },
    Message {
        name: "emulated-write-refused",
        role: Role::Request("emulated write to a page table"),
        meaning: "a store to a live L1 table was refused: the guest gets a page fault",
        causes: NOT_OWNED,
        wordings: &[
            row(300, 408, "ptwr_emulate: could not get_page_from_l1e()"),
            row(409, 420, "could not get_page_from_l1e()"),
        ],
    },
    Message {
        name: "emulated-write-odd",
        role: Role::Request("emulated write to a page table"),
        meaning: "a store to a live L1 table was not an aligned one of 1, 2, 4 or 8 bytes",
        causes: &[C::TableNotReleased, C::MappedOverTables],
        wordings: &[
            row(304, 408, "ptwr_emulate: bad access (cr2={x}, addr="),
            row(300, 303, "Bad ptwr access (cr2={x}, addr="),
            row(300, 303, "ptwr_emulate: Unaligned or bad size ptwr access ("),
            row(409, 420, "bad access (cr2={x}, addr="),
            row(303, 408, "ptwr_emulate: bad write size (addr={x}, bytes="),
            row(409, 420, "bad write size (addr={x}, bytes="),
            row(303, 408, "ptwr_emulate: bad cmpxchg size (addr={x}, bytes="),
            row(409, 420, "bad cmpxchg size (addr={x}, bytes="),
        ],
    },
    Message {
        name: "emulated-write-fixed",
        role: Role::Note,
        meaning: "the first half of a 32-bit guest's entry was stored: Xen waits for the second",
        causes: &[],
        wordings: &[row(300, 420, "ptwr_emulate: fixing up invalid PAE PTE {pte}")],
    },
    Message {
        name: "l1tf",
        role: Role::Cause,
        meaning: "an entry that is not present names a frame, on a CPU with L1TF: Xen shadows or \
                  crashes the guest",
        causes: &[C::FlagsRefused],
        wordings: &[
            row(408, 420, "{domain} L1TF-vulnerable L{level}e {pte} - Shadowing"),
            row(408, 420, "{domain} L1TF-vulnerable L{level}e {pte} - Crashing"),
        ],
    },
];
