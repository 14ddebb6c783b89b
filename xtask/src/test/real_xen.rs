//! Guests on real Xen: good ones in every size and role, and broken ones that must be recognised
//! for what they are.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cases::{ALONE, CASES, Case, Expectation, LIVES, ON_ANY_CPU, TWO_VCPUS, case};
use super::devices::Devices;
use super::session::{Passed, Session};
use super::under_xl::{self, UnderXl};
use super::{endings, guide};
use crate::boot::outcome::{Outcome, Report};
use crate::boot::verdict::Verdict;
use crate::boot::{Clock, Dom0, Guest, Host, dom0};
use crate::cli::{Role, TestArguments};
use crate::paths::HostFolder;
use crate::prove::{self, Machines, Where};
use crate::provision::linux;
use crate::provision::qemu::Qemu;
use crate::provision::xen;
use crate::release::Release;
use crate::{bench, guest};

/// Random operations on each release and in each role that are compared with the model's.
const OPERATIONS: u64 = 20_000;

/// What the kernel's own verdict says after a fault.
const FAULTED: &str = "the kernel faulted";

/// A CPU that cannot forbid execution, as QEMU names it.
const WITHOUT_NX: &str = "qemu64,-nx";

/// What a boot needs.
struct Setting<'a> {
    folder: &'a HostFolder,
    qemu: &'a Qemu,
    kernel: PathBuf,
}

/// Runs the cases on every release of Xen that the arguments name, in both roles.
///
/// # Errors
///
/// A signal asked us to end.
pub(super) fn run(session: &mut Session, arguments: &TestArguments) -> Result<()> {
    let mut folder = None;
    let mut qemu = None;
    let provisioned = session.step("setup", "QEMU", || {
        let host = folder.insert(HostFolder::open()?);
        let _lock = host.lock()?;
        let found = qemu.insert(Qemu::require(host)?);
        Ok(found.version().to_owned())
    })?;
    let mut kernel = PathBuf::new();
    let built = session.step("setup", "the guest", || {
        kernel = guest::kernel(arguments.kernel.as_deref())?;
        Ok(String::new())
    })?;
    let (Some(folder), Some(qemu), Passed::Yes, Passed::Yes) = (&folder, &qemu, provisioned, built)
    else {
        return Ok(());
    };
    let setting = Setting { folder, qemu, kernel };
    thread::scope(|scope| {
        // What is counted is instructions: the same, whatever else this machine does.
        let counting = runs_once(arguments).then(|| scope.spawn(count));
        let ran = on_machines(session, arguments, &setting);
        if let Some(counted) = counting.map(ScopedJoinHandle::join) {
            let Counted { time, result } = counted.unwrap_or_else(|panic| resume_unwind(panic));
            session.record("bench", "counts against the baseline", time, result)?;
        }
        ran
    })?;
    endings::run(session, &setting.kernel)
}

/// Returns whether what runs on one release, with the project's own kernel, runs.
fn runs_once(arguments: &TestArguments) -> bool {
    arguments.releases().contains(&Release::Xen4_17) && arguments.kernel.is_none()
}

/// What came of the bench.
struct Counted {
    time: Duration,
    result: Result<String>,
}

fn count() -> Counted {
    let started = Instant::now();
    let result = bench::check_once(Release::Xen4_17);
    Counted { time: started.elapsed(), result }
}

fn on_machines(
    session: &mut Session,
    arguments: &TestArguments,
    setting: &Setting<'_>,
) -> Result<()> {
    for &release in arguments.releases() {
        let lives: &[Case] = if arguments.has_lives(release) { &LIVES } else { &[] };
        setting.one_release(session, release, lives)?;
    }
    under_xl::rehearse(session, setting.folder, setting.qemu, &setting.kernel)?;
    compare_with_the_model(session, arguments)?;
    if runs_once(arguments) {
        session.step("guide", "porting guide", || guide::follow(guide::Depth::RealXen))?;
    }
    Ok(())
}

