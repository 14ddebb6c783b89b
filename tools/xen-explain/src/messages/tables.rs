//! Types, and tables that fail validation: the lines of a chain, from the inside out.

use hypercall::explain::Cause as C;

use super::{Message, Role, row};

pub(super) const MESSAGES: &[Message] = &[
    Message {
        name: "bad-type",
        role: Role::BadType,
        meaning: "a frame was wanted as one thing while it was in use as another",
        causes: &[],
        wordings: &[row(300, 420, "Bad type (saw {saw} != exp {exp}) for mfn {mfn} (pfn {pfn})")],
    },
    Message {
        name: "linear-writable",
        role: Role::FollowUp,
        meaning: "Xen tried, after the failure before, whether the entry is meant as a linear page \
                  table, and says that it is writable and so is not: every failed entry of an L2, \
                  L3 or L4 table with RW set gets this line",
        causes: &[],
        wordings: &[row(300, 420, "Attempt to create linear p.t. with write perms")],
    },
    Message {
        name: "linear-off",
        role: Role::FollowUp,
        meaning: "as linear-writable, on a Xen with linear page tables switched off",
        causes: &[],
        wordings: &[row(410, 420, "Attempt to create linear p.t. (feature disabled)")],
    },
    Message {
        name: "failed-slot",
        role: Role::Slot,
        meaning: "the entry of the table at which validation stopped",
        causes: &[],
        wordings: &[
            row(300, 408, "Failure in alloc_l{level}_table: entry {entry}"),
            row(409, 412, "Failure in alloc_l{level}_table: slot {slot}"),
            row(413, 413, "Failure {errno} in alloc_l{level}_table: slot {slot}"),
            row(414, 420, "Failure {errno} in promote_l{level}_table: slot {slot}"),
        ],
    },
    Message {
        name: "failed-table",
        role: Role::Table,
        meaning: "the table that failed validation",
        causes: &[],
        wordings: &[row(
            300,
            420,
            "Error while validating mfn {mfn} (pfn {pfn}) for type {type}: caf={caf} taf={taf}",
        )],
    },
    Message {
        name: "type-count-overflow",
        role: Role::Cause,
        meaning: "a frame is used more often than Xen can count",
        causes: &[C::AliasLeft],
        wordings: &[
            row(300, 408, "Type count overflow on pfn {mfn}"),
            row(409, 420, "Type count overflow on mfn {mfn}"),
        ],
    },
    Message {
        name: "pae-slot",
        role: Role::Cause,
        meaning: "the L3 of a 32-bit guest has an empty or shared fourth slot",
        causes: &[C::XenSlots],
        wordings: &[
            row(300, 413, "PAE L3 3rd slot is empty"),
            row(300, 420, "PAE L3 3rd slot is shared"),
        ],
    },
    Message {
        name: "pae-high",
        role: Role::Cause,
        meaning: "the root of a 32-bit guest lies above 4 GiB and the guest does not say it can",
        causes: &[C::NoMemory],
        wordings: &[row(300, 420, "PAE pgd must be below 4GB (")],
    },
];
