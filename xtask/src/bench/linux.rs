//! Linux beside us: Debian's kernel as dom0 on the same Xen, in the same emulator, with one program
//! of this workspace (`examples/linux`) as its only one. Its balloon is measured as a domU's, which
//! another Linux resizes by `xl mem-set`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::early;
use super::row::{self, Row};
use crate::boot::outcome::Report;
use crate::boot::{Clock, Guest, Host, Line, dom0, domu};
use crate::cargo::cargo;
use crate::initramfs::cpio::Archive;
use crate::paths::{self, HostFolder};
use crate::process::run_captured;
use crate::progress::Step;
use crate::provision::qemu::Qemu;
use crate::provision::{linux, xen};
use crate::release::Release;

/// Linux's only program.
const PACKAGE: &str = "linux-bench";
/// The target of a program that is linked with all it needs.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Memory of Linux: 65,536 pages twice, and what the kernel and its trace need.
const MEMORY_MIB: u32 = 1024;
/// What its kernel is told.
const ARGUMENTS: &str = "console=hvc0 quiet panic=1 norandmaps";
/// What its program is told in a domU; dom0's script knows it as well.
const AS_DOMU: &str = "sized-by-xl";
/// How long it may take, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(900);

/// Returns the rows of one boot.
///
/// # Errors
///
/// This machine lacks something, or Linux or its program fails.
pub(super) fn measure(release: Release) -> Result<Vec<Row>> {
    let folder = HostFolder::open()?;
    let (qemu, xen, linux) = {
        let _lock = folder.lock()?;
        let qemu = Qemu::require(&folder)?;
        (qemu, xen::require(&folder, release)?, linux::require(&folder, release)?)
    };
    let file_system = tempfile::NamedTempFile::new()?;
    fs::write(file_system.path(), archive()?)?;
    let guest = Guest {
        kernel: linux.kernel.clone(),
        arguments: ARGUMENTS.to_owned(),
        module: Some(file_system.path().to_owned()),
        memory_mib: MEMORY_MIB,
        maximum_mib: MEMORY_MIB,
        vcpus: 1,
        limit: LIMIT,
    };
    // One processor: what dom0 runs meanwhile is time that is stolen from the guest, and its clock
    // knows.
    let host = Host { processors: Some(1), ..Host::new(&qemu, xen, Clock::Instructions) };
    let mut rows = boot(&format!("Linux on Xen {release}"), |show| {
        let log = folder.new_log(&format!("linux-{release}-bench"))?;
        dom0::boot(&host, &guest, log, show)
    })?;
    let guest = Guest { arguments: format!("{AS_DOMU} {ARGUMENTS}"), ..guest };
    rows.extend(boot(&format!("Linux as domU on Xen {release}"), |show| {
        let log = folder.new_log(&format!("linux-{release}-bench-domu"))?;
        let mut reports = domu::boot(&host, &linux, &[guest], log, show)?;
        reports.pop().context("one guest, one report")
    })?);
    rows.push(early::measure(&host, &linux, &folder)?);
    Ok(rows)
}

/// Returns the rows of one boot.
fn boot(
    name: &str,
    boot: impl FnOnce(&mut dyn FnMut(Line<'_>)) -> Result<Report>,
) -> Result<Vec<Row>> {
    let step = Step::begin(name);
    let mut rows = row::Reader::default();
    let report = boot(&mut |line| {
        if let Line::Guest(text) = line {
            rows.line(text, &step);
        }
    })?;
    step.vanish();
    if !report.outcome.passed() {
        bail!("{report}");
    }
    rows.end()
}

/// Returns a file system with one program.
fn archive() -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["/dev", "/proc", "/sys", "/trace"] {
        archive.folder(folder);
    }
    archive.device("/dev/console", 5, 1);
    archive.program("/init", &program()?);
    Ok(archive.finish())
}

/// Linux's program, freshly built.
fn program() -> Result<Vec<u8>> {
    let target = paths::target()?;
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--release", "--package", PACKAGE, "--target", TARGET]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").arg("--target-dir").arg(&target);
    let (status, messages) = run_captured(&mut cargo, |_| {})?;
    if !status.success() {
        bail!("Linux's program does not build ({status}):\n{messages}");
    }
    let file = target.join(TARGET).join("release").join(PACKAGE);
    fs::read(&file).with_context(|| format!("reading {}", file.display()))
}
