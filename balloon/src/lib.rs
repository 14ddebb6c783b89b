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
//! * [`Step`]: what a step did ([`Moved`]), what comes next ([`Next`], [`Obstacle`]), and where
//!   every pfn is ([`Accounts`]).
//! * [`Goal`]: the size asked for, apart from the size aimed at. [`frames_of_kib`] reads a
//!   toolstack's target.
//! * [`Around`], [`FrameSource`], [`Work`], [`WorkStorage`]: what a step works with.
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
//! prevent it reports: a frame that somebody still uses when it is given up stays the guest's until
//! that use ends ([`Accounts::surplus`]).
//!
//! ```
//! use balloon::{FrameSource, Balloon, Moved, Next, Wipe, WorkStorage};
//! use hypercall::{Frame, GuestVa, Pfn, Pte, Slot};
//! use p2m::{DirectEntries, NoDirectEntry, P2m};
//! use xen_model::{BootMapping, Model};
//!
//! /// Finds the entries of the direct mapping; a guest uses `pvmmu::DirectEntries`.
//! struct Direct<'m>(&'m Model, GuestVa);
//!
//! unsafe impl DirectEntries for Direct<'_> {
//!     fn find(&mut self, pfn: Pfn) -> Result<(Slot, Pte), NoDirectEntry> {
//!         let va = self.1.raw() + (pfn.raw() << 12);
//!         self.0.guest().l1_slot(va).ok_or(NoDirectEntry(pfn))
//!     }
//! }
//!
//! struct Free(Vec<Frame>);
//!
//! impl FrameSource for Free {
//!     fn take(&mut self) -> Option<Frame> {
//!         self.0.pop()
//!     }
//!     fn give(&mut self, frame: Frame) {
//!         self.0.push(frame);
//!     }
//! }
//!
//! let model = Model::builder().pages(2048).boot_mapping(BootMapping::AllPages).build()?;
//! let base = GuestVa::new(0xffff_ffff_8000_0000)?;
//! model.guest().set_direct_map(base, 2048);
//! let list = model.guest().built_list();
//! let p2m = unsafe { P2m::adopt(&list) }?;
//! // Behind what the builder made, nothing is used.
//! let first = model.guest().first_free_page().raw();
//! let mut free = Free((first..2048).map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) }).collect());
//!
//! let mut words = vec![0; 2048 / 64];
//! let (mut balloon, _) = Balloon::new((&model, &p2m), &mut words, 512, Wipe::Always)?;
//! let mut storage = WorkStorage::<256>::new();
//! let mut direct = Direct(&model, base);
//!
//! balloon.set_target(1900);
//! let step = storage.with(|work| balloon.step(&test.guest, &mut free, work));
//! assert_eq!((step.moved, step.next), (Moved::Out(148), Next::Idle));
//! assert!(step.accounts.is_balanced());
//! assert_eq!(step.accounts.xen, Some(1900));
//! # Ok::<(), Box<dyn std::error::Error>>(())
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

pub use balloon::{Balloon, BalloonError, NotEmpty, Retarget, Wipe};
pub use goal::{Goal, Limit, TargetError, frames_of_kib};
pub use reserve::{EmptyPfn, NotReturned, Reserve};
pub use step::{Accounts, Moved, Next, Obstacle, PAUSE_MAX, Step};
pub use work::{Work, WorkStorage};
