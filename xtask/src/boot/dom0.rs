//! Our guest as dom0: Xen boots it directly, and both write to the same console. Xen's lines begin
//! with `(XEN)`; all others after the hand-over are the guest's.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;

use super::console::{Limits, Stop};
use super::machine::{Ending, Machine, Module};
use super::outcome::{Outcome, Report};
use super::panic::PanicReader;
use super::verdict::Verdict;
use super::{Guest, Host, Line};

/// What the machine has besides the guest's memory: room for Xen, its heap and its frame table.
const XEN_MEMORY_MIB: u32 = 192;

/// Boots the guest as dom0 and judges it. `show` gets every line as it comes.
///
/// # Errors
///
/// QEMU cannot be started, or a signal asked us to end.
pub(crate) fn boot(
    host: &Host<'_>,
    guest: &Guest,
    log: PathBuf,
    mut show: impl FnMut(Line<'_>),
) -> Result<Report> {
    let limits = Limits { total: guest.limit, silence: guest.limit / 2 };
    let mut reader = Reader::default();
    let ending = machine(host, guest)
        .boot(&log, |console| console.watch(limits, |line| reader.line(line, &mut show)))?;
    let outcome = reader.judge(&ending, limits);
    Ok(Report { outcome, tail: ending.tail, log, time: ending.time })
}

fn machine<'a>(host: &'a Host<'_>, guest: &Guest) -> Machine<'a> {
    let memory = guest.memory_mib;
    let kernel = Module { file: guest.kernel.clone(), arguments: guest.arguments.clone() };
    let module = guest.module.clone();
    let module = module.map(|file| Module { file, arguments: String::new() });
    Machine {
        qemu: host.qemu,
        xen: &host.xen,
        xen_arguments: format!("dom0_mem={memory}M,max:{memory}M dom0_max_vcpus={}", guest.vcpus),
        modules: [kernel].into_iter().chain(module).collect(),
        memory_mib: memory + memory / 16 + XEN_MEMORY_MIB,
        processors: host.processors.unwrap_or(guest.vcpus),
        clock: host.clock,
        cpu: host.cpu.as_deref(),
        devices: &host.devices,
        ssh_port: None,
    }
}

/// What was read so far.
#[derive(Debug, Default)]
struct Reader {
    /// The beginning of a line into which Xen wrote one of its own.
    interrupted: String,
    handed_over: bool,
    verdict: Option<Verdict>,
    panic: PanicReader,
    outcome: Option<Outcome>,
}

impl Reader {
    fn line(&mut self, line: &str, show: &mut impl FnMut(Line<'_>)) -> ControlFlow<()> {
        // The guest's line comes in pieces, and Xen may write in between.
        if let Some(at) = line.find("(XEN)") {
            self.interrupted.push_str(&line[..at]);
            show(Line::Other(&line[at..]));
            self.xen_line(line[at..].trim_start_matches("(XEN)").trim());
            return match self.outcome {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            };
        }
        let line = std::mem::take(&mut self.interrupted) + line;
        let verdict = Verdict::parse(&line);
        // Only a guest gives a verdict, whatever Xen wrote before.
        if self.handed_over || verdict.is_some() {
            self.verdict = verdict.or(self.verdict.take());
            show(Line::Guest(&line));
        } else {
            show(Line::Other(&line));
        }
        ControlFlow::Continue(())
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
            let mut show = |line: Line<'_>| {
                if let Line::Guest(text) = line {
                    guest.push(text.to_owned());
                }
            };
            if reader.line(line, &mut show).is_break() {
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
    fn a_line_that_xen_broke_in_two_is_joined_again() {
        let console = format!(
            "{HAND_OVER}D 6200 (XEN) uart interrupt taking more than 4ms\n258ee1a6\n\
             PVMMU-VERDICT pass x\n(XEN) Hardware Dom0 shutdown: rebooting machine\n"
        );
        let (guest, outcome) = judge(&console, Stop::Closed);
        assert_eq!(guest, ["D 6200 258ee1a6", "PVMMU-VERDICT pass x"]);
        assert!(outcome.passed());
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
