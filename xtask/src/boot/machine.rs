//! The emulated machine: what QEMU is told, how it starts and how it ends.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::console::{Console, Stop};
use super::device::Device;
use crate::process::Ended;
use crate::provision::qemu::Qemu;

/// A file that Xen finds in memory when it starts, with a command line. The first is dom0's kernel.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// The file on this host.
    pub(crate) file: PathBuf,
    /// Its command line.
    pub(crate) arguments: String,
}

/// What the emulated machine's clock counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Clock {
    /// Time, as it passes on this host.
    Time,
    /// Executed instructions, one nanosecond each: the same count on every run and every host.
    Instructions,
}

impl Clock {
    /// Counts are compared with those of other machines, so the CPU is the same everywhere.
    fn cpu_model(self, qemu: &Qemu) -> &str {
        match self {
            Self::Time => qemu.cpu_model(),
            Self::Instructions => "qemu64",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Time => &[],
            // The clock on the wall is the emulated one too: Xen waits for its next second at boot,
            // and everything after that would be a little earlier or later.
            Self::Instructions => {
                &["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01T00:00:00,clock=vm"]
            }
        }
    }
}

/// An emulated machine that boots Xen.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The hypervisor's file.
    pub(crate) xen: &'a Path,
    /// Xen's command line, but for the console.
    pub(crate) xen_arguments: String,
    /// What Xen starts with.
    pub(crate) modules: Vec<Module>,
    /// Memory of the whole machine.
    pub(crate) memory_mib: u32,
    /// Processors of the whole machine.
    pub(crate) processors: u32,
    /// What its clock counts.
    pub(crate) clock: Clock,
    /// The model of its CPU, if not the one that its clock asks for.
    pub(crate) cpu: Option<&'a str>,
    /// What it has besides.
    pub(crate) devices: &'a [Device],
    /// A port of this host, on loopback, that leads to the machine's ssh server.
    pub(crate) ssh_port: Option<u16>,
}

/// How a boot ended, before anyone judges it.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Why watching stopped.
    pub(crate) stop: Stop,
    /// QEMU's exit status and its own words, if it ended by itself.
    pub(crate) qemu: String,
    /// The last lines of the console.
    pub(crate) tail: Vec<String>,
    /// From QEMU's start to its end.
    pub(crate) time: std::time::Duration,
}

impl Machine<'_> {
    /// Boots, lets `watch` read the console, and ends QEMU when it returns.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started, a file is missing, or a signal asked us to end.
    pub(crate) fn boot(
        &self,
        log: &Path,
        watch: impl FnOnce(&mut Console) -> Result<Stop>,
    ) -> Result<Ending> {
        // QEMU takes files and their command lines in one word, split at commas and spaces. In a
        // folder of its own every file has a short, plain name.
        let folder = tempfile::tempdir()?;
        let mut initrd = Vec::new();
        link(self.xen, &folder.path().join("xen"))?;
        for (number, module) in self.modules.iter().enumerate() {
            let name = format!("module{number}");
            link(&module.file, &folder.path().join(&name))?;
            let words = format!("{name} {}", module.arguments).replace(',', ",,");
            initrd.push(words.trim_end().to_owned());
        }
        let complaints = folder.path().join("complaints");
        let started = Instant::now();
        let mut command = self.command(&initrd.join(","));
        for device in self.devices {
            command.args(device.arguments()?);
        }
        command.current_dir(folder.path()).stderr(File::create(&complaints)?);
        let mut child = Ended(command.spawn().context("starting QEMU")?);
        let stdout = child.0.stdout.take().context("QEMU's console is not connected")?;
        let mut console = Console::open(stdout, log)?;
        let stop = watch(&mut console)?;
        let mut qemu = String::new();
        if stop == Stop::Closed {
            let mut words = String::new();
            File::open(&complaints)?.read_to_string(&mut words)?;
            qemu = format!("{}; {}", child.0.wait()?, words.trim());
        }
        drop(child);
        if stop == Stop::Interrupted {
            bail!("interrupted");
        }
        let qemu = qemu.trim_end_matches("; ").to_owned();
        Ok(Ending { stop, qemu, tail: console.tail(), time: started.elapsed() })
    }

    fn command(&self, initrd: &str) -> Command {
        let mut command = self.qemu.command();
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-accel",
                "tcg",
                "-cpu",
                self.cpu.unwrap_or_else(|| self.clock.cpu_model(self.qemu)),
            ])
            .args(["-m", &self.memory_mib.to_string(), "-smp", &self.processors.to_string()])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", "xen"])
            .arg("-append")
            .arg(format!(
                "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all {}",
                self.xen_arguments
            ))
            .args(["-initrd", initrd])
            .args(self.clock.arguments())
            .args(self.ssh_port.map(network).into_iter().flatten())
            // A group of its own: Ctrl-C reaches us alone, and we end QEMU.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }
}

/// Returns a network card behind which there is nothing but this host, and that lets only ssh in.
fn network(port: u16) -> [String; 4] {
    let user = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22");
    ["-netdev".to_owned(), user, "-device".to_owned(), "e1000,netdev=net,romfile=".to_owned()]
}

fn link(file: &Path, name: &Path) -> Result<()> {
    let file = file.canonicalize().with_context(|| format!("finding {}", file.display()))?;
    symlink(file, name).context("linking a file for QEMU")
}
