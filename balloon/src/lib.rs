//! Changes the size of a Xen PV guest: gives memory back to Xen and takes it again.
//!
//! A toolstack wants the guest to be larger or smaller (`xl mem-set`). The balloon gets it there
//! step by step. It wipes a frame that leaves, removes it from the direct mapping, every TLB and
//! the frame map, and gives it to Xen. A frame that arrives goes the other way. The balloon has no
//! thread and no clock: the caller calls [`Balloon::step`] when it has time. A step does a bounded
//! amount of work and says what to do next.
//!
//! # Main types
//! * [`Balloon`]: the size of the guest, its goal, and the pfns that have no memory meanwhile.
//! * [`BalloonStep`]: what a step did ([`Moved`]), what comes next ([`Next`], [`BalloonObstacle`]),
//!   and the state of all pfns ([`Accounts`]).
//! * [`Goal`]: the size asked for, apart from the size aimed at. [`frames_of_kib`] reads a
//!   toolstack's target.
//! * [`StepMemory`], [`StepStorage`]: what a step works with.
//! * [`Reserve`], [`EmptyPfn`]: pfns that never have memory, for grants and other domains' frames.
//!
//! # How to use it
//! Once: [`Balloon::new`], with a bit for each pfn the guest may ever have. To let the guest grow
//! beyond its size at boot, grow the map (`p2m::Window::grow`, `reserve`) and the direct mapping,
//! then call [`Balloon::add_empty`]. Set some of the new pfns apart with [`Reserve::new`].
//!
//! For each target: [`Balloon::set_target`], which says whether to step. After each
//! [`step`](Balloon::step), [`Next::Again`] asks for another when the guest has time.
//! [`Next::Wait`] names an obstacle and how long to wait. [`Next::Idle`] means that the size is
//! right. No obstacle ends the balloon: it goes on as soon as it can.
//!
//! Functions without a *Hypercalls* section make none.
//!
//! The examples run on the model: `TestGuest` is a guest of 16 MiB there (`pv_tests::guest`).
//!
//! # What it assumes
//! The frame map is right when the balloon is made. Nobody else populates or depopulates the
//! balloon's pfns. Nobody maps frames that the allocator spares. No step runs across a suspend;
//! between two steps a suspend is safe, because the map, the tables and Xen agree.
//!
//! # What it prevents, and what not
//! No failure loses a frame. Whatever Xen refuses, each pfn is with the allocator, or in the
//! balloon with its memory at Xen, or set aside after a refused undo until it can be mapped again.
//! Each step compares its accounts with Xen's count ([`Accounts::is_balanced`]). A frame that
//! someone still uses when it leaves stays the guest's until that use ends; the balloon cannot
//! prevent that, but reports it ([`Accounts::surplus`]).
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
