//! Every failure of a scenario, one after the other.
//!
//! The scenario runs once undisturbed, so that its requests are known; then once for each request,
//! each errno that Xen can give there and each count of elements that may have taken effect before
//! it. After every run the model must audit clean, and whatever the caller wants to be true must
//! be.

use core::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hypercall::middleware::{Asked, FailNth, Refusal};
use hypercall::{Errno, Hypercall};

use crate::model::Model;

/// A run of the scenario in which one request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was refused.
    pub asked: Asked,
    /// How.
    pub refusal: Refusal,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, refusal } = self;
        write!(
            f,
            "request {} ({} of {} elements) refused with {} after {}",
            refusal.request, asked.hypercall, asked.elements, refusal.errno, refusal.done
        )
    }
}

/// What went wrong in which run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepError {
    /// The run; none for the undisturbed one.
    pub failure: Option<Failure>,
    /// What was found.
    pub finding: String,
}

impl fmt::Display for SweepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.failure {
            Some(failure) => write!(f, "{failure}: {}", self.finding),
            None => write!(f, "undisturbed: {}", self.finding),
        }
    }
}

impl core::error::Error for SweepError {}

/// What a sweep has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Requests of the undisturbed run.
    pub requests: usize,
    /// Runs with a refusal.
    pub runs: usize,
}

/// The machine that a scenario runs on.
pub type Failing<'m> = FailNth<&'m Model>;

/// A request number that no scenario reaches.
const NEVER: u64 = u64::MAX;

/// Runs `scenario` with every failure there can be, each time on a new machine from `build`.
///
/// `check` is given the machine, what was refused (nothing in the undisturbed run), and what the
/// scenario answered; it says in a sentence what is wrong.
///
/// # Errors
/// [`SweepError`] with the first run that panicked, left the counts wrong, stored to a read-only
/// frame or used a stale translation, or did not pass `check`.
pub fn for_each_failure<T>(
    build: impl Fn() -> Model,
    scenario: impl Fn(&Failing<'_>) -> T,
    check: impl Fn(&Model, Option<&Failure>, T) -> Result<(), String>,
) -> Result<Sweep, SweepError> {
    let run = |failure: Option<Failure>| {
        let model = build();
        model.record_requests();
        let never = Refusal { request: NEVER, errno: Errno::EINVAL, done: 0 };
        let refusal = failure.map_or(never, |failure| failure.refusal);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let machine = FailNth::new(&model, refusal);
            let answer = scenario(&machine);
            examine(&model)?;
            check(&model, failure.as_ref(), answer)
        }));
        let finding = match outcome {
            Ok(Ok(())) => return Ok(model.take_requests()),
            Ok(Err(finding)) => finding,
            Err(_) => "it panicked".to_owned(),
        };
        Err(SweepError { failure, finding })
    };
    let requests = run(None)?;
    let mut sweep = Sweep { requests: requests.len(), runs: 0 };
    for (request, asked) in requests.iter().enumerate() {
        for errno in errnos(asked.hypercall) {
            for done in dones(asked.elements) {
                let refusal = Refusal { request: request as u64, errno: *errno, done };
                run(Some(Failure { asked: *asked, refusal }))?;
                sweep.runs += 1;
            }
        }
    }
    Ok(sweep)
}

fn examine(model: &Model) -> Result<(), String> {
    model.audit().map_err(|error| error.to_string())?;
    match model.take_violations() {
        violations if violations.is_empty() => Ok(()),
        violations => Err(violations.join("\n")),
    }
}

/// Returns what Xen can answer when it refuses.
const fn errnos(hypercall: Hypercall) -> &'static [Errno] {
    match hypercall {
        Hypercall::MmuUpdate | Hypercall::UpdateVaMapping => {
            &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM]
        }
        Hypercall::MmuExtOp => &[Errno::EINVAL, Errno::EBUSY],
        // Of the operations on extents FailNth makes short counts.
        Hypercall::MemoryOp(_) => &[Errno::EINVAL, Errno::ENOMEM],
        Hypercall::VmAssist => &[Errno::EINVAL],
        Hypercall::GrantTableOp(_) | Hypercall::Multicall | Hypercall::Other(_) => &[Errno::EFAULT],
    }
}

/// Counts of elements that are worth trying.
fn dones(elements: usize) -> impl Iterator<Item = usize> {
    let last = elements.saturating_sub(1);
    let mut dones = vec![0, 1.min(last), elements / 2, last];
    dones.retain(|done| *done <= last);
    dones.sort_unstable();
    dones.dedup();
    dones.into_iter()
}
