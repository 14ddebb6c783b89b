//! A second process over the same pages, and its end.

use anyhow::Result;

use crate::row::{Rows, measure};
use crate::system::{Area, Fill, TABLE_PAGES, fork_exit_wait};

/// Full L1 tables of the parent's area: the sizes of the unikernel's rows.
const TABLES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// The rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<()> {
    let alone = measure(|| Ok(()), |()| fork_exit_wait(), Ok)?;
    rows.print("fork, exit and wait, a process alone", "processes", 1, alone.0, alone.1);
    for tables in TABLES {
        let pages = tables * TABLE_PAGES;
        let touched = || {
            let area = Area::map(pages, Fill::Empty)?;
            area.touch(1);
            Ok(area)
        };
        let fork = |area| fork_exit_wait().map(|()| area);
        let (took, counted) = measure(touched, fork, Area::unmap)?;
        rows.print("fork, exit and wait", "pages", pages, took, counted);
        let again = || touched().and_then(fork);
        let (took, counted) = measure(again, fork, Area::unmap)?;
        rows.print("fork, exit and wait again", "pages", pages, took, counted);
    }
    Ok(())
}
