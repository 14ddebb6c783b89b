//! From the builder's few megabytes to a direct map of all memory.
//!
//! A PV guest boots on tables that its builder made: they map the kernel, what `start_info` speaks
//! of, and up to 4 MiB of slack. All other memory exists and cannot be touched. To map it the guest
//! needs tables, one page for every 2 MiB; a table can only be filled where it is mapped; and once
//! Xen knows it as a table, no writable entry for it may exist anywhere. Linux solves this with
//! rules that live in comments and were broken twice. Here it is a plan, and a bracket.
//!
//! # The story
//! ```text
//!  root ─► builder's L3 ─► L2 ─► L1 ──┬──► pfn 0 … image, list, start_info, tables, slack
//!   │       (VIRT_BASE)               │                                             │
//!   │                                 │ the builder's L1s,     [start … end … top) ◄┘
//!   └────► new L3 ───────► L2 ─┬──────┘ shared                  │   table buffer, round 1
//!         (direct map)         ├─► new L1 ─► the next 2 MiB ◄───┘   filled by plain stores,
//!                              ├─► new L1 ─► …                      read-only, linked:
//!                              └─► …         [start … end … top)    one hypercall
//!                                             round 2: from what round 1 mapped
//! ```
//!
//! 1. [`BootMemory`] says what is where, and refuses what cannot be: overlaps, tables outside RAM,
//!    a builder that mapped too little. Nothing has been touched.
//! 2. [`Plan`] decides, from numbers alone, which frames become which tables in how many rounds. A
//!    round takes its tables from the largest run of free frames that is mapped when it begins.
//!    With 128 frames of slack the first round maps 250 MiB, and those map the next 125 GiB.
//! 3. [`Build::round`] fills the tables of a round while they are loose, and then sends one list of
//!    updates: first each frame of the round becomes read-only, then the few entries that link them
//!    are set. Xen works the list in order and stops at what it refuses, so there is no table
//!    before its frame is read-only. Then the machine is told how far the mapping reaches.
//! 4. [`Build::finish`] gives every frame that is no table to an allocator, as tokens, writable.
//! 5. [`replace_tables`] puts the kernel on tables of its own, which let nothing but code be
//!    executed and no code be written, and gives the builder's to the allocator too.
//!
//! # Why so
//! * *The builder's L1 tables are shared*, hung into the new tree as they are. So each frame of the
//!   kernel's mapping keeps exactly one entry, with the protection it has; a frame there can become
//!   a table by one update; and Xen need not validate these tables again.
//! * *Whole trees are linked, not tables.* A new L3 goes in with everything below it by one update
//!   of the root. Validating the L1s is what Xen takes time for, and that is done once in any case.
//! * *Rounds go up from pfn 0*, each as far as its buffer reaches: two for up to 125 GiB. If all
//!   that a round would map is in use (the list of a larger guest, directly after the builder's
//!   mapping), that run is left to the end.
//! * *Tables need no tables of their own*: they lie in memory that is mapped before the round
//!   begins, so what has to be solved is only the order.
//! * *No large pages*: Xen refuses them in a guest's tables.
//! * *NX everywhere above the L1s*: nothing is executed through the direct map, whatever an L1
//!   says.
//!
//! # Main types
//! * [`BootMemory`], [`BootRegion`], [`FrameUse`], [`MapPlace`]: what is known at boot;
//!   [`MapPlace::builder_uses`] reads it from `start_info`.
//! * [`mask_rw`], [`UseKind::access`]: what early mappings show read-only, and why.
//! * [`Plan`], [`RoundPlan`], [`PlannedTable`]: what will be done.
//! * [`Build`], [`MapExtent`]: doing it.
//! * [`replace_tables`], [`OldList`]: the end of what the builder made.
//! * [`TableBuffer`], [`TableRound`], [`Marks`]: the bracket around a round, for a port that fills
//!   its tables itself.
//! * [`PastPgt`]: `mark_rw_past_pgt`, for a port that has Linux's shape and no bracket.
//!
//! The examples run on the model: `Booting` is a guest as its builder leaves it
//! (`pv_tests::booting`).
//!
//! # What it assumes
//! A 64-bit PV guest that runs on the builder's tables, on one vCPU. The frame map is adopted
//! (`p2m`). VIRT_BASE is a multiple of 2 MiB, and the direct map has root slots of its own.
//!
//! # What it prevents, and what not
//! A frame is read-only before Xen first sees it as a table, and writable when it is handed on;
//! there is no third state, since the frames of a round belong to the round. A refused round is
//! undone, and can be tried again. What it cannot know is who else uses memory: beginning a build
//! is `unsafe`, and hands over all that is free.
//!
//! ```
//! use early_pgt::{BootMemory, FrameUse, MapPlace, BootRegion, Plan, RegionKind, UseKind};
//! use hypercall::{GuestVa, Pfn};
//! use p2m::Pfns;
//!
//! let pfns = |start, count| Pfns::new(Pfn::new(start), count);
//! // 256 MiB, of which the builder mapped 4; the kernel and the builder's tables are in there.
//! let regions = [BootRegion { pfns: pfns(0, 0x1_0000), kind: RegionKind::Ram }];
//! let uses = [
//!     FrameUse { pfns: pfns(0x100, 0x200), kind: UseKind::KernelData },
//!     FrameUse { pfns: pfns(0x300, 5), kind: UseKind::BuilderTables },
//! ];
//! let place = MapPlace {
//!     kernel: GuestVa::new(0xffff_ffff_8000_0000)?,
//!     kernel_pages: 0x400,
//!     direct_map: GuestVa::new(0xffff_8800_0000_0000)?,
//! };
//! let plan = Plan::new(&BootMemory::new(&regions, &uses, place)?)?;
//! // 126 L1 tables besides the builder's two, one L2, one L3.
//! assert_eq!((plan.rounds().len(), plan.tables()), (1, 128));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), no_std)]

// From the ground up: a module uses those above it.

// Arithmetic on runs of pfns.
mod spans;
// What pfns stand for, what frames are used for, and which access that allows.
mod uses;
// What can go wrong.
mod error;
// What is known of the memory, checked.
mod memory;
// The tables of a round, one after the other.
mod tables;
// The rounds.
mod plan;
// Runs of changes, sent to Xen and taken back.
mod changes;
// The table buffer and its bracket.
mod buffer;
// The table buffer without a bracket.
mod past;
// The direct map, round by round.
mod build;
// The kernel's own tables in place of the builder's.
mod replace;

pub use buffer::{Marks, TableBuffer, TableRound};
pub use build::{Build, MapExtent};
pub use changes::{Change, set_access};
pub use error::{EarlyError, ReplaceError, RoundError};
pub use memory::{BootMemory, MapPlace};
pub use past::PastPgt;
pub use plan::Plan;
pub use replace::{Replaced, replace_tables};
pub use tables::{PlannedTable, RoundPlan};
pub use uses::{Access, BootRegion, FrameUse, OldList, RegionKind, UseKind, mask_rw};
