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
mod identity;
mod life;
mod mapper;
mod memory;
mod primitives;
mod prove;
mod publish;
mod rights;
mod spaces;
mod vcpus;

use alloc::string::String;
use core::fmt::Display;

use ::conformance::Target;
use hypercall::Machine;

use crate::direct_map::Boot;
use crate::program::Kernel;
use crate::report::Verdict;

/// A program, for a machine.
pub(crate) type Program<M> = fn(&mut Kernel<'_, M>) -> Verdict;

/// How the program called `name` wants the guest's memory.
pub(crate) fn boot_of(name: &str) -> Boot {
    match name {
        // It asserts what the builder leaves.
        "conformance" => Boot::OnBuilderTables,
        "identity" => Boot::WithIdentity,
        _ => Boot::Whole,
    }
}

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
        "identity" => Ok(identity::run),
        "mapper" => Ok(mapper::run),
        "memory" => Ok(memory::run),
        "primitives" => Ok(primitives::run),
        "rights" => Ok(rights::run),
        "spaces" => Ok(spaces::run),
        "vcpus" => Ok(vcpus::run),
        "prove" => Ok(prove::run),
        "conformance" => Ok(conformance::run),
        "edu" => Ok(dma::edu::run),
        "disk" => Ok(dma::disk::run),
        "net" => Ok(dma::net::run),
        _ => Err(alloc::format!(
            "no program is called {name:?}: there are demo, alias, audit, balloon, bench, disk, \
             dump, edu, flags, foreign, grow, kernel, identity, mapper, memory, net, primitives, \
             prove, rights, spaces, vcpus and conformance, and to test the harness hang, fault, \
             silent and panic"
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

/// Whether the pool has as many frames as at the program's beginning, `free`.
fn all_are_back<M>(kernel: &Kernel<'_, M>, free: usize) -> Result<(), String> {
    match free - kernel.pool.len() {
        0 => Ok(()),
        lost => Err(alloc::format!("{lost} frames were lost")),
    }
}
