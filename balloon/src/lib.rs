//! The size of a Xen PV guest: memory given back to Xen and taken again.
//!
//! A toolstack wants the guest to be larger or smaller (`xl mem-set`); the balloon gets it there,
//! step by step. A frame that leaves is wiped, taken out of the direct mapping and every TLB, out
//! of the frame map, and given up. A frame that comes goes the other way. The balloon has no thread
//! and no clock: the caller calls [`Balloon::step`] when it has time, a step does a bounded amount
//! of work, and says what comes next.
//!
//! # Main types
//! * [`Balloon`]: how large the guest is and is to be, and which pfns have no memory meanwhile.
//! * [`BalloonStep`]: what a step did ([`Moved`]), what comes next ([`Next`], [`BalloonObstacle`]),
//!   and where every pfn is ([`Accounts`]).
//! * [`Goal`]: the size asked for, apart from the size aimed at. [`frames_of_kib`] reads a
//!   toolstack's target.
//! * [`StepMemory`], [`StepStorage`]: what a step works with.
//! * [`Reserve`], [`EmptyPfn`]: pfns that never have memory, for grants and other domains' frames.
//!
//! # How to use it
//! Once: [`Balloon::new`], with a bit for each pfn there may ever be. If the guest may grow beyond
//! its size at boot: grow the map (`p2m::Window::grow`, `reserve`) and the direct mapping, then
//! [`Balloon::add_empty`]; set some of the new pfns apart by [`Reserve::new`].
//!
//! Whenever there is a target: [`Balloon::set_target`], which says whether to step. After each
//! [`step`](Balloon::step): [`Next::Again`] means that there is more to do, now or whenever the
//! guest has time; [`Next::Wait`] that something is in the way, what, and for how long it would be
//! in vain to ask again; [`Next::Idle`] that the size is right. There is no error that ends this: a
//! balloon that cannot do what it should says so and does it when it can.
//!
//! The examples run on the model: `Guest` is a guest of 16 MiB there (`pv_tests::guest`).
//!
//! # What it assumes
//! The frame map is right when the balloon is made. Nobody else populates or depopulates pfns that
//! the balloon holds; nobody maps frames that the allocator spares. No step runs across a suspend:
//! between steps the map, the tables and Xen agree, so that any moment between two is a good one.
//!
//! # What it prevents, and what not
//! No failure loses a frame: whatever Xen refuses, each pfn is with the allocator, or held with its
//! memory at Xen, or (if an undo is refused too) set aside until it can be mapped again. Xen's
//! count is asked for after every step and compared ([`Accounts::is_balanced`]). What it cannot
//! prevent it reports: a frame that someone still uses when it is given up stays the guest's until
//! that use ends ([`Accounts::surplus`]).
//!
//! ```
//! # use pv_tests::guest::TestGuest;
//! use balloon::{Balloon, Moved, Next, Wipe, StepStorage};
//!
//! let mut test = TestGuest::new(); // 4096 pages; those that nobody uses are in `test.frames`
//! let mut words = vec![0; 4096 / 64];
//! let (mut balloon, _) = Balloon::new(&test.guest, &mut words, 512, Wipe::Always)?;
//! let mut storage = StepStorage::<256>::new();
//!
//! balloon.set_target(3950);
//! let step = storage.with(|work| balloon.step(&test.guest, &mut test.frames, work));
//! assert_eq!((step.moved, step.next), (Moved::Out(146), Next::Idle));
//! assert!(step.accounts.is_balanced());
//! assert_eq!(step.accounts.xen, Some(3950));
//! # Ok::<(), balloon::BalloonError>(())
//! ```
#![no_std]

mod balloon;
mod deflate;
mod goal;
mod inflate;
mod moves;
mod recover;
mod reserve;
mod set;
mod step;
mod work;

pub use balloon::{Balloon, BalloonError, Retarget, Wipe};
pub use goal::{Goal, Limit, TargetError, frames_of_kib};
pub use reserve::{EmptyPfn, Reserve};
pub use step::{Accounts, BalloonObstacle, BalloonStep, Moved, Next, PAUSE_MAX};
pub use work::{StepMemory, StepStorage};
