//! The frame map of a Xen PV guest: which machine frame stands behind each of the guest's pages.
//!
//! The guest keeps P2M (pfn to mfn); Xen keeps M2P (mfn to pfn), believes whatever the guest or a
//! toolstack last put there, and lets the guest read it. So P2M is the authority here, and M2P an
//! index into it: an answer of M2P counts only if P2M agrees.
//!
//! # Main types
//! * [`P2m`]: the map, over the list that the domain builder left in the guest's memory. Adopting
//!   copies nothing.
//! * [`Guest`]: the machine, the map and the kernel's root, as operations take them.
//! * [`P2mEntry`]: what a pfn stands for: RAM, nothing, a device's frame, or another domain's.
//! * [`P2mError`]: what is wrong with a pfn, an mfn, or a change.
//! * [`Window`]: where the list can grow, and holes cost nothing.
//! * [`Toolstack`], [`FrameList`]: what is published for save, restore and debugging.
//! * [`Granted`], [`Grant`], [`GrantMaps`]: frames shared with other domains, in both directions.
//! * [`Audit`], [`Report`]: whether all of that is true. [`KexecState`]: whether another kernel may
//!   follow.
//! * [`walk()`], [`Walk`]: what the page tables say of an address. [`DirectEntries`]: those of
//!   the direct mapping.
//! * [`Run`], [`Census`]: the map in lines and in numbers; [`P2m::dump`], [`P2m::svg`].
//!
//! # One word for each pfn
//! The list is flat, in virtual memory: a look-up is a bounds check and a load, at 64 MiB as at a
//! terabyte. It needs no lock: entries change by single stores, which take effect only on the entry
//! they suppose; the length only rises, and after the memory behind it. What a tree would save, the
//! page tables save: pages of the list in which nothing is are one shared page, and so are tables
//! of such pages.
//!
//! Linux marks a hole's kind by *which* shared page is mapped, so that its look-ups walk page
//! tables when they meet a hole, and its writers find out by a fault. Here the shared page's words
//! say what they are, so no look-up walks and no writer faults: a change of an entry without memory
//! is the error [`P2mError::NotReserved`], and memory is reserved beforehand, where sleeping and
//! failing are allowed.
//!
//! The examples run on the model: `Guest` is a guest of 16 MiB there (`pv_tests::guest`), and
//! `Machine` one whose map has a window (`pv_tests::window`).
//!
//! # What it assumes
//! The list is the guest's own memory and entries change by single 8-byte stores, as the toolstack
//! requires when it reads the list (docs/abi.md). One vCPU at a time grows the map; any number read
//! it and change entries.
//!
//! # What it prevents, and what not
//! A stale or foreign M2P answer never becomes a pfn. A frame of another domain is never taken for
//! memory: not by a look-up, not by an allocator that asks [`P2m::own`]. Two changes of one entry
//! cannot both succeed. Nothing here walks page tables but the window's own, and a wrong entry of
//! the list is found by the audit, not by a look-up.
//!
//! ```
//! use core::sync::atomic::AtomicU64;
//! use hypercall::{Mfn, Pfn};
//! use p2m::{P2m, P2mError};
//!
//! let list = [AtomicU64::new(0x8df82b), AtomicU64::new(u64::MAX)];
//! let p2m = unsafe { P2m::adopt(&list) }?;
//! assert_eq!(p2m.mfn(Pfn::new(0)), Ok(Mfn::new(0x8df82b)));
//! assert_eq!(p2m.mfn(Pfn::new(1)), Err(P2mError::Absent(Pfn::new(1))));
//! unsafe { p2m.populate(Pfn::new(1), Mfn::new(0x777)) }?;
//! assert_eq!(unsafe { p2m.depopulate(Pfn::new(1)) }, Ok(Mfn::new(0x777)));
//! # Ok::<(), P2mError>(())
//! ```
#![cfg_attr(not(any(test, loom)), no_std)]

mod audit;
mod direct_map;
mod dump;
mod entry;
mod error;
mod frame_list;
mod grants;
mod guest;
mod hazards;
mod leaves;
mod list;
mod map;
mod runs;
mod sync;
mod toolstack;
mod walk;
mod window;

pub use audit::{Audit, Finding, Problem, Progress, Records, Report};
pub use direct_map::{DirectEntries, DirectMap, NoDirectEntry};
pub use dump::Census;
pub use entry::P2mEntry;
pub use error::P2mError;
pub use frame_list::{FRAME_LIST_PFNS_MAX, FrameList, FrameListError};
pub use grants::{
    Grant, GrantError, GrantFailure, GrantMaps, Granted, MapRequest, MappedGrant, NotEnded,
    NotGiven, Outstanding, UnmapFailure,
};
pub use guest::Guest;
pub use hazards::{Hazards, KexecPermit, KexecState};
pub use leaves::{BuilderList, Leaves};
pub use map::{P2m, Pfns};
pub use runs::{Grain, Run, Runs};
pub use toolstack::{MappingChange, Published, Toolstack, UnalignedList};
pub use walk::{TableEntry, Walk, WalkError, walk};
pub use window::{GrowContext, OpenError, Window, WindowError, WindowFailure, WindowPlace};
