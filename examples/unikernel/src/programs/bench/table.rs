//! The table that the bench prints, and the targets that it judges.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

use hypercall::{Counts, Cpu, Machine};

use crate::guest::Guest;
use crate::report::Verdict;

/// What something cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Ticks of the clock: instructions, under `--icount`.
    pub(super) ticks: u64,
    /// What went to Xen.
    pub(super) counts: Counts,
}

impl Cost {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        let counts = Counts {
            hypercalls: self.counts.hypercalls + other.counts.hypercalls,
            entries: self.counts.entries + other.counts.entries,
            refused: self.counts.refused + other.counts.refused,
        };
        Self { ticks: self.ticks + other.ticks, counts }
    }
}

/// Runs `work` and says what it cost.
pub(super) fn measure<M: Machine + Cpu, T>(
    guest: &mut Guest<'_, M>,
    work: impl FnOnce(&mut Guest<'_, M>) -> Result<T, String>,
) -> Result<(T, Cost), String> {
    let counts = guest.machine.counts();
    let start = guest.cpu.ticks();
    let value = work(guest)?;
    let ticks = guest.cpu.ticks().wrapping_sub(start);
    Ok((value, Cost { ticks, counts: guest.machine.counts() - counts }))
}

/// What a cost is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Whose figure.
    pub(super) of: &'static str,
    /// The figure, for the whole row.
    pub(super) figure: u64,
    /// At most this many hundredths of it.
    pub(super) hundredths: u64,
}

/// The table so far.
pub(super) struct Table {
    rows: usize,
    judged: usize,
    missed: Vec<String>,
}

macro_rules! row {
    ($out:expr, $name:expr, $size:expr, $ticks:expr, $each:expr, $traps:expr, $entries:expr) => {
        write!(
            $out,
            "{:<47}{:>7}{:>12}{:>9}{:>6}{:>8}",
            $name, $size, $ticks, $each, $traps, $entries
        )
    };
}

impl Table {
    /// Prints the head.
    pub(super) fn begin<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Result<Self, fmt::Error> {
        row!(guest.console, "operation", "size", "ticks", "each", "traps", "entries")?;
        writeln!(guest.console, "  against")?;
        Ok(Self { rows: 0, judged: 0, missed: Vec::new() })
    }

    /// Prints a row: `size` things were done for `cost`.
    pub(super) fn row<M: Machine + Cpu>(
        &mut self,
        guest: &mut Guest<'_, M>,
        (name, size): (&str, u64),
        cost: Cost,
        targets: &[Target],
    ) -> Result<(), String> {
        let each = cost.ticks / size.max(1);
        let Counts { hypercalls, entries, .. } = cost.counts;
        let mut line = String::new();
        // Writing to a string does not fail.
        let _ = row!(line, name, size, cost.ticks, each, hypercalls, entries);
        for target in targets {
            let share = cost.ticks * 1000 / target.figure.max(1);
            let met = cost.ticks * 100 <= target.figure * target.hundredths;
            let word = if met { "met" } else { "MISSED" };
            let ratio = format!(
                "{}.{:03} of {} (at most {}.{:02}: {word})",
                share / 1000,
                share % 1000,
                target.of,
                target.hundredths / 100,
                target.hundredths % 100
            );
            let _ = write!(line, "  {ratio}");
            self.judged += 1;
            if !met {
                self.missed.push(format!("{name}: {ratio}"));
            }
        }
        self.rows += 1;
        writeln!(guest.console, "{line}").map_err(|_| "console".into())
    }

    /// The verdict.
    pub(super) fn end<M: Machine + Cpu>(self, guest: &mut Guest<'_, M>) -> Verdict {
        for missed in &self.missed {
            writeln!(guest.console, "missed: {missed}").map_err(|_| "console")?;
        }
        let Self { rows, judged, missed } = self;
        let met = judged - missed.len();
        Ok(format!("{rows} rows, {met} of {judged} targets met"))
    }
}
