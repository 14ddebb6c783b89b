//! Fetches what the domU role needs besides Xen: a Linux kernel to be dom0, a shell for it, and for
//! each release of Xen the toolstack of the very same release, as the file system dom0 starts with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::apt::{self, Apt};
use super::{missing, xen};
use crate::initramfs::cpio::Archive;
use crate::initramfs::libraries::{self, LOADER};
use crate::paths::{HostFolder, make_folder};
use crate::progress::{Step, step};
use crate::release::Release;

/// Release of Debian whose kernel is dom0, whatever the release of Xen.
const KERNEL_SUITE: &str = "bookworm";

/// Raise it whenever the file system's content changes, so that cached ones are made again.
const FILE_SYSTEM_VERSION: u32 = 3;

/// Kernel modules that the toolstack talks to Xen through.
pub(crate) const MODULES: [&str; 5] =
    ["xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs"];

/// Drivers of the machine that dom0 has besides: a network card, to be reached by ssh.
const DRIVERS: [&str; 1] = ["drivers/net/ethernet/intel/e1000/e1000"];

/// Programs of the toolstack that dom0 has.
const TOOLS: [&str; 9] = [
    "libxl-save-helper",
    "xen-init-dom0",
    "xen-mfndump",
    "xenconsole",
    "xenconsoled",
    "xenctx",
    "xenstored",
    "xentrace",
    "xl",
];

/// The parts of a Linux dom0.
#[derive(Debug)]
pub(crate) struct Linux {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// A file system with everything but a script to run and a guest.
    pub(crate) file_system: PathBuf,
}

/// Returns the parts for one release of Xen, fetched if they are not there yet.
///
/// # Errors
///
/// They cannot be fetched: the message says why.
pub(crate) fn require(host: &HostFolder, release: Release) -> Result<Linux> {
    fetch(host, release).map_err(|reason| {
        let what = format!("A Linux dom0 with the toolstack of Xen {release}");
        missing(&what, "Run this", &reason)
    })
}

fn fetch(host: &HostFolder, release: Release) -> Result<Linux> {
    let kernel_folder = host.join("linux-v2");
    if !kernel_folder.is_dir() {
        step("Linux for dom0 from Debian bookworm", |step| {
            let new = host.temporary()?;
            fetch_kernel(host, new.path(), step)?;
            fs::rename(new.path().join("linux"), &kernel_folder).context("putting it in place")
        })?;
    }
    let file_system = host.join(format!("dom0-{release}-v{FILE_SYSTEM_VERSION}.cpio"));
    if !file_system.is_file() {
        let suite = xen::suite(release);
        step(&format!("toolstack of Xen {release} from Debian {suite}"), |step| {
            let apt = Apt::open(host, suite, step)?;
            let xen = format!("xen-utils-{release}");
            let wanted = [&xen, "xenstore-utils", "dropbear-bin"];
            let packages = apt.download_with_dependencies(&wanted, step)?;
            let root = host.temporary()?;
            for (count, package) in packages.iter().enumerate() {
                step.at(format!("unpacking {} of {}", count + 1, packages.len()));
                apt::unpack(package, root.path(), &[])?;
                fs::remove_file(package)?;
            }
            step.at("making dom0's file system");
            let archive = file_system_of(root.path(), release, &kernel_folder)?;
            let whole = root.path().join("file-system");
            fs::write(&whole, archive)?;
            fs::rename(whole, &file_system).context("putting it in place")
        })?;
    }
    Ok(Linux { kernel: kernel_folder.join("vmlinuz"), file_system })
}

