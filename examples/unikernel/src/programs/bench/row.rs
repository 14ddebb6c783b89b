//! What is measured, and the lines that say it: one JSON object each, for `cargo xtask bench`.
#![expect(unsafe_code, reason = "submits bare requests on address spaces of the bench's own")]

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use hypercall::middleware::Counts;
use hypercall::{Batch, Cpu, Full, Machine};

use super::super::OrSay as _;
use super::Storage;
use super::memory::Memory;
use crate::program::Kernel;

/// How a line with a row begins.
const MARK: &str = "PVMMU-BENCH";

/// What the rows are measured with.
pub(super) struct Bench<'b, 'a, M> {
    /// The guest; its pool is empty.
    pub(super) kernel: &'b mut Kernel<'a, M>,
    /// All its frames.
    pub(super) memory: Memory,
    /// Room for batches.
    pub(super) storage: Box<Storage>,
    /// Ticks inside requests so far.
    pub(super) in_xen: &'b dyn Fn() -> u64,
    /// Rows so far.
    pub(super) rows: usize,
}

/// What something cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Ticks of the clock: instructions, under `--icount`.
    pub(super) ticks: u64,
    /// Those of them that passed inside requests.
    pub(super) in_xen: u64,
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
        let (ticks, in_xen) = (self.ticks + other.ticks, self.in_xen + other.in_xen);
        Self { ticks, in_xen, counts }
    }
}

/// Where a measurement began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    ticks: u64,
    in_xen: u64,
    counts: Counts,
}

fn begin<M: Machine + Cpu>(kernel: &Kernel<'_, M>, in_xen: &dyn Fn() -> u64) -> Start {
    let (counts, in_xen) = (kernel.guest.machine().counts(), in_xen());
    Start { counts, in_xen, ticks: kernel.cpu.ticks() }
}

fn end<M: Machine + Cpu>(kernel: &Kernel<'_, M>, in_xen: &dyn Fn() -> u64, start: Start) -> Cost {
    let ticks = kernel.cpu.ticks().wrapping_sub(start.ticks);
    let counts = kernel.guest.machine().counts() - start.counts;
    Cost { ticks, in_xen: in_xen().wrapping_sub(start.in_xen), counts }
}

impl<M: Machine + Cpu> Bench<'_, '_, M> {
    /// Starts to measure.
    pub(super) fn begin(&self) -> Start {
        begin(self.kernel, self.in_xen)
    }

    /// What was spent since `start`.
    pub(super) fn end(&self, start: Start) -> Cost {
        end(self.kernel, self.in_xen, start)
    }

    /// What it costs to send what `push` puts into a batch.
    pub(super) fn send(
        &mut self,
        push: impl FnOnce(&mut Batch<'_>) -> Result<(), Full>,
    ) -> Result<Cost, String> {
        let mut batch = self.storage.batch();
        push(&mut batch).or_say("batch")?;
        let start = begin(self.kernel, self.in_xen);
        // SAFETY: the callers change tables of address spaces that this program made, which no Rust
        // object lives in.
        let sent = unsafe { batch.submit(self.kernel.guest.machine()) };
        let cost = end(self.kernel, self.in_xen, start);
        sent.or_say("a bare request").map(|()| cost)
    }

    /// Prints a row: an operation on `size` things of a kind cost so much, and Xen alone takes
    /// `floor` ticks for it.
    pub(super) fn row(
        &mut self,
        operation: &str,
        unit: &str,
        size: u64,
        cost: Cost,
        floor: Option<u64>,
    ) -> Result<(), String> {
        self.rows += 1;
        let row = Row { operation, unit, size, cost, floor };
        writeln!(self.kernel.console, "{MARK} {row}").or_say("console")
    }
}

/// A row, shown as a JSON object.
struct Row<'r> {
    operation: &'r str,
    unit: &'r str,
    size: u64,
    cost: Cost,
    floor: Option<u64>,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, unit, size, cost, floor } = self;
        // Names are plain words: nothing in them is special in JSON or in Rust's quotes.
        write!(f, "{{\"operation\":{operation:?},\"unit\":{unit:?},\"size\":{size},")?;
        write!(f, "\"instructions\":{},\"in_xen\":{},", cost.ticks, cost.in_xen)?;
        write!(f, "\"traps\":{},\"entries\":{},", cost.counts.hypercalls, cost.counts.entries)?;
        match floor {
            Some(floor) => write!(f, "\"floor\":{floor}}}"),
            None => write!(f, "\"floor\":null}}"),
        }
    }
}
