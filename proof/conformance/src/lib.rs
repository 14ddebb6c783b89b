//! What Xen's PV memory management does, as numbered assertions.
//!
//! Each assertion is one function that carries its number in its name, asks a machine for something
//! and compares the answer: the errno, how many elements were done, the entries read back, M2P, and
//! what follows from the answer to a further request. A type count of zero shows in that the frame
//! may then be mapped writable; a reference still held shows in that `XENMEM_exchange` refuses the
//! frame. The same functions run on real Xen and on a model of it. docs/testing-assertions.md lists
//! all numbers.
//!
//! # Main types
//! * [`Env`]: a machine, what the guest was given, and frames to play with.
//! * [`Assertion`]: a number, a name, where it holds, and the function.
//! * [`AssertionOutcome`]: what came of it.
//!
//! # What it takes care of
//! All that Xen reads or writes (lists, counts, structures) lies in frames of the arena and is
//! named by its address in the direct mapping: on a model, Rust's memory is not the guest's. Each
//! assertion begins with frames that are zero, mapped writable once, and of no special type. After
//! it each frame that it used is exchanged for another one: Xen does that only if nothing holds a
//! reference any more, so that clean-up is also a proof of it.
#![no_std]

extern crate alloc;

#[macro_use]
mod check;
#[macro_use]
mod suite;
mod env;
mod errno;
mod group;

pub use check::Check;
pub use env::{Env, Facts};
pub use suite::{Applies, Assertion, AssertionOutcome, assertions, run};

use hypercall::raw::{RawCpu, RawHypercalls};
use hypercall::{Cpu, FrameAccess};

/// What the assertions need of a machine.
pub trait Target: RawHypercalls + RawCpu + FrameAccess + Cpu {}

impl<M: RawHypercalls + RawCpu + FrameAccess + Cpu + ?Sized> Target for M {}
