//! Requests that fail: the outer ends of chains.

use hypercall::explain::Cause as C;

use super::{Message, Role, row};

/// A frame that is not the guest's to use.
const NOT_OWNED: &[C] = &[C::FrameGone, C::NotConverted, C::ForeignFrame];
/// A table that Xen did not take, with nothing said before about why.
const BAD_TABLE: &[C] = &[C::AliasLeft, C::EarlierRefusal, C::WrongLevel, C::FrameGone];
/// A page that is not writable memory.
const NOT_MEMORY: &[C] = &[C::TableNotReleased, C::FrameGone];

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "pin-failed",
        role: Role::Request("pinning"),
        meaning: "Xen refused to pin a table",
        causes: BAD_TABLE,
        wordings: &[
            row(300, 406, "Error while pinning mfn {mfn}"),
            row(407, 420, "Error {errno} while pinning mfn {mfn}"),
        ],
    },
    Message {
        name: "already-pinned",
        role: Role::Refusal("pinning"),
        meaning: "the table is pinned already",
        causes: &[C::DoneTwice],
        wordings: &[
            row(300, 408, "Mfn {mfn} already pinned"),
            row(409, 420, "mfn {mfn} already pinned"),
        ],
    },
    Message {
        name: "not-pinned",
        role: Role::Refusal("unpinning"),
        meaning: "the table is not pinned",
        causes: &[C::DoneTwice],
        wordings: &[row(300, 408, "Mfn {mfn} not pinned"), row(409, 420, "mfn {mfn} not pinned")],
    },
    Message {
        name: "unpin-foreign",
        role: Role::Request("unpinning"),
        meaning: "the frame to be unpinned is not the domain's",
        causes: NOT_OWNED,
        wordings: &[
            row(300, 408, "Mfn {mfn} bad domain"),
            row(409, 420, "mfn {mfn} bad, or bad owner {wanted}"),
        ],
    },
    Message {
        name: "baseptr-failed",
        role: Role::Request("loading"),
        meaning: "Xen refused to load a root",
        causes: BAD_TABLE,
        wordings: &[
            row(300, 420, "Error while installing new baseptr {mfn}"),
            row(301, 420, "Error while installing new compat baseptr {mfn}"),
            row(300, 300, "Fatal error while installing new baseptr {mfn}"),
            row(300, 406, "Error while installing new mfn {mfn}"),
            row(407, 408, "Error {errno} while installing new mfn {mfn}"),
            row(409, 420, "Error {errno} installing new mfn {mfn}"),
        ],
    },
    Message {
        name: "update-foreign",
        role: Role::Request("mmu_update"),
        meaning: "the table to be changed is not the domain's",
        causes: NOT_OWNED,
        wordings: &[row(300, 420, "Could not get page for normal update")],
    },
    Message {
        name: "m2p-foreign",
        role: Role::Request("mmu_update of M2P"),
        meaning: "the frame whose M2P entry was to be set is not the domain's",
        causes: NOT_OWNED,
        wordings: &[row(300, 420, "Could not get page for mach->phys update")],
    },
    Message {
        name: "clear-failed",
        role: Role::Request("clearing or copying a page"),
        meaning: "a page to be cleared or copied is a table, or not the domain's",
        causes: NOT_MEMORY,
        wordings: &[
            row(304, 408, "Error while clearing mfn {mfn}"),
            row(409, 420, "Error clearing mfn {mfn}"),
            row(304, 408, "Error while copying from mfn {mfn}"),
            row(409, 420, "Error copying from mfn {mfn}"),
            row(304, 408, "Error while copying to mfn {mfn}"),
            row(409, 420, "Error copying to mfn {mfn}"),
        ],
    },
    Message {
        name: "bad-ldt",
        role: Role::Refusal("SET_LDT"),
        meaning: "the LDT is not aligned, too large, or in Xen's part of the address space",
        causes: &[C::NotConverted],
        wordings: &[row(300, 420, "Bad args to SET_LDT: ptr={x}, ents=")],
    },
    Message {
        name: "own-domid",
        role: Role::Refusal("mmu_update or mmuext_op"),
        meaning: "the guest named itself as foreign domain by its number instead of DOMID_SELF",
        causes: &[C::ForeignFrame],
        wordings: &[
            row(302, 420, "Cannot specify itself as foreign domain"),
            row(300, 301, "Dom {wanted} tried to specify itself as foreign domain"),
        ],
    },
    Message {
        name: "unknown-domain",
        role: Role::Refusal("mmu_update or mmuext_op"),
        meaning: "the foreign domain does not exist, or not any more",
        causes: &[C::ForeignFrame],
        wordings: &[
            row(300, 408, "Unknown domain '{n}'"),
            row(409, 420, "Unknown domain {wanted}"),
            row(302, 402, "Cannot set foreign dom"),
            row(300, 301, "Dom {wanted} cannot set foreign dom"),
        ],
    },
    Message {
        name: "translated",
        role: Role::Refusal("mmu_update or mmuext_op"),
        meaning: "requests of this kind are not for translated (HVM) domains",
        causes: &[C::ForeignFrame],
        wordings: &[
            row(300, 409, "Cannot mix foreign mappings with translated domains"),
            row(301, 404, "Mach-phys update on auto-translate guest"),
        ],
    },
    Message {
        name: "unknown-command",
        role: Role::Refusal("mmu_update or mmuext_op"),
        meaning: "Xen does not know the command",
        causes: &[C::NotConverted],
        wordings: &[
            row(300, 408, "Invalid extended pt command {x}"),
            row(300, 408, "Invalid page update command {x}"),
        ],
    },
    Message {
        name: "flush-cache",
        role: Role::Refusal("FLUSH_CACHE"),
        meaning: "only domains with devices may flush caches",
        causes: &[C::NoIoPermission],
        wordings: &[row(300, 408, "Non-physdev domain tried to FLUSH_CACHE")],
    },
    Message {
        name: "superpage",
        role: Role::Refusal("superpage"),
        meaning: "PV superpages, which Xen had from 4.1 to 4.10, were refused",
        causes: &[C::FlagsRefused],
        wordings: &[
            row(401, 408, "Attempt to map superpage without allowsuperpage flag"),
            row(401, 409, "Attempt to unmark unmarked superpage mfn {mfn}"),
            row(401, 409, "Duplicate superpage mark attempt mfn {mfn}"),
            row(401, 409, "Superpage type conflict in mark attempt mfn {mfn}"),
            row(401, 409, "Type conflict on superpage mapping mfn {mfn}"),
            row(401, 409, "Unaligned superpage map attempt mfn {mfn}"),
            row(401, 408, "Unaligned superpage reference mfn {mfn}"),
            row(409, 409, "Unaligned superpage mfn {mfn}"),
            row(401, 408, "Superpages disallowed"),
            row(409, 409, "PV superpages disabled in hypervisor"),
        ],
    },
    Message {
        name: "multicall-nested",
        role: Role::Refusal("multicall"),
        meaning: "a multicall was put into a multicall",
        causes: &[C::EarlierRefusal],
        wordings: &[row(300, 420, "Multicall reentry is disallowed.")],
    },
];
