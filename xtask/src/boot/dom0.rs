//! Our guest as dom0: Xen boots it directly, and both write to the same console. Xen's lines begin
//! with `(XEN)`; all others after the hand-over are the guest's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::console::{Limits, Stop};
use super::machine::{Clock, Ending, Machine, Module};
use super::outcome::{Outcome, Report};
use super::verdict::Verdict;
use crate::cli::RunArguments;
use crate::provision::qemu::Qemu;

/// What the machine has besides the guest's memory: room for Xen, its heap and its frame table.
const XEN_MEMORY_MIB: u32 = 192;

/// What a reader of the console is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Line<'a> {
    /// Written by the guest.
    Guest(&'a str),
    /// Written by anyone else.
    Other(&'a str),
}

/// Describes a machine with our guest as dom0.
pub(crate) fn machine<'a>(
    qemu: &'a Qemu,
    xen: &'a Path,
    guest: PathBuf,
    arguments: &RunArguments,
) -> Machine<'a> {
    let memory = arguments.mem;
    Machine {
        qemu,
        xen,
        xen_arguments: format!(
            "dom0_mem={memory}M,max:{memory}M dom0_max_vcpus={} dom0_vcpus_pin=0",
            arguments.vcpus
        ),
        modules: vec![Module { file: guest, arguments: arguments.program.join(" ") }],
        memory_mib: memory + memory / 16 + XEN_MEMORY_MIB,
        processors: arguments.vcpus,
        // Counts are compared with those of other machines, so the CPU is the same everywhere.
        cpu_model: if arguments.icount { "qemu64" } else { qemu.cpu_model() },
        clock: if arguments.icount { Clock::Instructions } else { Clock::Time },
    }
}

/// Boots and judges. `show` gets every line as it comes.
///
/// # Errors
///
/// QEMU cannot be started, or a signal asked us to end.
pub(crate) fn boot(
    machine: &Machine<'_>,
    log: PathBuf,
    limits: Limits,
    mut show: impl FnMut(Line<'_>),
) -> Result<Report> {
    let mut reader = Reader::default();
    let ending = machine.boot(&log, |console| {
        console.watch(limits, |line| {
            let (shown, flow) = reader.line(line);
            show(shown);
            flow
        })
    })?;
    let Ending { tail, time, .. } = &ending;
    let (tail, time) = (tail.clone(), *time);
    Ok(Report { outcome: reader.judge(&ending, limits), tail, log, time })
}

/// What was read so far.
#[derive(Debug, Default)]
struct Reader {
    handed_over: bool,
    verdict: Option<Verdict>,
    panic: PanicReader,
    outcome: Option<Outcome>,
}

impl Reader {
    fn line<'a>(&mut self, line: &'a str) -> (Line<'a>, ControlFlow<()>) {
        if let Some(words) = line.strip_prefix("(XEN)") {
            self.xen_line(words.trim());
            let flow = match self.outcome {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            };
            return (Line::Other(line), flow);
        }
        let verdict = Verdict::parse(line);
        // Only a guest gives a verdict, whatever Xen wrote before.
        if self.handed_over || verdict.is_some() {
            self.verdict = verdict.or(self.verdict.take());
            (Line::Guest(line), ControlFlow::Continue(()))
        } else {
            (Line::Other(line), ControlFlow::Continue(()))
        }
    }

    fn xen_line(&mut self, words: &str) {
        if let Some(outcome) = self.panic.line(words) {
            self.outcome = Some(outcome);
        } else if words.starts_with("*** Serial input to DOM0") {
            self.handed_over = true;
        } else if words.starts_with("Hardware Dom0 crashed") {
            self.outcome = Some(Outcome::Crashed(format!("Xen says: {words}")));
        } else if words.starts_with("Hardware Dom0") {
            let no_verdict = || Outcome::NoVerdict(format!("Xen says: {words}"));
            self.outcome = Some(self.verdict.clone().map_or_else(no_verdict, Outcome::Verdict));
        }
    }

    fn judge(self, ending: &Ending, limits: Limits) -> Outcome {
        if let Some(outcome) = self.outcome.or_else(|| self.panic.unfinished()) {
            return outcome;
        }
        match ending.stop {
            Stop::Silence if self.verdict.is_none() => Outcome::Silent(limits.silence),
            Stop::Closed | Stop::Seen => Outcome::QemuEnded(ending.qemu.clone()),
            _ => Outcome::Hung { limit: limits.total, verdict: self.verdict },
        }
    }
}

