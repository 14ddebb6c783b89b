//! That no QEMU outlives the harness: it starts a guest that hangs, ends the harness in every way
//! that an operating system knows, and looks for QEMU.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::session::Session;
use crate::paths::{OWN_IMAGE, find_program};
use crate::process::{Ended, LOOK_AGAIN};

/// For QEMU to be gone after the harness was told to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a run by each signal.
///
/// # Errors
///
/// A signal asked us ourselves to end.
pub(crate) fn run(session: &mut Session, kernel: &Path) -> Result<()> {
    for signal in ["INT", "TERM", "HUP", "KILL"] {
        if signal == "KILL" && find_program("setpriv").is_none() {
            // Only the kernel can end QEMU then, and setpriv tells it to.
            continue;
        }
        let name = format!("no QEMU is left after SIG{signal}");
        session.step("endings", &name, || end_by(signal, kernel))?;
    }
    Ok(())
}

fn end_by(signal: &str, kernel: &Path) -> Result<String> {
    let mut command = Command::new(OWN_IMAGE);
    command.args(["run", "--timeout", "60", "--kernel"]).arg(kernel).arg("hang");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut harness = Ended(command.spawn()?);
    let started = Instant::now();
    let qemu = loop {
        let children = children_of(harness.0.id())?;
        if let Some(qemu) = children.into_iter().find(|child| is_a_boot(*child)) {
            break qemu;
        }
        if let Some(status) = harness.0.try_wait()? {
            bail!("the harness ended before it booted anything ({status})");
        }
        if started.elapsed() > PATIENCE {
            bail!("the harness boots nothing");
        }
        thread::sleep(LOOK_AGAIN / 4);
    };
    let killed = Command::new("kill")
        .args([format!("-{signal}"), harness.0.id().to_string()])
        .status()
        .context("starting kill")?;
    if !killed.success() {
        bail!("the harness was gone before it was told to end");
    }
    let started = Instant::now();
    while is_running(qemu) {
        if started.elapsed() > PATIENCE {
            bail!("QEMU (process {qemu}) still runs");
        }
        thread::sleep(LOOK_AGAIN / 4);
    }
    Ok(String::new())
}

/// Returns whether a process is an emulated machine: nothing else has a serial port.
fn is_a_boot(process: u32) -> bool {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    // Before that, a helper of this name sees to it that QEMU ends with us.
    let helper =
        words.split(|byte| *byte == 0).next().is_some_and(|word| word.ends_with(b"setpriv"));
    !helper && words.split(|byte| *byte == 0).any(|word| word == b"-serial")
}

/// Processes whose parent this is.
fn children_of(parent: u32) -> Result<Vec<u32>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|number| status(*number).is_some_and(|(_, up)| up == parent)).collect())
}

/// Returns a process that ended but was not yet waited for does not run.
fn is_running(process: u32) -> bool {
    status(process).is_some_and(|(state, _)| state != "Z")
}

/// State and parent, from `NUMBER (NAME) STATE PARENT ...`.
fn status(process: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_and_its_end_is_seen() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let number = child.id();
        assert!(children_of(std::process::id()).unwrap().contains(&number));
        assert!(is_running(number));
        drop(Ended(child));
        assert!(!is_running(number));
    }
}
