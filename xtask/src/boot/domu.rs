//! Our guest as domU: a Linux dom0 boots, its script (`dom0_guests.sh`) creates the guest with xl
//! and reports on the console in lines that begin with `@@pvmmu`:
//!
//! | line | means |
//! |---|---|
//! | `step WORDS` | dom0 is about to do this |
//! | `failed STEP: WORDS` | the toolstack failed and dom0 gives up |
//! | `started N` | guest N is created and runs |
//! | `guest N TEXT` | guest N wrote this line |
//! | `end N STATE REASON` | guest N is in this state and is now removed |
//! | `done` | all guests are through |
//!
//! Several guests may run in one boot, one after the other, as booting dom0 takes most of the time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::console::{Limits, Stop, Tail};
use super::machine::{Ending, Machine, Module};
use super::outcome::{Outcome, Report};
use super::panic::PanicReader;
use super::verdict::Verdict;
use super::{Guest, Host, Line};
use crate::initramfs::cpio::Archive;
use crate::provision::linux::Linux;

/// Memory of the Linux dom0.
const DOM0_MEMORY_MIB: u32 = 512;
/// Xen saves the registers of the FPU at each switch of vCPUs, as it does on most machines. If it
/// leaves them until they are used, as it does on the one QEMU emulates, programs of dom0's crash:
/// xl 11 times in 200 cycles of save and restore, and not once in 100 with this.
const EAGER_FPU: &str = "spec-ctrl=eager-fpu";
/// Memory for Xen itself.
const XEN_MEMORY_MIB: u32 = 256;
/// Processors of the emulated machine: dom0 and the guest run at the same time.
const PROCESSORS: u32 = 2;
/// What dom0 may take until its toolstack runs.
const DOM0_START: Duration = Duration::from_secs(600);
/// What the toolstack may take for each guest, besides the guest's own time.
const TOOLSTACK: Duration = Duration::from_secs(180);

const MARK: &str = "@@pvmmu ";

/// Boots dom0, runs the guests one after the other, and judges each. `show` gets every line.
///
/// # Errors
///
/// QEMU cannot be started, or a signal asked us to end.
pub(crate) fn boot(
    host: &Host<'_>,
    linux: &Linux,
    guests: &[Guest],
    log: PathBuf,
    mut show: impl FnMut(Line<'_>),
) -> Result<Vec<Report>> {
    let memory = guests.iter().map(|guest| guest.maximum_mib).max().unwrap_or_default();
    let mut archive = Archive::default();
    for (name, bytes) in files(guests)? {
        archive.file(&format!("/pvmmu/{name}"), &bytes);
    }
    let (_folder, machine) = machine(host, linux, archive, memory)?;
    let limits = limits(guests, DOM0_START);
    let mut reader = Reader::default();
    let started = Instant::now();
    let ending =
        machine.boot(&log, |console| console.watch(limits, |line| reader.line(line, &mut show)))?;
    Ok(reader.reports(guests, started, &ending, &log))
}

/// Returns a machine whose dom0 has more files than it always has, and room for guests of so many
/// MiB. Its own files are in the folder.
pub(super) fn machine<'a>(
    host: &'a Host<'_>,
    linux: &Linux,
    mut archive: Archive,
    memory_mib: u32,
) -> Result<(TempDir, Machine<'a>)> {
    let folder = tempfile::tempdir()?;
    let file_system = folder.path().join("file-system");
    archive.program("/init", include_bytes!("dom0_init.sh"));
    for (name, text) in SCRIPTS {
        archive.file(&format!("/pvmmu/{name}"), text.as_bytes());
    }
    let mut bytes = fs::read(&linux.file_system).context("reading dom0's file system")?;
    bytes.extend(archive.finish());
    fs::write(&file_system, bytes)?;
    let machine = Machine {
        qemu: host.qemu,
        xen: &host.xen,
        xen_arguments: format!("dom0_mem={DOM0_MEMORY_MIB}M,max:{DOM0_MEMORY_MIB}M {EAGER_FPU}"),
        modules: vec![
            Module {
                file: linux.kernel.clone(),
                arguments: "console=hvc0 quiet panic=1".to_owned(),
            },
            Module { file: file_system, arguments: String::new() },
        ],
        memory_mib: DOM0_MEMORY_MIB + XEN_MEMORY_MIB + memory_mib + memory_mib / 16,
        processors: host.processors.unwrap_or(PROCESSORS),
        clock: host.clock,
        cpu: host.cpu.as_deref(),
        devices: &host.devices,
        ssh_port: None,
    };
    Ok((folder, machine))
}

