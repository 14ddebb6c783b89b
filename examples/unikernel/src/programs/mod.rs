//! The programs: each written against the seam, each ending in a verdict.

mod alias;
mod bench;
mod demo;
mod life;
mod primitives;
mod prove;

use alloc::string::String;
use core::fmt::Display;

use hypercall::{Cpu, Machine};

use crate::guest::Guest;
use crate::report::Verdict;

/// A program, for a machine.
pub(crate) type Program<M> = fn(&mut Guest<'_, M>) -> Verdict;

/// The program called `name`.
///
/// # Errors
/// A sentence with the names that there are.
pub(crate) fn named<M: Machine + Cpu>(name: &str) -> Result<Program<M>, String> {
    match name {
        "demo" => Ok(demo::run),
        "alias" => Ok(alias::run),
        "bench" => Ok(bench::run),
        "primitives" => Ok(primitives::run),
        "prove" => Ok(prove::run),
        _ => Err(alloc::format!(
            "no program is called {name:?}: there are demo, alias, bench, primitives and \
             prove, \
             and to test the harness hang, fault, silent and panic"
        )),
    }
}

/// Turns an error into the sentence of a failed verdict.
trait OrSay<T> {
    /// `what` failed, and why.
    fn or_say(self, what: &str) -> Result<T, String>;
}

impl<T, E: Display> OrSay<T> for Result<T, E> {
    fn or_say(self, what: &str) -> Result<T, String> {
        self.map_err(|error| alloc::format!("{what}: {error}"))
    }
}
