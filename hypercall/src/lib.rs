//! The seam between an x86-64 Xen PV guest and Xen.
//!
//! A guest's memory management talks to the machine through two traits only:
//!
//! * [`Hypercalls`] puts MMU requests, `memory_op` and assists to Xen;
//! * [`FrameAccess`] reads and writes the guest's own frames, and reads M2P.
//!
//! Both take `&self`, and neither passes a pointer. So the same lines of code run on real Xen
//! (`xen::Xen`, on bare metal targets) and on a model of it, and a middleware ([`Counting`],
//! [`FailNth`]) can wrap either.
//!
//! # Main types
//! * [`Pfn`], [`Mfn`]: a page in the guest's numbering, a frame in the machine's. Nothing here
//!   converts them.
//! * [`GuestVa`]: an address that the guest may use. [`Level`], [`Pte`], [`Entry`], [`Slot`]: page
//!   tables.
//! * [`MmuUpdate`], [`MmuExtOp`], [`VaMapping`], [`MemoryOp`]: requests to Xen, as the ABI's own
//!   structures.
//! * [`Batch`]: requests collected in the caller's memory and sent in one trap.
//! * [`Errno`], [`Error`], [`BatchError`]: what was refused, why, and how much took effect before.
//!   [`Refused`]: a value that an operation did not take, and the reason. [`RefusableFlag`]: the
//!   flag for which Xen refused an entry.
//! * [`Frame`], [`Frames`], [`FrameSource`]: who owns which frame. [`Uncertain`], [`Quarantine`]:
//!   what a refused undo leaves, kept from everyone.
//! * [`explain`]: what a refusal means, in words.
//! * [`Grants`]: the trait for guests that share frames with other domains. [`ArchSharedInfo`]:
//!   what a toolstack reads.
//! * [`BootInfo`]: what the domain builder left in `start_info`.
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

mod abi;
mod batch;
mod batch_error;
mod batch_runs;
mod call;
mod error;
pub mod explain;
mod frame;
mod frame_source;
mod grants;
mod machine;
mod memory;
mod middleware;
mod op;
mod own;
mod pte;
mod quarantine;
mod raw;
mod refusable_flag;
mod refused;
mod shared_info;
mod start_info;
mod va;
mod version;
#[cfg(target_os = "none")]
pub mod xen;

pub use batch::{Batch, BatchStorage, Element};
pub use batch_error::{BatchError, Full};
pub use batch_runs::BatchRuns;
pub use call::{CALLS_MAX, Call, Outcome, Request};
pub use error::{Errno, Error, Hypercall};
pub use frame::{ENTRIES, Mfn, PAGE_SHIFT, PAGE_SIZE, Pfn};
pub use frame_source::FrameSource;
pub use grants::{
    GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants, grant_flags,
};
pub use machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls, Machine};
pub use memory::{Exchange, Extent, MachphysMapping, MemoryOp, MemoryRegion, Reservation};
pub use middleware::{
    Accessed, Asked, Counting, Counts, FailEach, FailNth, Refusal, Refusals, TRACE_HEADER, Timed,
    Traced, trace_start, trace_sum,
};
pub use op::{
    DomId, Domains, MmuExtOp, MmuUpdate, VaFlush, VaMapping, VcpuSet, ext_command, mmu_command,
};
pub use own::{Frame, Frames};
pub use pte::{ADDRESS_MASK, Entry, Level, Pte, PteFlags, Slot};
pub use quarantine::{Quarantine, Uncertain};
pub use raw::{RawCpu, RawHypercalls, RawWrite};
pub use refusable_flag::RefusableFlag;
pub use refused::Refused;
pub use shared_info::{ArchSharedInfo, MapWords, SHARED_VCPUS, SharedInfo, TimeInfo, VcpuInfo};
pub use start_info::{BootInfo, BootInfoError, Console, Module, StartInfo};
pub use va::{GuestVa, NotGuestVa, XEN_HOLE_END, XEN_HOLE_START, XEN_SLOTS};
