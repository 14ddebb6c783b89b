//! Guests under xl: on an emulated machine's dom0, or on a real one by ssh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::cases::{CASES, Case, EXAMINED, LIVES};
use super::examine;
use super::session::{Passed, Session};
use crate::boot::outcome::Outcome;
use crate::boot::remote::Remote;
use crate::boot::verdict::Verdict;
use crate::boot::{Clock, Dom0, Guest, Host, Line, rehearsal};
use crate::cli::HostArguments;
use crate::paths::HostFolder;
use crate::provision::qemu::Qemu;
use crate::provision::{linux, xen};
use crate::release::Release;
use crate::{ExitStatus, guest, process};

/// A dom0, and the guests for it.
pub(super) struct UnderXl<'a> {
    pub(super) dom0: Dom0<'a>,
    pub(super) folder: &'a HostFolder,
    pub(super) kernel: &'a Path,
    /// What it is called.
    pub(super) xen: String,
    /// What there is for a guest.
    pub(super) memory_mib: u32,
}

/// Does `cargo xtask host`: runs all of this on a real dom0.
///
/// # Errors
///
/// It cannot be reached, the guest does not build, or a signal asked us to end.
pub(crate) fn on_host(arguments: &HostArguments) -> Result<ExitStatus> {
    let folder = HostFolder::open()?;
    let mut session = Session::default();
    let Some(host) = &arguments.host else {
        let qemu = {
            let _lock = folder.lock()?;
            Qemu::require(&folder)?
        };
        let kernel = guest::kernel(arguments.kernel.as_deref())?;
        rehearse(&mut session, &folder, &qemu, &kernel)?;
        return Ok(session.close());
    };
    let remote = Remote::connect(&arguments.ssh, host)?;
    eprintln!("{host}: Xen {}, {} MiB free", remote.xen, remote.free_mib);
    let kernel = guest::kernel(arguments.kernel.as_deref())?;
    UnderXl::remote(&remote, &folder, &kernel).run(&mut session, &LIVES)?;
    Ok(session.close())
}

/// Returns the same on a machine that is emulated and reached by ssh: what `cargo xtask host` needs
/// of a real one, and that it leaves nothing behind. Few guests do: which ones makes no difference
/// to ssh.
///
/// # Errors
///
/// A signal asked us to end.
pub(super) fn rehearse(
    session: &mut Session,
    folder: &HostFolder,
    qemu: &Qemu,
    kernel: &Path,
) -> Result<()> {
    let mut inner = Session::default();
    session.step("host", "the tests by ssh, on loopback", || {
        let (xen, linux) = {
            let _lock = folder.lock()?;
            let release = Release::Xen4_17;
            (xen::require(folder, release)?, linux::require(folder, release)?)
        };
        let host = Host::new(qemu, xen, Clock::Time);
        let log = folder.new_log("test-host")?;
        rehearsal::with_remote(&host, &linux, log, |remote| {
            let guests = UnderXl::remote(remote, folder, kernel);
            guests.once(&mut inner, &[CASES[1]])?;
            guests.lives(&mut inner, &LIVES[..1])?;
            match remote.guests_left()? {
                left if left.is_empty() => Ok(()),
                left => bail!("left behind: {left}"),
            }
        })?;
        match inner.all_passed() {
            Passed::Yes => Ok(String::new()),
            Passed::No => bail!("not all passed, see above"),
        }
    })?;
    Ok(())
}

impl<'a> UnderXl<'a> {
    fn remote(remote: &'a Remote, folder: &'a HostFolder, kernel: &'a Path) -> Self {
        let xen = format!("Xen {}", remote.xen);
        Self { dom0: Dom0::Remote(remote), folder, kernel, xen, memory_mib: remote.free_mib }
    }

    /// Everything, and `lives`.
    ///
    /// # Errors
    ///
    /// A signal asked us to end.
    pub(super) fn run(&self, session: &mut Session, lives: &[Case]) -> Result<()> {
        self.once(session, &CASES)?;
        self.examined(session)?;
        self.lives(session, lives)
    }

    /// Guests that run once, in one boot of dom0. What the toolstack failed at is tried once more.
    fn once(&self, session: &mut Session, cases: &[Case]) -> Result<()> {
        let fits = |case: &&Case| case.memory_mib.saturating_add(64) <= self.memory_mib;
        let mut cases: Vec<Case> = cases.iter().filter(fits).copied().collect();
        for attempt in 1..=2 {
            let guests: Vec<Guest> = cases.iter().map(|case| case.guest(self.kernel)).collect();
            let reports = match self.dom0.run(&guests, self.log("domU")?, |_| {}) {
                Ok(reports) => reports,
                Err(error) if process::interrupted() => return Err(error),
                Err(error) => {
                    session.record("domU", &self.xen, Duration::ZERO, Err(error))?;
                    return Ok(());
                }
            };
            let mut again = Vec::new();
            for (case, report) in cases.iter().zip(reports) {
                if attempt == 1 && matches!(report.outcome, Outcome::HostFailed { .. }) {
                    eprintln!("{}: once more. {}", case.name(&self.xen), report.outcome);
                    again.push(*case);
                } else {
                    let result = case.judge(&report);
                    session.record("domU", &case.name(&self.xen), report.time, result)?;
                }
            }
            if again.is_empty() {
                break;
            }
            cases = again;
        }
        Ok(())
    }

