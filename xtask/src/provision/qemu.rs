//! Finds or fetches QEMU, which emulates the machine that Xen boots on.
//!
//! The software emulation of QEMU 7.2 has two bugs that hit PV guests: `int N` from ring 3 arrives
//! with a doubled vector, and `iretq` from ring 3 to ring 3 faults while SMAP is on. So an
//! installed QEMU is taken if it is new enough; else QEMU 10 comes from Debian trixie, with the
//! libraries it needs and the loader that fits them, and runs from its own folder. Only if that
//! cannot be had an old QEMU is used, with a CPU that has no SMAP.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Error, Result};

use super::apt::{self, Apt};
use super::missing;
use crate::paths::{HostFolder, find_program, make_folder};
use crate::process::run_quietly;
use crate::progress::step;

/// The first major release known to emulate ring 3 well enough.
const MAJOR_GOOD: u32 = 10;

/// Release of Debian whose QEMU is fetched.
const SUITE: &str = "trixie";

/// A QEMU that can be started.
#[derive(Debug)]
pub(crate) struct Qemu {
    version: String,
    /// The program and the arguments that every start needs.
    start: Vec<PathBuf>,
    modules: Option<PathBuf>,
}

impl Qemu {
    /// Finds QEMU, or fetches it.
    ///
    /// # Errors
    ///
    /// There is none and it cannot be fetched: the message says what to install.
    pub(crate) fn require(host: &HostFolder) -> Result<Self> {
        let installed = match env::var_os("PVMMU_QEMU") {
            Some(program) => return Self::installed(PathBuf::from(program)),
            None => find_program("qemu-system-x86_64").map(Self::installed).transpose()?,
        };
        match installed {
            Some(qemu) if qemu.major() >= MAJOR_GOOD => Ok(qemu),
            old => match (Self::private(host), old) {
                (Ok(qemu), _) => Ok(qemu),
                (Err(_), Some(old)) => Ok(old),
                (Err(reason), None) => Err(missing(
                    "QEMU (qemu-system-x86_64)",
                    "Install your system's package of it (Debian: qemu-system-x86), or run this",
                    &reason,
                )),
            },
        }
    }

    /// As QEMU says it, for example `10.0.2`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Returns a command that starts QEMU, to which the machine's description is added.
    pub(crate) fn command(&self) -> Command {
        let mut words = Vec::new();
        if let Some(setpriv) = find_program("setpriv") {
            // Should we be killed with no chance to end QEMU, the kernel ends it.
            words.extend([setpriv, "--pdeathsig".into(), "KILL".into(), "--".into()]);
        }
        words.extend(self.start.iter().cloned());
        self.command_of(&words)
    }

    fn command_of(&self, words: &[PathBuf]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Some(modules) = &self.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command
    }

    /// Returns the most complete CPU that this QEMU emulates without breaking PV guests.
    pub(crate) fn cpu_model(&self) -> &'static str {
        if self.major() >= MAJOR_GOOD { "max" } else { "qemu64" }
    }

    fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    fn installed(program: PathBuf) -> Result<Self> {
        Self { version: String::new(), start: vec![program], modules: None }.with_version()
    }

    fn private(host: &HostFolder) -> Result<Self> {
        let root = host.join("qemu");
        if !root.is_dir() {
            step("QEMU from Debian trixie", |step| {
                let apt = Apt::open(host, SUITE, step)?;
                let packages = apt.download_with_dependencies(&["qemu-system-x86"], step)?;
                let new = host.temporary()?;
                let new_root = new.path().join("root");
                make_folder(&new_root)?;
                for (count, package) in packages.iter().enumerate() {
                    step.at(format!("unpacking {} of {}", count + 1, packages.len()));
                    apt::unpack(package, &new_root, &[])?;
                    fs::remove_file(package)?;
                }
                fs::rename(&new_root, &root).context("putting QEMU in place")
            })?;
        }
        let library = |path: &str| root.join(path).into_os_string().into_string();
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
            .map(|path| library(path).map_err(|path| Error::msg(format!("not Unicode: {path:?}"))));
        let [first, second] = libraries;
        let start = vec![
            root.join("usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            format!("{}:{}", first?, second?).into(),
            root.join("usr/bin/qemu-system-x86_64"),
            "-L".into(),
            root.join("usr/share/qemu"),
            "-L".into(),
            root.join("usr/share/seabios"),
        ];
        let modules = Some(root.join("usr/lib/x86_64-linux-gnu/qemu"));
        Self { version: String::new(), start, modules }.with_version()
    }

    fn with_version(mut self) -> Result<Self> {
        let output = run_quietly(self.command_of(&self.start).arg("--version"), |_| {})?;
        let mut words = output.split_whitespace().skip_while(|word| *word != "version");
        let version = words.nth(1).context("QEMU does not say its version")?;
        self.version = version.to_owned();
        Ok(self)
    }
}
