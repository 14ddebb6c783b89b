//! Address spaces of a Xen PV guest.
//!
//! A PV guest builds its page tables itself, out of machine frame numbers. Xen checks them before
//! the CPU may walk them; from then on every change is a request. This crate carries an address
//! space through that life:
//!
//! ```text
//!   Pgd::new ──► Pgd<Loose> ──pin──► Pgd<Pinned> ──load──► running
//!                            ◄─unpin─
//!                 map, unmap, protect, replace, ... in both
//!                 (plain stores)       (batches: edit; fork)
//! ```
//!
//! # Main types
//! * [`Pgd`]: an address space; [`Loose`] while its tables are plain memory, [`Pinned`] while Xen
//!   keeps them valid. Its operations ([`Pgd::map`] and so on) are the same in either [`State`].
//! * [`Guest`](p2m::Guest): the machine, the frame map and the running root. [`Tools`]: the guest
//!   and the frames; for changes of a live tree also a batch, and perhaps a pool of tables.
//! * [`Edit`]: a section that collects changes and sends them with as few traps as the batch
//!   allows; [`Room::SMALLEST`]: the least room that a batch must have.
//! * [`SpaceFrames`], [`FrameStack`]: the source of frames; [`Shares`]: the counts of frames shared
//!   after a fork; [`ForeignFrames`]: the owners of frames that are not the guest's.
//! * [`TablePool`]: empty tables that stay validated, each a [`PooledTable`].
//! * [`cost`]: the cheapest of several ways.
//! * [`flush`]: what to flush, and where; [`Vcpus`]: which vCPU runs on what.
//! * [`primitive`]: one entry, by each of the ways that Xen offers. [`audit`]: what is wrong, in
//!   words. [`mapper`]: the `x86_64` crate's own traits.
//! * [`explain`]: why Xen refused, with causes, in the words of `xen-explain`.
//! * [`MapError`], [`RangeError`], [`PinError`], [`ForkError`], [`DestroyError`]: what was refused,
//!   for which page or frame, and what is left. [`obstacles`]: what is in the way of a table.
//!
//! Functions without a *Hypercalls* section make none. The examples run on the model: `TestGuest`
//! is a guest of 16 MiB there (`pv_tests::guest`), with its memory mapped and free frames at hand;
//! `TestGuest::with_pinned` makes an address space, too.
//!
//! # What it assumes
//! The direct mapping under the running root has every frame that serves as a table. Pages are of
//! 4 KiB, the only ones that Xen grants a PV guest. All address spaces share the kernel half (slots
//! 272 to 511 of the root); only the user half, below 2^47, is an address space's own.
//!
//! # What it prevents, and what not
//! By type, a tree is stored into only while it is loose, and loaded only while it is pinned. A
//! refused batch is undone, and the value comes back in the error, which also says how many pages
//! of a long run are done. A frame is in one place at a time: [`Frame`](hypercall::Frame) moves
//! into the mapping and out of it. Loading is `unsafe`, and so is ending the address space that
//! runs.
#![cfg_attr(not(test), no_std)]

// From the ground up: a module uses those above it.

// The cost of each way to change a table.
pub mod cost;
// Marks of this crate in entries.
mod marks;
// Extended operations without a batch.
mod ops;
// What to flush, and where.
pub mod flush;
// The room that a batch must have.
mod room;
// The source of frames, and who shares them.
mod frames;
// What a page's entry meant, once it is gone.
mod leaf;
// The way from a root to an L1 table.
mod path;
// Reading the tables of a tree.
mod tables;
// Errors of a tree.
mod error;
// What a refused undo left.
mod doubt;
// The roots of an address space and its two states.
mod pgd;
// Obstacles to a table.
pub mod obstacles;
// One entry, by each of the ways that Xen offers.
pub mod primitive;
// Errors of a mapping.
mod map_error;
// Runs of pages.
mod pages;
// Who counts the shares of an address space.
mod counted;
// Changes of entries.
mod entries;
// Plain stores into tables that nobody else sees.
mod store;
// The direct mapping of tables.
mod access;
// Repairs of what a refused undo left.
mod put_right;
// Tables that are pinned by themselves.
mod hold;
// Pinning and unpinning.
mod pin;
// Stacks of frames, and of tables, in the caller's memory.
mod stack;
// Empty tables that stay validated.
mod pool;
// The end of loose tables.
mod teardown;
// The root that a vCPU runs on.
mod running;
// The vCPUs of each address space.
mod vcpus;
// Running on an address space.
mod load;
// What operations on an address space work with.
mod tools;
// Operations on an address space, loose or live.
mod verbs;
// Address spaces under construction.
mod loose;
// Changes of a live address space.
mod edit;
// The flags of one live page, at once.
mod set_flags;
// A second address space over the same frames.
mod fork;
// The end of an address space.
mod destroy;
// What is mapped.
mod walk;
// What is wrong with the tables, in words.
pub mod audit;
// Why Xen refused, in words.
pub mod explain;
// The `x86_64` crate's traits.
pub mod mapper;

pub use destroy::DestroyError;
pub use edit::Edit;
pub use error::PinFailure;
pub use fork::{ForkError, ForkFailure};
pub use frames::{ForeignFrames, Shares, SpaceFrames};
pub use load::{LoadError, load_root};
pub use map_error::{MapError, RangeError};
pub use pages::Pages;
pub use pgd::{Loose, Pgd, Pinned};
pub use pin::PinError;
pub use pool::{PoolCounts, PoolError, TablePool};
pub use room::Room;
pub use running::Running;
pub use stack::{FrameStack, PooledTable};
pub use tools::{Presence, Tools};
pub use vcpus::Vcpus;
pub use verbs::State;
pub use walk::{Mapped, Mapping};
