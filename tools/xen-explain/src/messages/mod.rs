//! What Xen and Linux say about the memory of PV guests, as a table: each message with its
//! meaning, its part in a chain, what leads to it, and every wording with the releases that have
//! it. A new wording is a new row.
//!
//! The wordings are Xen's, from `arch/x86/mm.c` and its neighbours at each release from 3.0.2 to
//! 4.20; `MEM_LOG` and `gdprintk` lines are in debug builds only from 4.6 on.

mod entries;
mod grants;
mod guest;
mod memory;
mod requests;
mod tables;

use hypercall::explain::Cause;

use crate::release::{Span, XenVersion};

/// What part a line has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Says why: a chain begins here.
    Cause,
    /// A frame was wanted as one thing and was another: the cause of causes.
    BadType,
    /// Adds to a cause.
    Detail,
    /// Printed because of the failure before it, and misleading by itself.
    FollowUp,
    /// The slot at which a table of some level failed.
    Slot,
    /// The table that failed.
    Table,
    /// The request that failed in the end, by name.
    Request(&'static str),
    /// A request that failed, by name, and why: nothing else belongs to it.
    Refusal(&'static str),
    /// Nothing was refused.
    Note,
    /// Lines were left out.
    Suppressed,
    /// The end of a domain, or of the host.
    Crash,
    /// Which Xen.
    Banner,
    /// The guest kernel is still starting.
    GuestBoot,
    /// The guest kernel noticed.
    GuestTrouble,
    /// A multicall entry that failed, as the guest kernel says.
    GuestCall,
    /// A function in a call trace of the guest kernel.
    GuestFrame,
}

/// A message and everything known of it.
#[derive(Debug)]
pub(crate) struct Message {
    /// A word for programs.
    pub(crate) name: &'static str,
    /// Its part in a chain.
    pub(crate) role: Role,
    /// What it says, in a sentence without its values.
    pub(crate) meaning: &'static str,
    /// What leads to it, likeliest first. Empty if that depends on the types.
    pub(crate) causes: &'static [Cause],
    /// How it reads.
    pub(crate) wordings: &'static [Wording],
}

/// One way in which a message reads.
#[derive(Debug)]
pub(crate) struct Wording {
    /// The text, with holes: see `pattern`.
    pub(crate) text: &'static str,
    /// The releases that have it.
    pub(crate) span: Span,
}

/// Returns a wording of the releases `since` to `until`, both as `major * 100 + minor`.
const fn row(since: u16, until: u16, text: &'static str) -> Wording {
    Wording { text, span: Span { since: version(since), until: version(until) } }
}

/// Returns a wording that says nothing about the release of Xen.
const fn any(text: &'static str) -> Wording {
    Wording { text, span: Span::ALL }
}

const fn version(number: u16) -> XenVersion {
    let [major, minor] = [number / 100, number % 100];
    XenVersion::new(major.to_le_bytes()[0], minor.to_le_bytes()[0])
}

/// All messages, in the order of the files.
pub(crate) fn all() -> impl Iterator<Item = &'static Message> {
    [
        tables::MESSAGES,
        entries::MESSAGES,
        requests::MESSAGES,
        memory::MESSAGES,
        grants::MESSAGES,
        guest::MESSAGES,
    ]
    .into_iter()
    .flatten()
}