/// Random operations on every release in both roles, and on the model.
fn compare_with_the_model(session: &mut Session, arguments: &TestArguments) -> Result<()> {
    let mut machines = None;
    session.step("prove", "the guest and the model", || {
        machines = Some(Machines::open()?);
        Ok(String::new())
    })?;
    let Some(mut machines) = machines else { return Ok(()) };
    for &release in arguments.releases() {
        for role in [Role::Dom0, Role::Domu] {
            let place = Where { release, role };
            session.step("prove", &place.to_string(), || {
                prove::compare(&mut machines, place, OPERATIONS)
            })?;
        }
    }
    Ok(())
}

impl Setting<'_> {
    fn one_release(&self, session: &mut Session, release: Release, lives: &[Case]) -> Result<()> {
        let mut parts = None;
        session.step("setup", &format!("Xen {release} and a Linux dom0"), || {
            let _lock = self.folder.lock()?;
            let hypervisor = xen::require(self.folder, release)?;
            parts = Some((hypervisor, linux::require(self.folder, release)?));
            Ok(String::new())
        })?;
        let Some((xen, linux)) = parts else { return Ok(()) };
        let host = Host::new(self.qemu, xen, Clock::Time);
        for case in CASES {
            self.as_dom0(session, release, &host, case)?;
        }
        let crowded = Host { processors: Some(1), ..host.clone() };
        self.as_dom0(session, release, &crowded, TWO_VCPUS)?;
        self.as_dom0(session, release, &host, case("identity", 256, Expectation::Pass))?;
        self.with_list_outside(session, release, &host)?;
        if release == Release::Xen4_17 {
            let without = Host { cpu: Some(WITHOUT_NX.to_owned()), ..host.clone() };
            for case in ON_ANY_CPU {
                self.as_dom0(session, release, &without, case)?;
            }
        }
        let panic = case("no kernel", 256, Expectation::XenPanic);
        self.as_dom0(session, release, &host, panic)?;
        let guest = panic.guest(&self.kernel);
        let devices = Devices { folder: self.folder, host: host.clone(), guest, release };
        devices.run(session)?;
        let under_xl = UnderXl {
            dom0: Dom0::Emulated(&host, &linux),
            folder: self.folder,
            kernel: &self.kernel,
            xen: format!("Xen {release}"),
            memory_mib: u32::MAX,
        };
        under_xl.run(session, lives)?;
        let alone: &[Case] = if lives.is_empty() { &[] } else { &ALONE };
        under_xl.lives(session, alone)
    }

    /// dom0 with its list where INIT_P2M says.
    fn with_list_outside(
        &self,
        session: &mut Session,
        release: Release,
        host: &Host<'_>,
    ) -> Result<()> {
        for memory_mib in [256, 2048] {
            let case = case("memory", memory_mib, Expectation::Pass);
            let name = format!("{}, INIT_P2M", case.name(&format!("Xen {release}")));
            session.step("dom0", &name, || {
                let kernel = guest::with_list_outside(&self.kernel)?;
                let log = self.folder.new_log(&format!("test-dom0-{release}-init-p2m"))?;
                case.judge(&dom0::boot(host, &case.guest(kernel.path()), log, |_| {})?)
            })?;
        }
        Ok(())
    }

    fn as_dom0(
        &self,
        session: &mut Session,
        release: Release,
        host: &Host<'_>,
        case: Case,
    ) -> Result<()> {
        let mut name = case.name(&format!("Xen {release}"));
        if let Some(processors) = host.processors {
            name.push_str(&format!(", processors: {processors}"));
        }
        if let Some(cpu) = &host.cpu {
            name.push_str(&format!(", CPU {cpu}"));
        }
        session.step("dom0", &name, || {
            let mut guest = case.guest(&self.kernel);
            let nothing = tempfile::NamedTempFile::new()?;
            if case.expectation == Expectation::XenPanic {
                fs::write(nothing.path(), "This is no kernel.\n".repeat(1000))?;
                guest.kernel = nothing.path().to_owned();
            }
            let log = self.folder.new_log(&format!("test-dom0-{release}-{}", case.program))?;
            case.judge(&dom0::boot(host, &guest, log, |_| {})?)
        })?;
        Ok(())
    }
}