/// Leaves a folder `linux` with kernel, modules and busybox in `folder`.
fn fetch_kernel(host: &HostFolder, folder: &Path, step: &Step) -> Result<()> {
    let apt = Apt::open(host, KERNEL_SUITE, step)?;
    let linux = folder.join("linux");
    make_folder(&linux)?;
    let busybox = apt.download("busybox-static", folder, step)?;
    apt::unpack(&busybox, folder, &["./bin/busybox"])?;
    fs::rename(folder.join("bin/busybox"), linux.join("busybox"))?;
    // The name of the newest kernel changes; this package always depends on it.
    let name = apt.first_dependency("linux-image-amd64")?;
    let package = apt.download(&name, folder, step)?;
    let version = name.strip_prefix("linux-image-").unwrap_or(&name);
    let kernel = format!("./boot/vmlinuz-{version}");
    let modules = MODULES.iter().chain(&DRIVERS).map(|module| format!("*/{module}.ko"));
    let modules: Vec<String> = modules.collect();
    let mut patterns: Vec<&str> = modules.iter().map(String::as_str).collect();
    patterns.push(&kernel);
    step.at("unpacking the kernel");
    apt::unpack(&package, folder, &patterns)?;
    fs::rename(folder.join(&kernel), linux.join("vmlinuz"))?;
    let drivers = folder.join(format!("lib/modules/{version}/kernel/drivers/xen"));
    for module in MODULES {
        let file = format!("{module}.ko");
        let inside = if module == "xenfs" { drivers.join("xenfs") } else { drivers.clone() };
        fs::rename(inside.join(&file), linux.join(&file))
            .with_context(|| format!("the kernel's package has no module {module}"))?;
    }
    let kernel_modules = folder.join(format!("lib/modules/{version}/kernel"));
    for driver in DRIVERS {
        let from = kernel_modules.join(format!("{driver}.ko"));
        fs::rename(&from, linux.join(format!("{}.ko", file_name(driver))))
            .with_context(|| format!("the kernel's package has no driver {driver}"))?;
    }
    Ok(())
}

/// Returns the last part of a path in the kernel's tree.
fn file_name(driver: &str) -> &str {
    driver.rsplit('/').next().unwrap_or(driver)
}

/// Returns the archive with everything but `/init`.
fn file_system_of(root: &Path, release: Release, linux: &Path) -> Result<Vec<u8>> {
    let read =
        |file: PathBuf| fs::read(&file).with_context(|| format!("reading {}", file.display()));
    let tools_folder = format!("usr/lib/xen-{release}/bin");
    let mut archive = Archive::default();
    for folder in [
        "/bin",
        "/dev",
        "/etc",
        "/lib",
        "/lib64",
        "/lib/x86_64-linux-gnu",
        "/modules",
        "/proc",
        "/pvmmu",
        "/run",
        "/sys",
        "/tmp",
        "/usr",
        "/usr/lib",
        "/var",
        "/var/lib",
        "/var/lib/xen",
        "/var/lib/xenstored",
        "/var/lock",
        "/var/log",
        "/var/log/xen",
    ] {
        archive.folder(folder);
    }
    archive.folder(&format!("/usr/lib/xen-{release}"));
    archive.folder(&tools_folder);
    archive.link("/tools", &tools_folder);
    archive.link("/var/run", "/run");
    archive.device("/dev/console", 5, 1);
    archive.program("/bin/busybox", &read(linux.join("busybox"))?);
    // It makes its other names itself.
    archive.link("/bin/sh", "busybox");
    for module in MODULES.into_iter().chain(DRIVERS.map(file_name)) {
        let file = format!("{module}.ko");
        archive.file(&format!("/modules/{file}"), &read(linux.join(&file))?);
    }
    let mut programs = Vec::new();
    for tool in TOOLS {
        let program = read(root.join(&tools_folder).join(tool))?;
        archive.program(&format!("/{tools_folder}/{tool}"), &program);
        programs.push(program);
    }
    // One program with many names.
    let xenstore = read(root.join("usr/bin/xenstore"))?;
    archive.program(&format!("/{tools_folder}/xenstore"), &xenstore);
    programs.push(xenstore);
    let server = read(root.join("usr/sbin/dropbear"))?;
    archive.program(&format!("/{tools_folder}/dropbear"), &server);
    programs.push(server);
    for (name, library) in libraries::closure(root, &programs)? {
        let folder = if name == LOADER { "/lib64" } else { "/lib/x86_64-linux-gnu" };
        archive.program(&format!("{folder}/{name}"), &library);
    }
    Ok(archive.finish())
}