    /// Guests that dom0 looks at from outside, in one boot.
    fn examined(&self, session: &mut Session) -> Result<()> {
        self.twice(session, "examined", &EXAMINED, |_, lines| examine::compare(lines))
    }

    /// Guests that live under xl. The dumps of those that are dumped are compared with what the
    /// guests say.
    ///
    /// # Errors
    ///
    /// A signal asked us to end.
    pub(super) fn lives(&self, session: &mut Session, cases: &[Case]) -> Result<()> {
        self.twice(session, "lives", cases, |case, lines| match case.is_dumped() {
            true => examine::compare_core(lines),
            false => Ok(String::new()),
        })
    }

    /// Runs guests in one boot of dom0. Under emulation dom0 or its programs crash now and then: a
    /// guest that fails in a boot in which one did, that was not judged for that, or of whose dump
    /// lines are missing, gets a second boot to itself, and what was wrong the first time is told.
    /// All other failures stand.
    fn twice(
        &self,
        session: &mut Session,
        group: &str,
        cases: &[Case],
        look: impl Fn(&Case, &[String]) -> Result<String>,
    ) -> Result<()> {
        if cases.is_empty() {
            return Ok(());
        }
        for judged in self.judged(group, cases, &look)? {
            let name = judged.case.name(&self.xen);
            let Judged { case, time, result: Err(first), is_dom0s: true } = judged else {
                session.record(group, &name, judged.time, judged.result)?;
                continue;
            };
            eprintln!("{name}: once more, as a program of dom0's failed. {first:#}");
            let again = self.judged(group, &[case], &look)?.pop();
            let (time, result) = again.map_or((time, Err(first)), |it| (it.time, it.result));
            let result = result.map(|words| format!("{words} (the second time)"));
            session.record(group, &name, time, result)?;
        }
        Ok(())
    }

    /// Runs guests in one boot, and looks at what each has left.
    fn judged(
        &self,
        what: &str,
        cases: &[Case],
        look: &impl Fn(&Case, &[String]) -> Result<String>,
    ) -> Result<Vec<Judged>> {
        let guests: Vec<Guest> = cases.iter().map(|case| case.guest(self.kernel)).collect();
        let mut lines = Vec::new();
        let mut crashed = false;
        let reports = self.dom0.run(&guests, self.log(what)?, |line| match line {
            Line::Guest(text) => lines.push(text.to_owned()),
            Line::Other(text) => crashed |= tells_of_a_crash(text),
        })?;
        let all = cases.iter().zip(&reports).zip(of_each(&lines));
        let judged = all.map(|((case, report), lines)| Judged {
            case: *case,
            time: report.time,
            result: case.judge(report).and_then(|_| look(case, lines)),
            is_dom0s: crashed
                || examine::misses_lines(lines)
                || matches!(report.outcome, Outcome::HostFailed { .. }),
        });
        Ok(judged.collect())
    }

    fn log(&self, what: &str) -> Result<PathBuf> {
        self.folder.new_log(&format!("test-{what}-{}", self.xen.replace(' ', "-")))
    }
}

/// What came of a guest.
struct Judged {
    case: Case,
    time: Duration,
    result: Result<String>,
    /// Whether a program of dom0's may be what went wrong.
    is_dom0s: bool,
}

/// Returns whether a line of dom0's, its shell's or `toolstack`'s in `dom0_session.sh`, says that a
/// program crashed.
fn tells_of_a_crash(line: &str) -> bool {
    let words = ["Segmentation fault", "Aborted", "Bus error", "Illegal instruction", " crashed: "];
    words.iter().any(|word| line.contains(word))
}

/// Returns the lines of each guest: the verdict is the last one. Guests without a verdict leave no
/// lines to those behind them, and none is forgotten.
fn of_each(lines: &[String]) -> impl Iterator<Item = &[String]> {
    let ended = lines.split(|line| Verdict::parse(line).is_some());
    ended.chain(std::iter::repeat(&[][..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_in_dom0_is_one() {
        assert!(tells_of_a_crash("Segmentation fault"));
        assert!(tells_of_a_crash("note xl restore crashed: child [621] died"));
        assert!(!tells_of_a_crash("waited 600 s for an answer to 3"));
    }

    #[test]
    fn each_guest_has_its_lines_also_when_another_one_has_no_verdict() {
        let lines = ["a", "PVMMU-VERDICT pass x", "b", "c"].map(str::to_owned);
        let mut each = of_each(&lines);
        assert_eq!(each.next(), Some(&lines[..1]));
        assert_eq!(each.next(), Some(&lines[2..]));
        assert_eq!(each.nth(7), Some(&[][..]));
    }
}
