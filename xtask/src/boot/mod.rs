//! Boots real Xen under QEMU, watches its console, judges what happened, and ends QEMU whatever
//! happened.
//!
//! | file | what it does |
//! |---|---|
//! | `device` | devices that the machine may have besides |
//! | `machine` | describes the emulated machine, starts QEMU and ends it |
//! | `console` | turns QEMU's output into lines, keeps a log, watches the clock |
//! | `verdict` | the line by which a guest says that it passed or failed |
//! | `panic` | what Xen says when it panics |
//! | `outcome` | everything that can come of a boot, as one clear paragraph each |
//! | `dom0` | boots our guest as dom0 and reads the console |
//! | `domu` | boots a Linux dom0 that creates our guest with xl, and reads the console |
//! | `remote` | runs our guest on another machine's dom0, by ssh |
//! | `rehearsal` | an emulated machine to try that with |

pub(crate) mod dom0;
pub(crate) mod domu;
pub(crate) mod outcome;
pub(crate) mod rehearsal;
pub(crate) mod remote;
pub(crate) mod verdict;

mod console;
mod device;
mod machine;
mod panic;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use device::Device;
pub(crate) use machine::Clock;

use anyhow::Result;

use crate::provision::linux::Linux;
use crate::provision::qemu::Qemu;
use outcome::Report;
use remote::Remote;

/// What boots.
#[derive(Clone, Debug)]
pub(crate) struct Host<'a> {
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The hypervisor's file.
    pub(crate) xen: PathBuf,
    /// What its clock counts.
    pub(crate) clock: Clock,
    /// The model of its CPU as QEMU names it, if not the usual one.
    pub(crate) cpu: Option<String>,
    /// Its processors, if not one for each virtual CPU of our dom0, or what a Linux dom0 has.
    pub(crate) processors: Option<u32>,
    /// What it has besides.
    pub(crate) devices: Vec<Device>,
}

impl<'a> Host<'a> {
    /// Returns the usual machine.
    pub(crate) const fn new(qemu: &'a Qemu, xen: PathBuf, clock: Clock) -> Self {
        Self { qemu, xen, clock, cpu: None, processors: None, devices: Vec::new() }
    }
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
    /// What it may grow to, as domU.
    pub(crate) maximum_mib: u32,
    /// Its virtual CPUs.
    pub(crate) vcpus: u32,
    /// How long it may run.
    pub(crate) limit: Duration,
}

/// Where guests are created with xl.
#[derive(Debug)]
pub(crate) enum Dom0<'a> {
    /// A Linux dom0 that boots for them.
    Emulated(&'a Host<'a>, &'a Linux),
    /// A dom0 that runs already.
    Remote(&'a Remote),
}

impl Dom0<'_> {
    /// Runs guests, one after the other, and judges each. `show` gets every line.
    ///
    /// # Errors
    ///
    /// The dom0 cannot be started or reached, or a signal asked us to end.
    pub(crate) fn run(
        &self,
        guests: &[Guest],
        log: PathBuf,
        show: impl FnMut(Line<'_>),
    ) -> Result<Vec<Report>> {
        match self {
            Self::Emulated(host, linux) => domu::boot(host, linux, guests, log, show),
            Self::Remote(remote) => remote.run(guests, log, show),
        }
    }
}

impl Guest {
    /// Returns whether it lives under the toolstack until that ends it: the words behind its
    /// program say what the toolstack does to it (`dom0_session.sh`).
    pub(crate) fn lives_on(&self) -> bool {
        self.arguments.split_whitespace().next() == Some("guest")
    }
}

/// A line of the console.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Line<'a> {
    /// Written by the guest.
    Guest(&'a str),
    /// Written by anyone else.
    Other(&'a str),
}
