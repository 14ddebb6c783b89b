//! A machine whose dom0 is reached by ssh: guests and scripts are sent there, run, read as those of
//! an emulated dom0 are, and removed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::console::{Console, Stop};
use super::domu::{Reader, SCRIPTS, files, limits};
use super::machine::Ending;
use super::outcome::{Outcome, Report};
use super::{Guest, Line};
use crate::process::{Ended, run_captured};

/// What the other side may take to begin.
const START: Duration = Duration::from_secs(60);

/// What is asked first: who we are, and which Xen that is.
const PROBE: &str = "id -u; PATH=$PATH:/usr/sbin:/sbin xl info";

/// A dom0 elsewhere.
#[derive(Debug)]
pub(crate) struct Remote {
    /// ssh, its options, and the host.
    words: Vec<String>,
    /// What runs there.
    pub(crate) xen: String,
    /// Memory that no domain has.
    pub(crate) free_mib: u32,
    /// What makes us root there.
    root: &'static str,
}

impl Remote {
    /// Looks whether there is a dom0 that can be worked with.
    ///
    /// # Errors
    ///
    /// There is not: the message says why, and what to do.
    pub(crate) fn connect(ssh: &str, host: &str) -> Result<Self> {
        let words = ssh.split_whitespace().chain([host]).map(str::to_owned).collect();
        let mut remote = Self { words, xen: String::new(), free_mib: 0, root: "" };
        let mut answer = remote.ask(PROBE)?;
        if answer.lines().next() != Some("0") {
            remote.root = "sudo -n ";
            answer = remote.ask(&format!("sudo -n sh -c '{PROBE}'")).with_context(|| {
                format!("xl must be run as root: log in on {host} as root, or allow sudo there")
            })?;
        }
        let field = |name: &str| {
            let line =
                answer.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let missing = || format!("xl does not work on {host}, which says:\n{answer}");
        remote.xen = field("xen_version").with_context(missing)?;
        remote.free_mib = field("free_memory").with_context(missing)?.parse()?;
        Ok(remote)
    }

    /// Runs guests, one after the other, and judges each. `show` gets every line.
    ///
    /// # Errors
    ///
    /// The machine cannot be reached, or a signal asked us to end.
    pub(crate) fn run(
        &self,
        guests: &[Guest],
        log: PathBuf,
        mut show: impl FnMut(Line<'_>),
    ) -> Result<Vec<Report>> {
        let folder = self.ask("mktemp -d /var/tmp/pvmmu.XXXXXX")?.trim().to_owned();
        if !folder.starts_with("/var/tmp/pvmmu.") || folder.contains(char::is_whitespace) {
            bail!("no folder could be made there: {folder}");
        }
        let sent = self.send(guests, &folder);
        let result = sent.and_then(|()| {
            let started = Instant::now();
            let mut reader = Reader::default();
            let ending = self.watch(&folder, guests, &log, |line| reader.line(line, &mut show))?;
            Ok(reader.reports(guests, started, &ending, &log))
        });
        let cleaned = self.ask(&format!("{}sh {folder}/host.sh clean", self.root));
        let mut reports = result?;
        cleaned.context("removing the guests there")?;
        for report in &mut reports {
            if let Outcome::QemuEnded(how) = &report.outcome {
                let (step, detail) = ("ssh".to_owned(), format!("the connection ended ({how})"));
                report.outcome = Outcome::HostFailed { step, detail };
            }
        }
        Ok(reports)
    }

    /// Returns what there still is of guests and folders of ours.
    ///
    /// # Errors
    ///
    /// The machine cannot be reached.
    pub(crate) fn guests_left(&self) -> Result<String> {
        let words = "PATH=$PATH:/usr/sbin:/sbin; xl list; ls /var/tmp";
        let answer = self.ask(&format!("{}sh -c '{words}'", self.root))?;
        let left = answer.lines().filter(|line| line.starts_with("pvmmu."));
        Ok(left.collect::<Vec<_>>().join("\n"))
    }

    fn watch(
        &self,
        folder: &str,
        guests: &[Guest],
        log: &Path,
        on_line: impl FnMut(&str) -> std::ops::ControlFlow<()>,
    ) -> Result<Ending> {
        let started = Instant::now();
        let mut command = self.command(&format!("{}sh {folder}/host.sh 2>&1", self.root));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Ended(command.spawn().context("starting ssh")?);
        let stdout = child.0.stdout.take().context("ssh's output is not connected")?;
        let mut console = Console::open(stdout, log)?;
        let stop = console.watch(limits(guests, START), on_line)?;
        let qemu = match stop {
            Stop::Closed => child.0.wait()?.to_string(),
            Stop::Interrupted => bail!("interrupted"),
            _ => String::new(),
        };
        Ok(Ending { stop, qemu, tail: console.tail(), time: started.elapsed() })
    }

    /// Puts scripts and guests into the folder, as one archive.
    fn send(&self, guests: &[Guest], folder: &str) -> Result<()> {
        let local = tempfile::tempdir()?;
        let scripts =
            SCRIPTS.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
        let host = ("host.sh".to_owned(), include_bytes!("dom0_host.sh").to_vec());
        for (name, bytes) in scripts.chain([host]).chain(files(guests)?) {
            fs::write(local.path().join(name), bytes)?;
        }
        let packed =
            Command::new("tar").arg("-C").arg(local.path()).args(["-czf", "-", "."]).output();
        let packed = packed.context("packing with tar")?;
        let mut command = self.command(&format!("tar -C {folder} -xzf -"));
        let mut child = Ended(command.stdin(Stdio::piped()).spawn().context("starting ssh")?);
        let mut stdin = child.0.stdin.take().context("ssh's input is not connected")?;
        stdin.write_all(&packed.stdout).context("sending the guests")?;
        drop(stdin);
        let status = child.0.wait()?;
        if !status.success() {
            bail!("sending the guests: {status}");
        }
        Ok(())
    }

    /// Returns what a command there says.
    fn ask(&self, words: &str) -> Result<String> {
        let (status, output) = run_captured(&mut self.command(words), |_| {})?;
        if !status.success() {
            bail!("`{} {words}`: {status}: {}", self.words.join(" "), output.trim());
        }
        Ok(output)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.words[0]);
        // It must never ask a person for anything.
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]);
        command.args(&self.words[1..]).arg(words);
        command
    }
}
