//! The programs: each written against the seam, each ending in a verdict.

mod alias;
mod audit;
mod balloon;
mod bench;
mod conformance;
mod demo;
mod dma;
mod dump;
mod extend;
mod flags;
mod foreign;
mod grow;
mod guest;
mod life;
mod mapper;
mod memory;
mod primitives;
mod prove;
mod publish;
mod spaces;
mod vcpus;

use alloc::string::String;
use core::fmt::Display;

use ::conformance::Target;
use hypercall::Machine;

use crate::guest::Guest;
use crate::report::Verdict;

/// A program, for a machine.
pub(crate) type Program<M> = fn(&mut Guest<'_, M>) -> Verdict;

/// The program called `name`.
///
/// # Errors
/// A sentence with the names that there are.
pub(crate) fn named<M: Machine + Target>(name: &str) -> Result<Program<M>, String> {
    match name {
        "demo" => Ok(demo::run),
        "alias" => Ok(alias::run),
        "audit" => Ok(audit::run),
        "balloon" => Ok(balloon::run),
        "dump" => Ok(dump::run),
        "flags" => Ok(flags::run),
        "foreign" => Ok(foreign::run),
        "grow" => Ok(grow::run),
        "bench" => Ok(bench::run),
        "guest" => Ok(guest::run),
        "mapper" => Ok(mapper::run),
        "memory" => Ok(memory::run),
        "primitives" => Ok(primitives::run),
        "spaces" => Ok(spaces::run),
        "vcpus" => Ok(vcpus::run),
        "prove" => Ok(prove::run),
        "conformance" => Ok(conformance::run),
        "edu" => Ok(dma::edu::run),
        "disk" => Ok(dma::disk::run),
        "net" => Ok(dma::net::run),
        _ => Err(alloc::format!(
            "no program is called {name:?}: there are demo, alias, audit, balloon, bench, disk, \
             dump, edu, flags, foreign, grow, guest, mapper, memory, net, primitives, prove, \
             spaces, vcpus and conformance, and to test the harness hang, fault, silent and panic"
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