impl Case {
    /// Returns what it is called, on `xen`.
    pub(super) fn name(&self, xen: &str) -> String {
        format!("{xen}, {:>4} MiB: {}", self.memory_mib, self.program)
    }

    /// Returns whether its toolstack dumps its core.
    pub(super) fn is_dumped(&self) -> bool {
        self.program.contains("dump-core")
    }

    /// Returns the guest to boot.
    pub(super) fn guest(&self, kernel: &Path) -> Guest {
        Guest {
            kernel: kernel.to_owned(),
            arguments: self.program.to_owned(),
            module: None,
            memory_mib: self.memory_mib,
            maximum_mib: self.maximum_mib,
            vcpus: self.vcpus,
            limit: Duration::from_secs(self.seconds),
        }
    }

    /// Compares what came with what must come.
    pub(super) fn judge(&self, report: &Report) -> Result<String> {
        let outcome = &report.outcome;
        let as_expected = match self.expectation {
            Expectation::Pass => outcome.passed(),
            Expectation::Fault => match outcome {
                Outcome::Crashed(_) => true,
                Outcome::Verdict(Verdict::Fail(why)) => why == FAULTED,
                _ => false,
            },
            Expectation::NoVerdict => matches!(outcome, Outcome::NoVerdict(_)),
            Expectation::Hang => matches!(outcome, Outcome::Hung { .. } | Outcome::Silent(_)),
            Expectation::XenPanic => matches!(outcome, Outcome::XenPanicked(_)),
        };
        if !as_expected {
            bail!("expected {:?}. {report}", self.expectation);
        }
        let text = report.to_string();
        let first = text.lines().next().context("a report has no text")?;
        if !outcome.passed() && report.tail.is_empty() {
            bail!("the report quotes no line of the console: {first}");
        }
        Ok(match self.expectation {
            Expectation::Pass => String::new(),
            other => format!("({other:?}, as it should)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        let tail = vec!["a line".to_owned()];
        Report { outcome, tail, log: PathBuf::from("log"), time: Duration::ZERO }
    }

    #[test]
    fn a_case_takes_the_outcome_that_it_expects_and_no_other() {
        let outcomes = [
            (Expectation::Pass, Outcome::Verdict(Verdict::Pass(String::new()))),
            (Expectation::Fault, Outcome::Crashed("x".into())),
            (Expectation::NoVerdict, Outcome::NoVerdict("x".into())),
            (Expectation::Hang, Outcome::Hung { limit: Duration::ZERO, verdict: None }),
            (Expectation::XenPanic, Outcome::XenPanicked("x".into())),
        ];
        for (expectation, _) in &outcomes {
            for (natural, outcome) in &outcomes {
                let judged = case("x", 1, *expectation).judge(&report(outcome.clone()));
                assert_eq!(judged.is_ok(), expectation == natural, "{expectation:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn a_verdict_that_fails_for_another_reason_is_no_fault() {
        let fault = |why: &str| {
            let outcome = Outcome::Verdict(Verdict::Fail(why.into()));
            case("fault", 1, Expectation::Fault).judge(&report(outcome)).is_ok()
        };
        assert!(fault(FAULTED) && !fault("step 3: EINVAL"));
    }

    #[test]
    fn a_failing_toolstack_is_never_what_a_case_expects() {
        let outcome = Outcome::HostFailed { step: "x".into(), detail: "y".into() };
        for case in CASES {
            assert!(case.judge(&report(outcome.clone())).is_err());
        }
    }

    #[test]
    fn a_broken_guest_whose_report_shows_nothing_is_a_failure() {
        let mut silent = report(Outcome::NoVerdict("x".into()));
        silent.tail.clear();
        assert!(case("silent", 256, Expectation::NoVerdict).judge(&silent).is_err());
    }
}
