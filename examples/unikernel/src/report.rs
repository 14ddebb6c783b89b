//! The report of a program: its steps as a table, and its verdict.

use alloc::string::String;
use core::fmt;

use hypercall::middleware::Counts;
use hypercall::{Cpu, Machine};

use crate::program::Kernel;

/// How a program ended: a sentence for each case.
pub(crate) type Verdict = Result<String, String>;

/// Widths of the columns: step, hypercalls, entries, ticks.
macro_rules! row {
    ($out:expr, $step:expr, $hypercalls:expr, $entries:expr, $ticks:expr) => {
        writeln!($out, "{:<44} {:>10} {:>8} {:>12}", $step, $hypercalls, $entries, $ticks)
    };
}

/// Prints a row for each step that a program takes.
pub(crate) struct Steps {
    counts: Counts,
    ticks: u64,
    taken: u32,
    total: Counts,
}

impl Steps {
    /// Prints the head of the table and starts to count.
    pub(crate) fn begin<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<Self, fmt::Error> {
        row!(kernel.console, "step", "hypercalls", "entries", "TSC ticks")?;
        writeln!(kernel.console, "{:-<77}", "")?;
        let counts = kernel.guest.machine().counts();
        Ok(Self { counts, ticks: kernel.cpu.ticks(), taken: 0, total: Counts::default() })
    }

    /// Prints the row of the step that has just been taken.
    pub(crate) fn done<M: Machine + Cpu>(
        &mut self,
        kernel: &mut Kernel<'_, M>,
        step: &str,
    ) -> Result<(), fmt::Error> {
        let ticks = kernel.cpu.ticks().wrapping_sub(self.ticks);
        let counts = kernel.guest.machine().counts() - self.counts;
        row!(kernel.console, step, counts.hypercalls, counts.entries, ticks)?;
        self.taken += 1;
        self.total.hypercalls += counts.hypercalls;
        self.total.entries += counts.entries;
        self.counts = kernel.guest.machine().counts();
        // Printing is not part of the next step.
        self.ticks = kernel.cpu.ticks();
        Ok(())
    }

    /// Prints the foot of the table.
    pub(crate) fn end<M: Machine>(&self, kernel: &mut Kernel<'_, M>) -> fmt::Result {
        writeln!(kernel.console, "{:-<77}", "")?;
        row!(kernel.console, "in all", self.total.hypercalls, self.total.entries, "")
    }

    /// What a verdict says of the work done.
    pub(crate) fn summary(&self) -> String {
        let Counts { hypercalls, entries, .. } = self.total;
        alloc::format!("{} steps, {hypercalls} hypercalls, {entries} entries", self.taken)
    }
}

/// Prints the line that ends every run.
pub(crate) fn print_verdict(console: &mut dyn fmt::Write, verdict: &Verdict) -> fmt::Result {
    match verdict {
        Ok(summary) => writeln!(console, "PVMMU-VERDICT pass {summary}"),
        Err(reason) => writeln!(console, "PVMMU-VERDICT fail {reason}"),
    }
}
