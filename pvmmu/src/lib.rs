//! Address spaces of a Xen PV guest.
//!
//! A PV guest builds its page tables itself, out of machine frame numbers; Xen checks them before
//! the CPU may walk them, and from then on every change is a request. This crate carries an address
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
//! * [`Pgd`]: its roots and tables; [`Loose`] while they are plain memory, [`Pinned`] while Xen
//!   keeps them valid. What is done to it ([`Pgd::map`] and so on) is called the same in either
//!   [`State`].
//! * [`Guest`](p2m::Guest): the machine, the frame map and the running root. [`Tools`]: what
//!   operations work with; beside the guest the frames and, for changes of a live tree, a batch
//!   and a pool of tables.
//! * [`Edit`]: a section in which changes are pending, sent with as few traps as the batch allows;
//!   [`Room::SMALLEST`]: the least that it must hold.
//! * [`SpaceFrames`], [`FrameStack`]: where frames come from and go to; [`Shares`]: who shares them
//!   after a fork; [`ForeignFrames`]: who has those that are not the guest's own.
//! * [`TablePool`]: empty tables that stay validated. [`cost`]: which way is the cheapest.
//! * [`flush`]: what has to be flushed, and where; [`Vcpus`]: who runs on what.
//! * [`primitive`]: one entry, by each of the ways that Xen offers. [`audit`]: what is wrong, in
//!   words. [`mapper`]: the `x86_64` crate's own traits.
//! * [`explain`]: why Xen refused, with causes, in the words of `xen-explain`.
//! * [`walk()`](p2m::walk()), [`Walk`](p2m::Walk): what the tables say of an address, level by
//!   level.
//! * [`MapError`], [`RangeError`], [`PinError`], [`ForkError`], [`DestroyError`]: what was refused,
//!   of which page or frame, and what is left. [`obstacles`]: what stands in the way of a table.
//!
//! The examples run on the model: `TestGuest` is a guest of 16 MiB there (`pv_tests::guest`), with
//! its memory mapped and free frames at hand; `TestGuest::with_pinned` makes an address space, too.
//!
//! # What it assumes
//! A direct mapping under the running root of every frame that serves as a table; 4 KiB pages, the
//! only ones Xen grants a PV guest; a kernel half (slots 272 to 511 of the root) that all address
//! spaces share. Only the user half, below 2^47, is an address space's own.
//!
//! # What it prevents, and what not
//! A tree is stored into only while it is loose, and loaded only while it is pinned: both are
//! types. A refused batch is undone, and the value comes back inside the error; of a long run the
//! error says how many pages are done. A frame is in one place at a time:
//! [`Frame`](hypercall::Frame) moves into the mapping and out of it. Loading is `unsafe`, and so is
//! whatever ends the address space that runs.
#![cfg_attr(not(test), no_std)]

// From the ground up: a module uses those above it.

// What the ways to change a table cost.
pub mod cost;
// What this crate notes in entries.
mod marks;
// Extended operations without a batch.
mod ops;
// What has to be flushed, and where.
pub mod flush;
// How much room a batch must have.
mod room;
// Where frames come from and go to, and who shares them.
mod frames;
// What a page's entry stood for, once it is gone.
mod leaf;
// The way from a root to an L1 table.
mod path;
// Reading the tables of a tree.
mod tables;
// What can go wrong with a tree as a whole.
mod error;
// What a refused undo has left.
mod doubt;
// The roots of an address space and its two states.
mod pgd;
// What stands in the way of a table.
pub mod obstacles;
// One entry, by each of the ways that Xen offers.
pub mod primitive;
// What can go wrong with a mapping.
mod map_error;
// Runs of pages.
mod pages;
// What entries become.
mod entries;
// Plain stores into tables that nobody else sees.
mod store;
// The direct mapping of tables.
mod access;
// How what a refused undo has left is put right.
mod put_right;
// Tables that are pinned by themselves.
mod hold;
// A loose tree is pinned, and unpinned.
mod pin;
// Empty tables that stay validated.
mod pool;
// The end of loose tables.
mod teardown;
// Which root a vCPU runs on.
mod running;
// Which vCPU runs on which address space.
mod vcpus;
// Running on an address space.
mod load;
// What operations on an address space work with.
mod tools;
// What is done to an address space, loose or live.
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
pub use frames::{ForeignFrames, FrameStack, Shares, SpaceFrames};
pub use load::{LoadError, load_root};
pub use map_error::{MapError, RangeError};
pub use pages::Pages;
pub use pgd::{Loose, Pgd, Pinned};
pub use pin::PinError;
pub use pool::{PoolCounts, PoolError, TablePool};
pub use room::Room;
pub use running::Running;
pub use tools::{Presence, Tools};
pub use vcpus::Vcpus;
pub use verbs::State;
pub use walk::{Mapped, Mapping};
