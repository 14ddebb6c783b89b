//! Boots real Xen under QEMU, watches its console, judges what happened, and ends QEMU whatever
//! happened.
//!
//! | file | what it does |
//! |---|---|
//! | `machine` | describes the emulated machine, starts QEMU and ends it |
//! | `console` | turns QEMU's output into lines, keeps a log, watches the clock |
//! | `verdict` | the line by which a guest says that it passed or failed |
//! | `panic` | what Xen says when it panics |
//! | `outcome` | everything that can come of a boot, as one clear paragraph each |
//! | `dom0` | boots our guest as dom0 and reads the console |
//! | `domu` | boots a Linux dom0 that creates our guest with xl, and reads the console |

pub(crate) mod dom0;
pub(crate) mod domu;
pub(crate) mod outcome;
pub(crate) mod verdict;

mod console;
mod machine;
mod panic;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use machine::Clock;

use crate::provision::qemu::Qemu;

/// What boots.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The hypervisor's file.
    pub(crate) xen: PathBuf,
    /// What its clock counts.
    pub(crate) clock: Clock,
    /// Its processors, if not one for each virtual CPU of our dom0, or what a Linux dom0 has.
    pub(crate) processors: Option<u32>,
}

/// A guest to run, as dom0 or as domU.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Its kernel.
    pub(crate) kernel: PathBuf,
    /// Its command line: a program and the program's arguments.
    pub(crate) arguments: String,
    /// A file that it gets as boot module.
    pub(crate) module: Option<PathBuf>,
    /// Its memory.
    pub(crate) memory_mib: u32,
    /// Its virtual CPUs.
    pub(crate) vcpus: u32,
    /// How long it may run.
    pub(crate) limit: Duration,
}

/// A line of the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Line<'a> {
    /// Written by the guest.
    Guest(&'a str),
    /// Written by anyone else.
    Other(&'a str),
}