/// Returns how long the guests may take, after what dom0 needs to start.
pub(super) fn limits(guests: &[Guest], start: Duration) -> Limits {
    let guest_time: Duration = guests.iter().map(|guest| guest.limit + TOOLSTACK).sum();
    let longest = guests.iter().map(|guest| guest.limit).max().unwrap_or_default();
    Limits { total: start + guest_time, silence: longest + TOOLSTACK }
}

/// What dom0 runs guests with.
pub(super) const SCRIPTS: [(&str, &str); 3] = [
    ("guests.sh", include_str!("dom0_guests.sh")),
    ("examine.sh", include_str!("dom0_examine.sh")),
    ("session.sh", include_str!("dom0_session.sh")),
];

/// Returns the guests, as files beside the scripts.
pub(super) fn files(guests: &[Guest]) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |file: &Path| fs::read(file).with_context(|| format!("reading {}", file.display()));
    let mut jobs = String::new();
    let mut files = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let Guest { memory_mib, maximum_mib, arguments, limit, .. } = guest;
        writeln!(jobs, "{number} {} {memory_mib} {maximum_mib} {arguments}", limit.as_secs())?;
        let kernel = kernel_of(number, guests);
        if kernel == number {
            files.push((format!("{kernel}.elf"), read(&guest.kernel)?));
        }
        if let Some(module) = &guest.module {
            files.push((format!("{number}.module"), read(module)?));
        }
        let configuration = configuration(number, kernel, guest);
        files.push((format!("{number}.template"), configuration.into_bytes()));
    }
    files.push(("jobs".to_owned(), jobs.into_bytes()));
    Ok(files)
}

/// Returns the first guest with the kernel of guest `number`: its file serves all of them, as
/// dom0's memory holds every file.
fn kernel_of(number: usize, guests: &[Guest]) -> usize {
    let same = |guest: &Guest| guests.get(number).is_some_and(|of| of.kernel == guest.kernel);
    guests.iter().position(same).unwrap_or(number)
}

/// Returns the guest as xl is told about it, but for its name and its folder, which dom0's script
/// puts in. It is kept after its end, so that its end can be looked at.
fn configuration(number: usize, kernel: usize, guest: &Guest) -> String {
    let Guest { memory_mib, maximum_mib, vcpus, .. } = guest;
    let arguments = guest.arguments.replace('\\', "\\\\").replace('"', "\\\"");
    let ramdisk = match guest.module {
        Some(_) => format!("ramdisk = \"@here@/{number}.module\"\n"),
        None => String::new(),
    };
    // A guest that lives on is started again, and keeps its end to itself otherwise.
    let on_reboot = if guest.lives_on() { "restart" } else { "preserve" };
    format!(
        "name = \"@name@\"\n\
         {ramdisk}\
         type = \"pv\"\n\
         kernel = \"@here@/{kernel}.elf\"\n\
         extra = \"{arguments}\"\n\
         memory = {memory_mib}\n\
         maxmem = {maximum_mib}\n\
         vcpus = {vcpus}\n\
         tsc_mode = \"native\"\n\
         on_poweroff = \"preserve\"\n\
         on_reboot = \"{on_reboot}\"\n\
         on_crash = \"preserve\"\n"
    )
}

/// What is known of one guest.
#[derive(Debug, Default)]
struct Progress {
    started: bool,
    verdict: Option<Verdict>,
    /// State and reason.
    end: Option<(String, String)>,
    ended: Option<Instant>,
    /// The last lines of the console when it ended.
    tail: Vec<String>,
}

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The beginning of a line into which Xen wrote one of its own.
    interrupted: String,
    step: String,
    tail: Tail,
    failed: Option<Outcome>,
    panic: PanicReader,
    guests: BTreeMap<usize, Progress>,
}

