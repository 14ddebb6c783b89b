//! memory_op: the balloon and exchanges; and what ends in silence, in crashes or in banners.

use hypercall::explain::Cause as C;

use super::{Message, Role, any, row};

/// A frame that is not the guest's to use.
const NOT_OWNED: &[C] = &[C::FrameGone, C::NotConverted, C::MapsDisagree];

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "bad-steal",
        role: Role::Request("memory_op(exchange) or a grant transfer"),
        meaning: "a frame to be given away is in use, or not the domain's: its count must be 1",
        causes: &[C::AliasLeft, C::GrantedWritable, C::FrameGone],
        wordings: &[
            row(409, 420, "Bad steal mfn {mfn} from {wanted} (owner {owner}) caf={caf} taf={taf}"),
            row(406, 408, "Bad page {mfn}: ed={owner} sd={wanted} caf={caf} taf={taf}"),
            row(304, 405, "Bad page {x}: ed={owner}({n}), sd={wanted}, caf={caf}, taf={taf}"),
            row(301, 303, "gnttab_transfer: Bad page {x}: ed={owner}({n}), sd="),
        ],
    },
    Message {
        name: "bad-donate",
        role: Role::Request("giving a frame to another domain"),
        meaning: "a frame to be given away is in use",
        causes: &[C::AliasLeft],
        wordings: &[
            row(409, 413, "Bad donate mfn {mfn} to {wanted} (owner {owner}) caf={caf} taf={taf}"),
            row(406, 408, "Bad donate {mfn}: ed={owner} sd={wanted} caf={caf} taf={taf}"),
            row(400, 405, "Bad donate {x}: ed={owner}({n}), sd={wanted}, caf={caf}, taf={taf}"),
        ],
    },
    Message {
        name: "bad-free",
        role: Role::Request("memory_op(decrease_reservation)"),
        meaning: "a frame to be given back is not the domain's, or is free already",
        causes: NOT_OWNED,
        wordings: &[
            row(300, 411, "Bad page free for domain {wanted}"),
            row(412, 420, "Bad page free for Dom{wanted} GFN {mfn}"),
            row(300, 420, "Domain {wanted} page number {mfn} invalid"),
            row(300, 300, "{wanted} freeing in-use page {mfn} (pseudophys {pfn}):"),
        ],
    },
    Message {
        name: "over-allocation",
        role: Role::Refusal("memory_op(populate_physmap or increase_reservation)"),
        meaning: "the domain asked for more memory than it may have",
        causes: &[C::NoMemory],
        wordings: &[
            row(300, 416, "Over-allocation for domain {wanted}: {n} >"),
            row(414, 420, "Over-allocation for {wanted}: {n} >"),
            row(414, 420, "Excess allocation for {wanted}: {n} ("),
            row(414, 420, "Inconsistent allocation for {wanted}: {n} >"),
            row(300, 420, "Cannot assign page to domain{wanted} -- dying."),
        ],
    },
    Message {
        name: "no-extent",
        role: Role::Refusal("memory_op(populate_physmap or increase_reservation)"),
        meaning: "Xen could not allocate an extent",
        causes: &[C::NoMemory],
        wordings: &[row(300, 420, "Could not allocate order={n} extent: id=")],
    },
    Message {
        name: "forced-read-only",
        role: Role::Note,
        meaning: "Xen took write access off a mapping of a device's registers",
        causes: &[],
        wordings: &[
            row(401, 420, "{wanted}: Forcing read-only access to MFN {mfn}"),
            row(406, 420, "{wanted}: Forcing write emulation on MFNs {mfn}-"),
        ],
    },
    Message {
        name: "leaking",
        role: Role::Note,
        meaning: "Xen keeps a frame for good that it cannot clean up",
        causes: &[],
        wordings: &[row(401, 408, "Leaking pfn {mfn}"), row(409, 420, "Leaking mfn {mfn}")],
    },
    Message {
        name: "suppressed",
        role: Role::Suppressed,
        meaning: "Xen left out lines (rate limit)",
        causes: &[],
        wordings: &[row(300, 420, "printk: {n} messages suppressed.")],
    },
    Message {
        name: "domain-crash",
        role: Role::Crash,
        meaning: "Xen ended the domain",
        causes: &[],
        wordings: &[
            row(300, 420, "domain_crash_sync called from {word}"),
            row(300, 420, "domain_crash called from {word}"),
            row(300, 420, "Domain {wanted} (vcpu#{vcpu}) crashed on cpu#{n}:"),
            row(300, 420, "Domain {wanted} reported crashed by domain"),
            row(300, 420, "Hardware Dom0 crashed"),
        ],
    },
    Message {
        name: "unhandled-trap",
        role: Role::Crash,
        meaning: "the guest took a trap that it has no handler for; an invalid opcode is the mark \
                  of a BUG() in the guest",
        causes: &[],
        wordings: &[
            row(406, 416, " fault/trap [#{n}, ec="),
            row(302, 405, " fault/trap [#{n}] on VCPU {vcpu} [ec="),
            row(300, 301, " fault/trap [#{n}] in domain {wanted} on VCPU {vcpu}"),
            row(417, 420, "Unhandled: vec {n},"),
            row(300, 302, "Unhandled page fault in domain {wanted} on VCPU {vcpu}"),
            row(405, 408, "unhandled page fault (ec="),
        ],
    },
    Message {
        name: "panic",
        role: Role::Crash,
        meaning: "Xen itself stopped: the host is down",
        causes: &[],
        wordings: &[row(300, 420, "Panic on CPU {n}:")],
    },
    Message {
        name: "version",
        role: Role::Banner,
        meaning: "which Xen this is",
        causes: &[],
        wordings: &[any("Xen version {major}.{minor}")],
    },
];
