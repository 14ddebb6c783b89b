//! What the terminal shows while something takes time: a spinner with the time gone by on a
//! terminal, one calm line a step everywhere else. All of it goes to standard error; standard
//! output belongs to the guest.

use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The spinners of steps that go on at the same time, one below the other.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A step that takes time.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    bar: ProgressBar,
    started: Instant,
}

impl Step {
    /// Shows that the step has begun.
    pub(crate) fn begin(name: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            SPINNERS.add(ProgressBar::new_spinner())
        } else {
            ProgressBar::hidden()
        };
        let template = "{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { name: name.to_owned(), bar, started: Instant::now() }
    }

    /// Says what the step is at, for a person who watches.
    pub(crate) fn at(&self, detail: impl Into<String>) {
        self.bar.set_message(detail.into());
    }

    /// Ends the step and leaves a line that says how it went.
    pub(crate) fn end(self, outcome: &str) {
        self.bar.finish_and_clear();
        eprintln!("  {} {outcome} ({})", self.name, seconds(self.started.elapsed()));
    }

    /// Ends the step and leaves nothing.
    pub(crate) fn vanish(self) -> Duration {
        self.bar.finish_and_clear();
        self.started.elapsed()
    }
}

/// Does one step, showing what it does.
///
/// # Errors
///
/// The step's own.
pub(crate) fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step::begin(name);
    let result = work(&step);
    match &result {
        Ok(_) => step.end("done"),
        Err(_) => step.end("failed"),
    }
    result
}

/// Returns a time as a person says it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
