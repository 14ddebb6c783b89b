//! The frame map of a Xen PV guest: the machine frame behind each of the guest's pages.
//!
//! The guest keeps P2M (pfn to mfn). Xen keeps M2P (mfn to pfn), which the guest can read. Xen
//! stores whatever the guest or a toolstack last told it. So P2M is the authority, and M2P an index
//! into it: an answer of M2P counts only if P2M agrees.
//!
//! # Main types
//! * [`P2m`]: the map, over the list that the domain builder left in the guest's memory. Adopting
//!   copies nothing.
//! * [`P2mEntry`]: the meaning of a pfn: RAM, nothing, a device's frame, or another domain's.
//! * [`P2mError`]: what is wrong with a pfn, an mfn, or a change.
//! * [`Guest`]: the machine, the map and the kernel's root, for operations.
//! * [`walk()`], [`Walk`]: the page table entries of an address. [`DirectEntries`]: those of the
//!   direct mapping.
//! * [`Window`]: addresses at which the list can grow, and holes cost nothing.
//! * [`Toolstack`], [`FrameList`]: what the guest publishes for save, restore and debugging.
//!
//! # Modules, from the ground up
//! | | |
//! |---|---|
//! | `entry`, `list`, `map` | the meaning of a word, the words in memory, look-ups and changes |
//! | [`runs`], `dump` | the map in runs and numbers, as text and as a picture |
//! | `guest`, `walk`, `direct_map` | the map with its machine, and reading page tables |
//! | `leaves`, [`toolstack`], `frame_list` | the frames of the list, and its other readers |
//! | [`window`] | growth of the list |
//! | [`grants`] | frames shared with other domains, in both directions |
//! | [`audit`], [`kexec`] | whether all of that is true, and whether another kernel may follow |
//!
//! # One word for each pfn
//! The list is flat, in virtual memory. A look-up is a bounds check and a load, at 64 MiB as at a
//! terabyte. It needs no lock: an entry changes by a single store, which takes effect only on the
//! entry that it expects. The length only rises, after the memory behind it. The page tables save
//! what a tree would save: empty pages of the list are one shared page, and tables of such pages
//! are shared, too.
//!
//! Linux tells a hole's kind by *which* shared page is mapped. Its look-ups walk page tables when
//! they meet a hole, and its writers learn of it by a fault. Here the shared page's words say what
//! they are, so no look-up walks and no writer faults. A change of an entry without memory is the
//! error [`P2mError::NotReserved`]. Reserve the memory earlier, where sleeping and failing are
//! allowed.
//!
//! Functions without a *Hypercalls* section make none. The examples run on the model: `TestGuest`
//! is a guest of 16 MiB there (`pv_tests::guest`), and `WindowMachine` one whose map has a window
//! (`pv_tests::window`).
//!
//! # What it assumes
//! The list is the guest's own memory. Entries change by single 8-byte stores, as the toolstack
//! requires when it reads the list (docs/abi.md). One vCPU at a time grows the map; any number read
//! it and change entries.
//!
//! # What it prevents, and what not
//! A stale or foreign M2P answer never becomes a pfn. No look-up, and no allocator that asks
//! [`P2m::own`], takes another domain's frame for memory. Two changes of one entry cannot both
//! succeed. A look-up does not notice a wrong entry of the list; the audit finds it.
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

pub mod audit;
mod direct_map;
mod dump;
mod entry;
mod error;
mod frame_list;
pub mod grants;
mod guest;
pub mod kexec;
mod leaves;
mod list;
mod map;
pub mod runs;
mod sync;
pub mod toolstack;
mod walk;
pub mod window;

pub use direct_map::{DirectEntries, DirectMap, NoDirectEntry};
pub use entry::P2mEntry;
pub use error::{ListError, P2mError};
pub use frame_list::FrameList;
pub use guest::Guest;
pub use leaves::{BuilderList, Leaves};
pub use map::{P2m, Pfns};
pub use toolstack::Toolstack;
pub use walk::{TableEntry, Walk, WalkError, walk};
pub use window::Window;
