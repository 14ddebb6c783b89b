//! Random MMU operations whose answers can be compared between machines.
//!
//! A model of Xen is worth what its agreement with Xen is worth. This crate makes long sequences of
//! operations from a seed (valid ones, nearly valid ones, nonsense), applies them to whatever
//! machine it is given, and turns everything that can be observed into words that do not depend on
//! which machine frames the guest happens to have. The same seed on real Xen and on the model must
//! give the same words.
//!
//! # Main types
//! * [`Arena`]: the frames that the operations play with, and a few that they may only point to.
//! * [`Step`], [`Op`]: an operation, as a value and as a line of text, so that a sequence can be
//!   kept, cut and replayed.
//! * [`Generator`]: makes steps from a seed and from what it has seen, so that deep states are
//!   reached.
//! * [`Executor`]: applies steps to a machine and observes.
//! * [`Digest`]: observations folded into one number. [`Coverage`]: how often each operation met
//!   each answer.
//!
//! # What it takes care of
//! The guest survives any sequence: frames of the arena are used for nothing else, their direct
//! mapping is only ever made read-only or writable, and [`Op::CleanUp`] puts everything
//! back, which is itself an observation. Slot 0 of every table is left alone: a table of level 2 to
//! 4 that is refused there forgets its type, one that is refused later does not, and no guest
//! should have to care. A store follows a TLB flush if the direct mapping has changed, since what a
//! stale entry allows is the hardware's affair.
#![no_std]

extern crate alloc;

mod arena;
mod bytes;
mod coverage;
mod execute;
mod generate;
mod observe;
mod op;
mod random;
mod text;

pub use arena::{Arena, ArenaFrame, Landmarks, SLOTS};
pub use coverage::Coverage;
pub use execute::Executor;
pub use generate::Generator;
pub use observe::{Digest, Observation};
pub use op::{Cas, Hold, Link, Op, Step, UpdatePlace, VaPlace, Value, Which};
pub use text::ParseError;
