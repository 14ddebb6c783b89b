//! The seam between an x86-64 Xen PV guest and Xen.
//!
//! A guest's memory management talks to the machine through two traits only:
//!
//! * [`Hypercalls`] puts MMU requests, `memory_op` and assists to Xen;
//! * [`FrameAccess`] reads and writes the guest's own frames, and reads M2P.
//!
//! Both take `&self`, and neither passes a pointer. So the same lines of code run on real Xen
//! (`xen::Xen`, on bare metal targets) and on a model of it, and a [`middleware`] (`Counting`,
//! `FailNth`) can wrap either.
//!
//! # Main types
//! * [`Pfn`], [`Mfn`]: a page in the guest's numbering, a frame in the machine's. Nothing here
//!   converts them.
//! * [`GuestVa`]: an address that the guest may use. [`Level`], [`Pte`], [`Entry`], [`Slot`]: page
//!   tables.
//! * [`MmuUpdate`], [`MmuExtOp`], [`VaMapping`]: requests to Xen, as the ABI's own structures;
//!   [`memory`]: those of `memory_op`; [`commands`]: their numbers.
//! * [`Batch`]: requests collected in the caller's memory and sent in one trap.
//! * [`Errno`], [`Error`], [`BatchError`]: what was refused, why, and how much took effect before.
//!   [`Refused`]: a value that an operation did not take, and the reason. [`RefusableFlag`]: the
//!   flag for which Xen refused an entry.
//! * [`Frame`], [`Frames`], [`FrameSource`]: who owns which frame. [`Uncertain`], [`Quarantine`]:
//!   what a refused undo leaves, kept from everyone.
//! * [`explain`]: what a refusal means, in words.
//! * [`grants`]: the trait for guests that share frames with other domains. [`shared_info`]: what a
//!   toolstack reads. [`start_info`]: what the domain builder left.
//! * [`middleware`]: machines that count, time, trace or refuse what passes through them. [`raw`]:
//!   requests that the types above cannot express, for tests.
//!
//! # What it assumes
//! A 64-bit guest without auto-translation on Xen 4.14 to 4.20. Frames, addresses and entries are
//! only numbers here: the crate has no frame map, allocates nothing and decides nothing.
//!
//! # What it prevents, and what it does not
//! A pfn cannot pass for an mfn. An address in Xen's range cannot become a [`GuestVa`]. A refusal
//! cannot be overlooked (`must_use` results), and a partial one keeps its count. It does not
//! prevent a request that breaks the guest: submitting is `unsafe`, and docs/soundness.md says what
//! the caller owes.
//!
//! ```
//! use hypercall::{Level, Mfn, Pte, PteFlags, Entry};
//!
//! let pte = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
//! assert_eq!(pte.decode(Level::L1), Entry::Leaf(Mfn::new(0x203)));
//! // Xen adds USER and its own mark to a kernel entry; for the guest it is still the same one.
//! assert!(pte.same_for_guest(Pte::from_raw(0x8010_0000_0020_3067)));
//! ```
#![cfg_attr(not(test), no_std)]

// From the ground up: a module uses those above it.

// A page's number in the guest, a frame's in the machine.
mod frame;
// Addresses that the guest may use.
mod va;
// Page-table entries, levels, and where an entry is.
mod pte;
// The numbers of Xen's commands.
pub mod commands;
// The elements of MMU hypercalls.
mod op;
// The operations of `memory_op`.
pub mod memory;
// Xen's refusals.
mod error;
// A request to Xen, and its outcome.
mod call;
// Flags for which Xen refuses an entry.
mod refusable_flag;
// Why a batch was refused.
mod batch_error;
// Neighbouring elements of one kind.
mod batch_runs;
// The two traits of the seam.
mod machine;
// Requests collected in the caller's memory.
mod batch;
// Frames that nobody else uses.
mod own;
// Frames that a refused undo has left in doubt.
mod quarantine;
// Where frames come from and go to.
mod frame_source;
// A value that an operation did not take.
mod refused;
// Frames that one domain lets another map.
pub mod grants;
// Numbers that someone else may change while they are read.
mod version;
// The page that Xen and the toolstack share with a guest.
pub mod shared_info;
// What the domain builder leaves for a guest.
pub mod start_info;
// What a refusal means, in words.
pub mod explain;
// Hypercalls and accesses as bare numbers.
pub mod raw;
// Machines that wrap another one.
pub mod middleware;
// Our types against Xen's, at compile time.
mod abi;
// The machine that is real Xen.
#[cfg(target_os = "none")]
pub mod xen;

pub use batch::{Batch, BatchStorage, Element};
pub use batch_error::{BatchError, Full};
pub use batch_runs::BatchRuns;
pub use call::{CALLS_MAX, Call, Outcome, Request};
pub use error::{Errno, Error, Hypercall};
pub use frame::{ENTRIES, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
pub use frame_source::FrameSource;
pub use machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls, Machine};
pub use op::{DomId, MmuExtOp, MmuUpdate, VaFlush, VaMapping, VcpuSet};
pub use own::{Frame, Frames};
pub use pte::{Entry, Level, Pte, PteFlags, Slot};
pub use quarantine::{Quarantine, Uncertain};
pub use refusable_flag::RefusableFlag;
pub use refused::Refused;
pub use va::{GuestVa, NotGuestVa, XEN_HOLE_END, XEN_HOLE_START, XEN_SLOTS};
