//! Fetches a release of Xen from the release of Debian that has it. QEMU loads it as a multiboot
//! kernel, which must not be compressed.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use flate2::read::GzDecoder;

use super::apt::{self, Apt};
use super::missing;
use crate::paths::HostFolder;
use crate::progress::step;
use crate::release::Release;

/// Returns the release of Debian that has this release of Xen.
pub(crate) fn suite(release: Release) -> &'static str {
    match release {
        Release::Xen4_14 => "bullseye",
        Release::Xen4_17 => "bookworm",
        Release::Xen4_20 => "trixie",
    }
}

/// Returns the hypervisor's file, fetched if it is not there yet.
///
/// # Errors
///
/// It cannot be fetched: the message says why.
pub(crate) fn require(host: &HostFolder, release: Release) -> Result<PathBuf> {
    let file = host.join(format!("xen-{release}"));
    if !file.is_file() {
        step(&format!("Xen {release} from Debian {}", suite(release)), |step| {
            let apt = Apt::open(host, suite(release), step)?;
            let folder = host.temporary()?;
            let name = format!("xen-hypervisor-{release}-amd64");
            let package = apt.download(&name, folder.path(), step)?;
            let inside = format!("./boot/xen-{release}-amd64.gz");
            apt::unpack(&package, folder.path(), &[&inside])?;
            let mut compressed = GzDecoder::new(File::open(folder.path().join(inside))?);
            let whole = folder.path().join("xen");
            io::copy(&mut compressed, &mut File::create(&whole)?)?;
            fs::rename(whole, &file).context("putting Xen in place")
        })
        .map_err(|reason| missing(&format!("Xen {release}"), "Run this", &reason))?;
    }
    Ok(file)
}
