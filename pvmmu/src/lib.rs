//! Address spaces of a Xen PV guest.
//!
//! A PV guest builds its page tables itself, out of machine frame numbers; Xen checks them before
//! the CPU may walk them, and from then on every change is a request. This crate carries an address
//! space through that life:
//!
//! ```text
//!   Pgd::new ──► Pgd<Loose> ──pin──► Pgd<Pinned> ──load──► running
//!                 map_pages  ◄─unpin─  edit: map, unmap, protect, replace; fork
//!                 (plain stores)       (batches)
//! ```
//!
//! # Main types
//! * [`Pgd`]: its roots and tables; [`Loose`] while they are plain memory, [`Pinned`] while Xen
//!   holds them valid.
//! * [`Guest`](p2m::Guest): the machine, the frame map and the running root, handed to every operation;
//!   [`Tools`] adds the batch, a pool of tables and frames, for changes of a live tree.
//! * [`Edit`]: a section in which changes are pending, sent with as few traps as the batch allows;
//!   [`SMALLEST_BATCH`]: the least that it must hold.
//! * [`SpaceFrames`], [`FrameStack`]: where frames come from and go to; [`Counted`], [`Shares`]:
//!   who shares them after a fork.
//! * [`TablePool`]: empty tables that stay validated. [`cost`]: which way is the cheapest.
//! * [`Flush`], [`Reach`], [`Vcpus`]: what has to be flushed, where, and who runs on what.
//! * [`primitive`]: one entry, by each of the ways that Xen offers. [`audit`]: what is wrong, in
//!   words. [`mapper`]: the `x86_64` crate's own traits.
//! * [`explain`]: why Xen refused, with causes, in the words of `xen-explain`.
//! * [`walk()`], [`Walk`]: what the tables say of an address, level by level.
//! * [`MapError`], [`RangeError`], [`PinError`], [`ForkError`], [`DestroyError`]: what was refused,
//!   of which page or frame, and what is left.
//!
//! The examples run on the model: `Guest` is a guest of 16 MiB there (`pv_tests::guest`), with its
//! memory mapped and free frames at hand; `Guest::with_pinned` is one with an address space.
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

mod access;
pub mod audit;
pub mod cost;
mod destroy;
mod doubt;
mod edit;
mod error;
pub mod explain;
mod flush;
mod fork;
mod frames;
mod hold;
mod leaf;
mod load;
mod loose;
pub mod mapper;
mod marks;
mod obstacles;
mod ops;
mod pages;
mod path;
mod pgd;
mod pin;
mod pool;
pub mod primitive;
mod room;
mod running;
mod tables;
mod walk;

pub use destroy::DestroyError;
pub use edit::{Edit, Presence, Tools};
pub use error::{
    LoadError, MapError, MapFailed, PinError, PinFailure, RangeError, UndoError, UnpinError,
};
pub use flush::{Flush, PAGES_SINGLY, Reach};
pub use fork::{ForkError, ForkFailure};
pub use frames::{Counted, FrameStack, Shares, SpaceFrames};
pub use load::{Vcpus, load_root};
pub use obstacles::{OBSTACLES_MAX, Obstacle, Obstacles};
pub use pages::Pages;
pub use pgd::{Loose, Pgd, Pinned};
pub use pool::{PoolCounts, PoolError, TablePool};
pub use room::{Room, SMALLEST_BATCH};
pub use running::Running;
pub use walk::{Mapped, Mapping};
