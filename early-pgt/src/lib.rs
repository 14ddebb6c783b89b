//! Builds a direct map of all memory from the builder's few megabytes.
//!
//! A PV guest boots on tables that its builder made. They map the kernel, what `start_info` points
//! to, and up to 4 MiB of slack. All other memory is out of reach. To map it, the guest needs a
//! table page for every 2 MiB. It can fill a table only where that is mapped. And once Xen knows a
//! page as a table, no writable entry may map it. Linux follows rules here that are written in
//! comments, and has broken them twice. This crate makes a plan and keeps it.
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
//! 1. [`BootMemory`] describes the memory, and refuses what is impossible: overlaps, tables outside
//!    RAM, a builder that mapped too little. It touches nothing.
//! 2. [`Plan`] decides, from numbers alone, which frames become which tables in how many rounds. A
//!    round takes its tables from the largest run of free frames that is mapped when it begins.
//!    With 128 frames of slack, the first round maps 250 MiB, and those map the next 125 GiB.
//! 3. [`Build::round`] fills the tables of a round while they are loose. Then it sends one list of
//!    updates: first each frame of the round becomes read-only, then the few entries that link them
//!    are set. Xen stops at the first update it refuses, so no frame becomes a table while it is
//!    writable. Then tell the machine how far the mapping reaches.
//! 4. [`Build::finish`] gives every frame that is not a table to an allocator, as tokens, writable.
//! 5. [`replace_tables`] moves the kernel to tables of its own, where only code is executable and
//!    no code is writable. The allocator gets the builder's tables, too.
//!
//! # Why so
//! * *The builder's L1 tables are shared*: the new tree links them as they are. So each frame of
//!   the kernel's mapping keeps exactly one entry, with its protection. One update makes a frame
//!   there a table. And Xen need not validate these tables again.
//! * *Whole trees are linked, not tables.* One update of the root links a new L3 with everything
//!   below it. Xen's time goes into validating L1s, which it does once in any case.
//! * *Rounds go up from pfn 0*, each as far as its buffer reaches: two for up to 125 GiB. If
//!   everything that a round would map is in use (the list of a larger guest, directly behind the
//!   builder's mapping), that run comes last.
//! * *Tables need no tables of their own*: they are in memory that is mapped before the round
//!   begins. Only the order matters.
//! * *No large pages*: Xen refuses them in a guest's tables.
//! * *NX everywhere above the L1s*: nothing is executed through the direct map, whatever an L1
//!   says.
//!
//! # Main types
//! * [`BootMemory`], [`BootRegion`], [`FrameUse`], [`MapPlace`]: the memory at boot;
//!   [`MapPlace::builder_uses`] reads it from `start_info`.
//! * [`mask_rw`], [`UseKind::access`]: what early mappings show read-only, and why.
//! * [`Plan`], [`RoundPlan`], [`PlannedTable`]: the plan.
//! * [`Build`], [`MapExtent`]: the work.
//! * [`replace_tables`], [`OldList`]: the end of the builder's tables.
//! * [`TableBuffer`], [`TableRound`], [`Marks`]: a round for a port that fills its tables itself.
//! * [`PastPgt`]: `mark_rw_past_pgt`, for a port whose page-table code has Linux's shape.
//!
//! Functions without a *Hypercalls* section make none.
//!
//! The examples run on the model: `Booting` is a guest as its builder leaves it
//! (`pv_tests::booting`).
//!
//! # What it assumes
//! A 64-bit PV guest that runs on the builder's tables, on one vCPU. The frame map is adopted
//! (`p2m`). VIRT_BASE is a multiple of 2 MiB, and the direct map has root slots of its own.
//!
//! # What it prevents, and what not
//! A frame is read-only before Xen sees it as a table, and writable when it goes to an allocator.
//! There is no third state, because the frames of a round belong to the round. A refused round is
//! undone and can be tried again. The crate cannot know who else uses memory: [`Build::begin`] is
//! `unsafe`, and takes over all free frames.
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
// The meaning of pfns, the uses of frames, and the access these allow.
mod uses;
// Errors.
mod error;
// The memory at boot, checked.
mod memory;
// The tables of a round, in order.
mod tables;
// The rounds.
mod plan;
// Changes, sent to Xen in runs and undone.
mod changes;
// The table buffer, with rounds.
mod buffer;
// The table buffer, without rounds.
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
