//! The lines that say what was measured: in the form of the unikernel's bench.

use anyhow::Result;

use crate::system::ticks;
use crate::trace::{Counted, Trace};

/// Prints rows.
#[derive(Debug)]
pub(crate) struct Rows {
    printed: usize,
    silent: bool,
}

impl Rows {
    /// Nothing is printed yet.
    pub(crate) const fn begin() -> Self {
        Self { printed: 0, silent: false }
    }

    /// Prints nothing: for what is done once before it is measured.
    pub(crate) const fn silent() -> Self {
        Self { printed: 0, silent: true }
    }

    /// How many there are.
    pub(crate) const fn printed(&self) -> usize {
        self.printed
    }

    /// A row of something that is not counted.
    pub(crate) fn one(&mut self, operation: &str, unit: &str, size: usize, instructions: u64) {
        self.print(operation, unit, size, instructions, Counted::default());
    }

    /// A row. Linux does not tell what of it was the hypervisor's.
    pub(crate) fn print(
        &mut self,
        operation: &str,
        unit: &str,
        size: usize,
        instructions: u64,
        counted: Counted,
    ) {
        if self.silent {
            return;
        }
        let Counted { multicalls, entries } = counted;
        println!(
            "PVMMU-BENCH {{\"operation\":{operation:?},\"unit\":{unit:?},\"size\":{size},\
             \"instructions\":{instructions},\"in_xen\":null,\"traps\":{multicalls},\
             \"entries\":{entries},\"floor\":null}}"
        );
        self.printed += 1;
    }
}

/// How long `work` takes on what `prepare` makes, and in a second run its multicalls. `end` gets
/// what is left.
pub(crate) fn measure<T, U>(
    prepare: impl Fn() -> Result<T>,
    work: impl Fn(T) -> Result<U>,
    end: impl Fn(U) -> Result<()>,
) -> Result<(u64, Counted)> {
    let prepared = prepare()?;
    let start = ticks();
    let left = work(prepared)?;
    let instructions = ticks() - start;
    end(left)?;
    let prepared = prepare()?;
    let trace = Trace::counting()?;
    let left = work(prepared)?;
    let counted = trace.counted()?;
    end(left)?;
    Ok((instructions, counted))
}
