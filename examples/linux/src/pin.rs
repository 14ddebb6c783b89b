//! Pin and unpin of a child's tables, by probes at `__xen_pgd_pin` and `__xen_pgd_unpin`.
//!
//! A child is pinned when it is forked and unpinned when it ends. Its tree has the tables of the
//! area under test and those of this program itself, which the row of size 0 shows alone. A table
//! is full of entries to the page of zeroes, as those can be read-only and as many as one likes.

use anyhow::{Context as _, Result, ensure};

use crate::row::Rows;
use crate::system::{Area, Fill, TABLE_PAGES, fork_exit_wait};
use crate::trace::{Counted, Trace};

/// L1 tables of the area: the sizes of the unikernel's rows.
const TABLES: [usize; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

const PROBES: [(&str, &str); 2] = [("pin", "__xen_pgd_pin"), ("unpin", "__xen_pgd_unpin")];

/// The rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<()> {
    let probes = Trace::probing(&PROBES)?;
    one_child(rows, &probes, "the program's own tables", 0)?;
    let area = Area::map(2048 * TABLE_PAGES, Fill::Empty)?;
    let mut touched = 0;
    for tables in TABLES {
        area.touch_some(touched..tables * TABLE_PAGES, TABLE_PAGES);
        touched = tables * TABLE_PAGES;
        one_child(rows, &probes, "sparse tables", tables)?;
    }
    area.unmap()?;
    let area = Area::map(2048 * TABLE_PAGES, Fill::Empty)?;
    // Fork copies the tables of an area only if a page of it is its own.
    area.touch_some(0..1, 1);
    let mut populated = 0;
    for tables in TABLES {
        area.populate_read(populated, tables * TABLE_PAGES)?;
        populated = tables * TABLE_PAGES;
        one_child(rows, &probes, "full tables", tables)?;
    }
    area.unmap()?;
    probes.end()
}

fn one_child(rows: &mut Rows, probes: &Trace, name: &str, tables: usize) -> Result<()> {
    probes.clear()?;
    fork_exit_wait()?;
    let (pins, unpins) = (probes.calls("pin")?, probes.calls("unpin")?);
    ensure!(pins.len() == 1 && unpins.len() == 1, "one child, and {pins:?}, {unpins:?}");
    let pin = *pins.first().context("a pin")?;
    let unpin = *unpins.first().context("an unpin")?;
    for (operation, ticks) in [("pin", pin), ("unpin", unpin), ("pin and unpin", pin + unpin)] {
        let operation = format!("{operation}, {name}");
        rows.print(&operation, "tables", tables, ticks, Counted::default());
    }
    Ok(())
}
