//! An emulated machine whose dom0 is worked with by ssh, on a port of this host: what a real
//! machine is to `cargo xtask host`, for trying it.

use std::fs;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::console::{Limits, Stop};
use super::remote::Remote;
use super::{Host, domu};
use crate::initramfs::cpio::Archive;
use crate::process::run_quietly;
use crate::provision::linux::Linux;

/// What dom0 may take until it can be reached.
const START: Duration = Duration::from_secs(600);
/// Memory for guests.
const GUESTS_MIB: u32 = 512;

/// Boots it, and hands it to `work` when it can be reached.
///
/// # Errors
///
/// QEMU cannot be started, dom0 does not come up, or `work` fails.
pub(crate) fn with_remote(
    host: &Host<'_>,
    linux: &Linux,
    log: PathBuf,
    work: impl FnOnce(&Remote) -> Result<()>,
) -> Result<()> {
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    run_quietly(&mut command, |_| {}).context("making a key")?;
    let mut archive = Archive::default();
    archive.file("/pvmmu/key", &fs::read(key.with_extension("pub"))?);
    archive.file("/pvmmu/network.sh", include_bytes!("dom0_network.sh"));
    let (_folder, mut machine) = domu::machine(host, linux, archive, GUESTS_MIB)?;
    // A port that is free now; that someone takes it in the next moment is unlikely.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    machine.ssh_port = Some(port);
    let mut work = Some(work);
    let ending = machine.boot(&log, |console| {
        let limits = Limits { total: START, silence: START };
        let stop = console.watch(limits, |line| {
            let ready = line.trim() == "@@pvmmu ready" || line.starts_with("@@pvmmu failed");
            if ready { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if stop == Stop::Seen
            && let Some(work) = work.take()
        {
            work(&Remote::connect(&ssh(port, &key), "root@127.0.0.1")?)?;
        }
        Ok(stop)
    })?;
    match ending.stop {
        Stop::Seen => Ok(()),
        stop => bail!("dom0 did not come up ({stop:?}):\n{}", ending.tail.join("\n")),
    }
}

/// ssh to a machine that has another host key each time.
fn ssh(port: u16, key: &Path) -> String {
    format!(
        "ssh -p {port} -i {} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        key.display()
    )
}
