//! A generator of operations on page tables, for real Xen and for a model of it.
//!
//! From a seed it makes an endless sequence of operations over an arena of frames: pins and unpins
//! at every level with right and wrong content, links and unlinks, mappings with flags of every
//! kind, frames of others and of nobody, exchanges, balloon steps, batches that fail in the middle,
//! emulated stores. Every answer goes into a record: errno, how much was done, entries read back,
//! M2P. Frames appear in it by their place in the arena, never by number, so the same seed must
//! give the same record on any machine; two records that differ are a mistake of the model's, or of
//! what was believed of Xen.
//!
//! # Main types
//! * [`Arena`], [`ArenaFrame`]: the frames it works on.
//! * [`Prover`]: makes operations, carries them out, keeps the record.
//! * [`Op`]: one operation, as 16 bytes and as a short line of text, to be replayed and left out
//!   one by one.
//! * [`Coverage`]: which operation was answered how, how often.
//!
//! # What it assumes
//! The frames are nobody else's; each is mapped by an L1 entry whose place is known, in a table
//! that stays. The guest has one vCPU, no user mode, and a page-fault handler that knows
//! `hypercall::xen::fault_fixup`.
//!
//! # What it prevents, and what not
//! No sequence of operations hurts the guest that runs it: the arena's frames serve nothing else,
//! and the running root is never changed. Slot 0 of every frame is left alone, as are Xen's slots.
#![cfg_attr(not(test), no_std)]

mod apply;
mod arena;
mod coverage;
mod generate;
mod op;
mod record;
mod renew;
mod trusted;

pub use arena::{Arena, ArenaFrame, FRAMES_MAX, Garbage};
pub use coverage::{Answer, Coverage};
pub use generate::{Prover, Step};
pub use op::{KINDS, Kind, Op, OpError};
pub use record::Record;
