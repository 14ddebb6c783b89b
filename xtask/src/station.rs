//! Everything that booting guests needs, fetched as it is first needed: QEMU, each release of Xen,
//! a Linux dom0 for it, and our kernel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::boot::outcome::Report;
use crate::boot::{Clock, Guest, Host, Line, dom0, domu};
use crate::cli::Role;
use crate::guest;
use crate::paths::HostFolder;
use crate::provision::linux::{self, Linux};
use crate::provision::qemu::Qemu;
use crate::provision::xen;
use crate::release::Release;

/// A guest to boot, and on what.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    /// The release of Xen.
    pub(crate) release: Release,
    /// The guest's role.
    pub(crate) role: Role,
    /// Its memory.
    pub(crate) memory_mib: u32,
    /// Its virtual CPUs.
    pub(crate) vcpus: u32,
    /// Its command line.
    pub(crate) arguments: String,
    /// Its boot module.
    pub(crate) module: Option<PathBuf>,
    /// How long it may run.
    pub(crate) limit: Duration,
    /// What the machine's clock counts.
    pub(crate) clock: Clock,
}

/// A place to boot guests from.
#[derive(Debug)]
pub(crate) struct Station {
    folder: HostFolder,
    qemu: Qemu,
    kernel: PathBuf,
    hypervisors: BTreeMap<Release, PathBuf>,
    linuxes: BTreeMap<Release, Linux>,
}

impl Station {
    /// Returns a place with QEMU and our kernel, freshly built.
    ///
    /// # Errors
    ///
    /// This machine lacks something, or the kernel does not build.
    pub(crate) fn open() -> Result<Self> {
        let folder = HostFolder::open()?;
        let qemu = {
            let _lock = folder.lock()?;
            Qemu::require(&folder)?
        };
        let kernel = guest::kernel(None)?;
        let (hypervisors, linuxes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { folder, qemu, kernel, hypervisors, linuxes })
    }

    /// Boots a guest, shows its lines to `show`, and judges it.
    ///
    /// # Errors
    ///
    /// This machine lacks something, QEMU cannot be started, or a signal asked us to end.
    pub(crate) fn boot(&mut self, boot: &Boot, mut show: impl FnMut(&str)) -> Result<Report> {
        self.require(boot.release, boot.role)?;
        let xen = self.hypervisors.get(&boot.release).context("Xen was just required")?.clone();
        // A Linux dom0 takes its turns on the guest's processor: instructions are counted in a row.
        let counts = boot.role == Role::Domu && boot.clock == Clock::Instructions;
        let processors = counts.then_some(1);
        let host = Host { processors, ..Host::new(&self.qemu, xen, boot.clock) };
        let guest = Guest {
            kernel: self.kernel.clone(),
            arguments: boot.arguments.clone(),
            module: boot.module.clone(),
            memory_mib: boot.memory_mib,
            maximum_mib: boot.memory_mib,
            vcpus: boot.vcpus,
            limit: boot.limit,
        };
        let program = boot.arguments.split(' ').next().unwrap_or_default();
        let log = self.folder.new_log(&format!("{}-{}-{program}", boot.role, boot.release))?;
        let mut line = |line: Line<'_>| {
            if let Line::Guest(text) = line {
                show(text);
            }
        };
        match boot.role {
            Role::Dom0 => dom0::boot(&host, &guest, log, line),
            Role::Domu => {
                let linux = self.linuxes.get(&boot.release).context("Linux was just required")?;
                let mut reports = domu::boot(&host, linux, &[guest], log, &mut line)?;
                reports.pop().context("one guest, one report")
            }
        }
    }

    /// QEMU's version.
    pub(crate) fn qemu_version(&self) -> &str {
        self.qemu.version()
    }

    fn require(&mut self, release: Release, role: Role) -> Result<()> {
        let _lock = self.folder.lock()?;
        if !self.hypervisors.contains_key(&release) {
            self.hypervisors.insert(release, xen::require(&self.folder, release)?);
        }
        if role == Role::Domu && !self.linuxes.contains_key(&release) {
            self.linuxes.insert(release, linux::require(&self.folder, release)?);
        }
        Ok(())
    }
}

/// Returns the program that runs the guest's programs on the model, freshly built.
///
/// # Errors
///
/// It does not build.
pub(crate) fn model_program() -> Result<PathBuf> {
    let mut cargo = crate::cargo::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", guest::UNIKERNEL]);
    let target = crate::paths::target()?;
    cargo.arg("--target-dir").arg(&target);
    let (status, messages) = crate::process::run_captured(&mut cargo, |_| {})?;
    anyhow::ensure!(status.success(), "the unikernel does not build for this host:\n{messages}");
    Ok(Path::new(&target).join("release").join(guest::UNIKERNEL))
}
