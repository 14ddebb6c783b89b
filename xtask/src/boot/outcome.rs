//! Everything that can come of a boot. Each outcome is one paragraph for a person who did not watch
//! it; [`Report`] adds the last lines of the console and where the rest is.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::verdict::Verdict;
use crate::ExitStatus;

/// What came of a boot, or of one guest in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The guest ran to its end and judged itself.
    Verdict(Verdict),
    /// The guest shut down in order, but without a verdict. Holds how Xen or xl put it.
    NoVerdict(String),
    /// Xen ended the guest, or the guest said that it crashed. Holds how Xen or xl put it.
    Crashed(String),
    /// The guest was still running when its time was up.
    Hung {
        /// The time it had.
        limit: Duration,
        /// What it had said by then.
        verdict: Option<Verdict>,
    },
    /// Nothing at all came from the console for so long.
    Silent(Duration),
    /// The hypervisor itself gave up. Holds its words.
    XenPanicked(String),
    /// QEMU ended before anything was decided. Holds its status and its words.
    QemuEnded(String),
    /// The Linux dom0 or its toolstack failed, not our guest.
    HostFailed {
        /// What it was about to do.
        step: String,
        /// What it said.
        detail: String,
    },
}

impl Outcome {
    /// Returns whether the guest passed.
    pub(crate) fn passed(&self) -> bool {
        matches!(self, Self::Verdict(Verdict::Pass(_)))
    }

    /// Returns what the shell is told.
    pub(crate) fn status(&self) -> ExitStatus {
        match self {
            Self::Verdict(Verdict::Pass(_)) => ExitStatus::Pass,
            Self::QemuEnded(_) | Self::HostFailed { .. } => ExitStatus::Environment,
            _ => ExitStatus::Fail,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(Verdict::Pass(text)) => write!(f, "The guest passed: {text}"),
            Self::Verdict(Verdict::Fail(text)) => {
                write!(f, "The guest ran to its end and says that it failed: {text}")
            }
            Self::NoVerdict(how) => write!(
                f,
                "The guest shut down without a verdict ({how}), so nothing is known about what \
                 it did. A guest program must end with a line `PVMMU-VERDICT pass ...` or \
                 `PVMMU-VERDICT fail ...`."
            ),
            Self::Crashed(how) => write!(
                f,
                "The guest crashed ({how}). Its own fault report, if it got that far, and what \
                 Xen says about the domain are among the last lines below."
            ),
            Self::Hung { limit, verdict } => {
                let limit = limit.as_secs();
                write!(f, "The guest was still running after {limit} s and was ended. ")?;
                match verdict {
                    Some(verdict) => write!(f, "It had said `{verdict}` but did not shut down."),
                    None => write!(
                        f,
                        "It hangs or needs longer (`--timeout SECONDS`); the last lines below \
                         show how far it came."
                    ),
                }
            }
            Self::Silent(time) => write!(
                f,
                "Nothing came from the console for {} s, so the boot was ended. The guest hangs, \
                 or needs longer between two lines (`--timeout SECONDS`).",
                time.as_secs()
            ),
            Self::XenPanicked(words) => write!(
                f,
                "Xen itself panicked: {words}. Before the guest's first line this means that \
                 Xen cannot load the guest or lacks memory; after it, that the guest brought \
                 down the hypervisor."
            ),
            Self::QemuEnded(how) => write!(
                f,
                "QEMU ended before the guest came to an end ({how}). This is a problem of this \
                 machine or of the harness, or a triple fault of the hypervisor, not a verdict \
                 on the guest."
            ),
            Self::HostFailed { step, detail } => write!(
                f,
                "The Linux dom0 or its toolstack failed at `{step}`: {detail}. This is no verdict \
                 on the guest, which was not judged."
            ),
        }
    }
}

/// An outcome with its evidence.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// What happened.
    pub(crate) outcome: Outcome,
    /// The last lines of the console.
    pub(crate) tail: Vec<String>,
    /// The whole console.
    pub(crate) log: PathBuf,
    /// What it took. The first guest of a boot counts the boot as its own.
    pub(crate) time: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.outcome)?;
        if !self.tail.is_empty() {
            writeln!(f, "Last lines of the console:")?;
        }
        for line in &self.tail {
            writeln!(f, "  | {line}")?;
        }
        write!(f, "The whole console: {}", self.log.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_failure() -> Vec<Outcome> {
        let second = Duration::from_secs(1);
        vec![
            Outcome::Verdict(Verdict::Fail("x".into())),
            Outcome::NoVerdict("x".into()),
            Outcome::Crashed("x".into()),
            Outcome::Hung { limit: second, verdict: None },
            Outcome::Silent(second),
            Outcome::XenPanicked("x".into()),
            Outcome::QemuEnded("x".into()),
            Outcome::HostFailed { step: "x".into(), detail: "y".into() },
        ]
    }

    #[test]
    fn only_a_passing_verdict_passes() {
        assert_eq!(Outcome::Verdict(Verdict::Pass(String::new())).status(), ExitStatus::Pass);
        for outcome in every_failure() {
            assert_ne!(outcome.status(), ExitStatus::Pass, "{outcome:?}");
            assert!(!outcome.passed(), "{outcome:?}");
        }
    }

    #[test]
    fn a_toolstack_failure_is_told_apart_from_a_failing_guest() {
        let toolstack = Outcome::HostFailed { step: "xl create".into(), detail: "busy".into() };
        assert_eq!(toolstack.status(), ExitStatus::Environment);
        assert_eq!(Outcome::Crashed("c".into()).status(), ExitStatus::Fail);
    }

    #[test]
    fn every_failure_is_one_paragraph() {
        for outcome in every_failure() {
            let text = outcome.to_string();
            assert!(!text.contains('\n') && !text.contains("  "), "{text}");
        }
    }
}