impl Reader {
    /// Reads a line of dom0's.
    pub(super) fn line(&mut self, line: &str, show: &mut impl FnMut(Line<'_>)) -> ControlFlow<()> {
        self.tail.push(line);
        // Linux hands over its console in pieces of a few bytes, and Xen may write in between.
        if let Some(at) = line.find("(XEN) ") {
            self.interrupted.push_str(&line[..at]);
            show(Line::Other(&line[at..]));
            return self.xen_line(line[at..].trim_start_matches("(XEN)").trim());
        }
        let line = std::mem::take(&mut self.interrupted) + line;
        let Some(words) = line.strip_prefix(MARK) else {
            show(Line::Other(&line));
            if line.contains("Kernel panic") {
                self.fail(&line);
            }
            return ControlFlow::Continue(());
        };
        let (kind, rest) = words.split_once(' ').unwrap_or((words, ""));
        if kind == "guest" {
            let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
            show(Line::Guest(text));
            if let Some(verdict) = Verdict::parse(text) {
                self.guest(number).verdict = Some(verdict);
            }
            return ControlFlow::Continue(());
        }
        show(Line::Other(if kind == "step" { rest } else { words }));
        match kind {
            "step" => rest.clone_into(&mut self.step),
            "started" => self.guest(rest).started = true,
            "end" => {
                let mut words = rest.split(' ').map(str::to_owned);
                let number = words.next().unwrap_or_default();
                let end = (words.next().unwrap_or_default(), words.collect::<Vec<_>>().join(" "));
                let tail = self.tail.lines();
                let guest = self.guest(&number);
                guest.end = Some(end);
                guest.ended = Some(Instant::now());
                guest.tail = tail;
            }
            "failed" => {
                let (step, detail) = rest.split_once(": ").unwrap_or((rest, ""));
                step.clone_into(&mut self.step);
                self.fail(detail);
            }
            "done" => return ControlFlow::Break(()),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn xen_line(&mut self, words: &str) -> ControlFlow<()> {
        if let Some(outcome) = self.panic.line(words) {
            self.failed = Some(outcome);
            return ControlFlow::Break(());
        }
        if words.starts_with("Hardware Dom0") {
            self.fail(words);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Dom0 failed. The first reason is the one that counts.
    fn fail(&mut self, detail: &str) {
        let step = if self.step.is_empty() { "boot" } else { &self.step };
        let detail = detail.trim().to_owned();
        self.failed.get_or_insert(Outcome::HostFailed { step: step.to_owned(), detail });
    }

    fn guest(&mut self, number: &str) -> &mut Progress {
        self.guests.entry(number.trim().parse().unwrap_or(usize::MAX)).or_default()
    }

    /// Judges each guest.
    pub(super) fn reports(
        &self,
        guests: &[Guest],
        started: Instant,
        ending: &Ending,
        log: &Path,
    ) -> Vec<Report> {
        let mut previous = started;
        let reports = guests.iter().enumerate().map(|(number, guest)| {
            let progress = self.guests.get(&number).filter(|progress| progress.ended.is_some());
            let ended = progress.and_then(|progress| progress.ended).unwrap_or_else(Instant::now);
            let tail =
                progress.map_or_else(|| ending.tail.clone(), |progress| progress.tail.clone());
            let time = ended.saturating_duration_since(previous);
            previous = ended;
            let outcome = self.judge(number, guest, ending);
            Report { outcome, tail, log: log.to_owned(), time }
        });
        reports.collect()
    }

    fn judge(&self, number: usize, guest: &Guest, ending: &Ending) -> Outcome {
        let nothing = Progress::default();
        let progress = self.guests.get(&number).unwrap_or(&nothing);
        let verdict = progress.verdict.clone();
        let hung = |limit| Outcome::Hung { limit, verdict: verdict.clone() };
        if let Some((state, reason)) = &progress.end {
            return match (state.as_str(), reason.as_str()) {
                ("shutdown", "0" | "1") => match &verdict {
                    Some(verdict) => Outcome::Verdict(verdict.clone()),
                    None => Outcome::NoVerdict(format!("xl list: shut down, reason {reason}")),
                },
                ("running", _) => hung(guest.limit),
                (state, reason) => Outcome::Crashed(format!("xl list: {state}, reason {reason}")),
            };
        }
        if let Some(outcome) = self.failed.clone().or_else(|| self.panic.unfinished()) {
            return outcome;
        }
        let step = || self.step.clone();
        match ending.stop {
            Stop::Closed => Outcome::QemuEnded(ending.qemu.clone()),
            _ if progress.started => hung(guest.limit + TOOLSTACK),
            stop => Outcome::HostFailed {
                step: step(),
                detail: format!("it took too long ({stop:?} after {} s)", ending.time.as_secs()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(console: &str, stop: Stop) -> (Vec<String>, Outcome) {
        let mut reader = Reader::default();
        let mut lines = Vec::new();
        let mut stop = stop;
        for line in console.lines() {
            let mut show = |line: Line<'_>| {
                if let Line::Guest(text) = line {
                    lines.push(text.to_owned());
                }
            };
            if reader.line(line, &mut show).is_break() {
                stop = Stop::Seen;
                break;
            }
        }
        let (qemu, tail, time) = (String::new(), Vec::new(), Duration::from_secs(9));
        let ending = Ending { stop, qemu, tail, time };
        (lines, reader.judge(0, &guest("demo"), &ending))
    }

    fn guest(arguments: &str) -> Guest {
        Guest {
            kernel: PathBuf::new(),
            arguments: arguments.to_owned(),
            module: None,
            memory_mib: 33,
            maximum_mib: 40,
            vcpus: 1,
            limit: Duration::from_secs(5),
        }
    }

    #[test]
    fn a_guest_that_passes_is_seen_through_dom0s_console() {
        let (lines, outcome) = judge(
            "[    0.1] Linux\n@@pvmmu step xl create\n@@pvmmu started 0\n@@pvmmu guest 0 hello\n\
             @@pvmmu guest 0 \n@@pvmmu guest 0 PVMMU-VERDICT pass x\n\
             @@pvmmu end 0 shutdown 0\n@@pvmmu done\n",
            Stop::Closed,
        );
        assert_eq!(lines, ["hello", "", "PVMMU-VERDICT pass x"]);
        assert_eq!(outcome, Outcome::Verdict(Verdict::Pass("x".into())));
    }

    #[test]
    fn a_line_that_xen_broke_in_two_is_joined_again() {
        let (lines, outcome) = judge(
            "@@pvmmu guest 0 PVMMU-VER(XEN) d1v0 something\nDICT pass y\n\
             @@pvmmu end 0 shutdown 0\n@@pvmmu done\n",
            Stop::Closed,
        );
        assert_eq!(lines, ["PVMMU-VERDICT pass y"]);
        assert!(outcome.passed());
    }

    #[test]
    fn a_crashed_guest_a_hanging_one_and_a_silent_one_are_told_apart() {
        let end = |words: &str| {
            judge(&format!("@@pvmmu started 0\n@@pvmmu end 0 {words}\n"), Stop::Closed).1
        };
        assert!(matches!(end("crashed 3"), Outcome::Crashed(how) if how.contains("reason 3")));
        assert!(matches!(end("shutdown 3"), Outcome::Crashed(_)));
        assert!(matches!(end("shutdown 0"), Outcome::NoVerdict(_)));
        assert!(matches!(end("running r-----"), Outcome::Hung { verdict: None, .. }));
    }

    #[test]
    fn a_toolstack_that_fails_is_not_blamed_on_the_guest() {
        let console = "@@pvmmu step xenstored\n@@pvmmu failed xl create: out of memory \n\
                       (XEN) Hardware Dom0 halted: halting machine\n";
        let (_, outcome) = judge(console, Stop::Closed);
        let (step, detail) = ("xl create".to_owned(), "out of memory".to_owned());
        assert_eq!(outcome, Outcome::HostFailed { step, detail });
        let (_, outcome) = judge("@@pvmmu step xenstored\n", Stop::Silence);
        assert!(matches!(outcome, Outcome::HostFailed { step, .. } if step == "xenstored"));
        let (_, outcome) = judge("[ 1.0] Kernel panic - not syncing\n", Stop::Silence);
        assert!(matches!(outcome, Outcome::HostFailed { step, .. } if step == "boot"));
    }

    #[test]
    fn a_panic_of_xen_is_quoted() {
        let console = "@@pvmmu started 0\n(XEN) Panic on CPU 0:\n(XEN) FATAL PAGE FAULT\n\
                       (XEN) Reboot in five seconds...\n";
        let (_, outcome) = judge(console, Stop::Closed);
        assert_eq!(outcome, Outcome::XenPanicked("FATAL PAGE FAULT".into()));
    }

    #[test]
    fn a_kernel_is_one_file_however_many_guests_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for file in [&one, &other] {
            fs::write(file, "kernel").unwrap();
        }
        let with = |kernel: &Path| Guest { kernel: kernel.to_owned(), ..guest("demo") };
        let files = files(&[with(&one), with(&other), with(&one)]).unwrap();
        let kernels = files.iter().filter(|(name, _)| name.ends_with(".elf"));
        assert!(kernels.map(|(name, _)| name.as_str()).eq(["0.elf", "1.elf"]));
        let template = files.iter().find(|(name, _)| name == "2.template").unwrap();
        assert!(String::from_utf8_lossy(&template.1).contains("@here@/0.elf"));
    }

    #[test]
    fn a_command_line_cannot_break_out_of_the_configuration() {
        let text = configuration(3, 3, &guest("say \"hi\" \\"));
        assert!(text.contains("extra = \"say \\\"hi\\\" \\\\\"\n"), "{text}");
    }
}