/// Collects what Xen says when it panics, which takes several lines.
#[derive(Debug, Default)]
pub(crate) struct PanicReader(Option<Vec<String>>);

impl PanicReader {
    /// Reads a line of Xen's. There is an outcome at the last line of a panic.
    pub(crate) fn line(&mut self, words: &str) -> Option<Outcome> {
        match &mut self.0 {
            Some(_) if words.starts_with("Reboot in") || words.starts_with("Manual reset") => {
                return self.unfinished();
            }
            Some(panic) if !words.is_empty() && !words.starts_with("***") => {
                panic.push(words.to_owned());
            }
            None if words.starts_with("Panic on CPU") => self.0 = Some(Vec::new()),
            _ => {}
        }
        None
    }

    /// What is to be said of a panic whose last line never came.
    pub(crate) fn unfinished(&self) -> Option<Outcome> {
        self.0.as_ref().map(|words| Outcome::XenPanicked(words.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits =
        Limits { total: Duration::from_secs(60), silence: Duration::from_secs(30) };

    /// Judges a console, and returns the guest's lines with the outcome.
    fn judge(console: &str, otherwise: Stop) -> (Vec<String>, Outcome) {
        let mut reader = Reader::default();
        let mut guest = Vec::new();
        let mut stop = otherwise;
        for line in console.lines() {
            let (shown, flow) = reader.line(line);
            if let Line::Guest(line) = shown {
                guest.push(line.to_owned());
            }
            if flow.is_break() {
                stop = Stop::Seen;
                break;
            }
        }
        let (qemu, tail, time) = ("exit status: 0".to_owned(), Vec::new(), Duration::ZERO);
        (guest, reader.judge(&Ending { stop, qemu, tail, time }, LIMITS))
    }

    const HAND_OVER: &str = " Xen 4.17\n(XEN) *** Serial input to DOM0 (type 'CTRL-a')\n";

    #[test]
    fn the_guests_lines_are_told_from_xens_and_its_verdict_is_taken() {
        let (guest, outcome) = judge(
            &format!(
                "{HAND_OVER}hello\n(XEN) a word\nPVMMU-VERDICT pass yes\n\
                 (XEN) Hardware Dom0 shutdown: rebooting machine\n"
            ),
            Stop::Closed,
        );
        assert_eq!(guest, ["hello", "PVMMU-VERDICT pass yes"]);
        assert_eq!(outcome, Outcome::Verdict(Verdict::Pass("yes".into())));
    }

    #[test]
    fn a_guest_that_says_nothing_and_shuts_down_has_no_verdict() {
        let console = format!("{HAND_OVER}hello\n(XEN) Hardware Dom0 halted: halting machine\n");
        let (_, outcome) = judge(&console, Stop::Closed);
        assert!(matches!(outcome, Outcome::NoVerdict(how) if how.contains("halting machine")));
    }

    #[test]
    fn a_crash_after_a_passing_verdict_is_a_crash() {
        let console = format!("{HAND_OVER}PVMMU-VERDICT pass\n(XEN) Hardware Dom0 crashed: x\n");
        assert!(matches!(judge(&console, Stop::Closed).1, Outcome::Crashed(_)));
    }

    #[test]
    fn a_guest_that_does_not_end_hangs_even_if_it_said_pass() {
        let (_, outcome) = judge(&format!("{HAND_OVER}x\n"), Stop::OutOfTime);
        assert_eq!(outcome, Outcome::Hung { limit: LIMITS.total, verdict: None });
        let (_, outcome) = judge(&format!("{HAND_OVER}PVMMU-VERDICT pass\n"), Stop::Silence);
        assert!(matches!(outcome, Outcome::Hung { verdict: Some(Verdict::Pass(_)), .. }));
        let (_, outcome) = judge(HAND_OVER, Stop::Silence);
        assert_eq!(outcome, Outcome::Silent(LIMITS.silence));
    }

    #[test]
    fn a_panic_of_xen_is_quoted() {
        let console = "(XEN) ****\n(XEN) Panic on CPU 0:\n(XEN) Could not construct d0\n\
                       (XEN) ****\n(XEN)\n(XEN) Reboot in five seconds...\n";
        let (_, outcome) = judge(console, Stop::Closed);
        assert_eq!(outcome, Outcome::XenPanicked("Could not construct d0".into()));
    }

    #[test]
    fn qemu_that_ends_in_the_middle_is_a_problem_of_the_machine() {
        let (_, outcome) = judge(HAND_OVER, Stop::Closed);
        assert_eq!(outcome, Outcome::QemuEnded("exit status: 0".into()));
    }
}
