//! Attempts to break the invariants of docs/soundness.md from safe code.
//!
//! What the compiler refuses is in functions whose lines say so: `//~ E0133` stands where exactly
//! that error comes, and no other line has one. A call or an implementation that owes something is
//! inside `owed!` or `promised!`, and what is private inside `hidden!`. The file is compiled
//!
//! * as it is: the duties are taken on, and what is private is left out. All of it compiles, so a
//!   line that fails below fails because of the duty, and for no other reason;
//! * by the first test with `--cfg attack`, without a word of unsafe code, and with `--cfg liar`,
//!   where traits are implemented without a promise (in a crate that does so the compiler does not
//!   look at whoever uses these traits).
//!
//! What the compiler cannot see is refused when it runs: those are tests of the usual kind. They
//! are compiled with `--cfg attack` too, so they are safe code.
#![allow(unexpected_cfgs, reason = "the first test alone sets them")]
#![cfg_attr(attack, forbid(unsafe_code))]
#![cfg_attr(not(attack), expect(unsafe_code, reason = "duties taken: the proof that they are it"))]

/// What only unsafe code may do.
#[cfg(not(attack))]
macro_rules! owed {
    ($call:expr) => {
        // SAFETY: it is not run, or is of a guest that exists only in the model.
        unsafe { $call }
    };
}

/// What only unsafe code may do, tried.
#[cfg(attack)]
macro_rules! owed {
    ($call:expr) => {
        $call
    };
}

/// What is implemented with a promise.
#[cfg(not(any(attack, liar)))]
macro_rules! promised {
    ($($implementation:tt)*) => {
        // SAFETY: what is in this file is not run.
        unsafe $($implementation)*
    };
}

/// What is implemented with a promise, without it.
#[cfg(liar)]
macro_rules! promised {
    ($($implementation:tt)*) => {
        $($implementation)*
    };
}

/// What is implemented with a promise, left out.
#[cfg(attack)]
macro_rules! promised {
    ($($implementation:tt)*) => {};
}

/// What nobody outside may do, left out.
#[cfg(not(attack))]
macro_rules! hidden {
    ($($attempt:tt)*) => {};
}

/// What nobody outside may do, tried.
#[cfg(attack)]
macro_rules! hidden {
    ($($attempt:tt)*) => {
        $($attempt)*
    };
}

mod compiler;
mod devices;
mod frame_map;
mod frames;
mod grants;
mod promises;
mod requests;
mod seam;
mod size;
mod spaces;
mod start;
