//! A figure that was measured, as the guest prints it and as files keep it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::progress::Step;

/// How a line of the guest's with a row begins.
const MARK: &str = "PVMMU-BENCH ";

/// An operation on so many things, and what it cost.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) operation: String,
    /// To what.
    pub(crate) unit: String,
    /// To how many.
    pub(crate) size: u64,
    /// Instructions in all, the guest's and the hypervisor's.
    pub(crate) instructions: u64,
    /// Those of them inside requests, where that can be told.
    pub(crate) in_xen: Option<u64>,
    /// Requests: a multicall counts once.
    pub(crate) traps: u64,
    /// Elements of the requests.
    pub(crate) entries: u64,
    /// What bare requests for the same take, in instructions.
    pub(crate) floor: Option<u64>,
}

impl Row {
    /// Reads a line of the guest's, if it is one with a row.
    ///
    /// # Errors
    ///
    /// The line begins as one with a row, and is none.
    pub(crate) fn parse(line: &str) -> Result<Option<Self>> {
        let Some(text) = line.strip_prefix(MARK) else { return Ok(None) };
        serde_json::from_str(text).map(Some).with_context(|| format!("reading the row {text}"))
    }

    /// Returns whether it is this one that is meant.
    pub(crate) fn is(&self, operation: &str, size: u64) -> bool {
        self.operation == operation && self.size == size
    }
}

/// Collects the rows that a guest prints.
#[derive(Debug, Default)]
pub(crate) struct Reader(Vec<Result<Row>>);

impl Reader {
    /// Takes a line of the guest's, and shows a row's name to whoever watches.
    pub(crate) fn line(&mut self, line: &str, step: &Step) {
        match Row::parse(line) {
            Ok(Some(row)) => {
                step.at(row.operation.clone());
                self.0.push(Ok(row));
            }
            Ok(None) => {}
            Err(error) => self.0.push(Err(error)),
        }
    }

    /// All of them.
    ///
    /// # Errors
    ///
    /// One could not be read, or two have the same name and size.
    pub(crate) fn end(self) -> Result<Vec<Row>> {
        let rows = self.0.into_iter().collect::<Result<Vec<_>>>()?;
        check_names(&rows)?;
        Ok(rows)
    }
}

/// Returns the row of an operation on so many things.
pub(crate) fn find<'r>(rows: &'r [Row], operation: &str, size: u64) -> Option<&'r Row> {
    rows.iter().find(|row| row.is(operation, size))
}

/// Of each row the run in which it took fewer instructions.
pub(crate) fn least(rows: &[Row], late: &[Row]) -> Vec<Row> {
    let least = |row: &Row| {
        let other = find(late, &row.operation, row.size);
        other.filter(|other| other.instructions < row.instructions).unwrap_or(row).clone()
    };
    rows.iter().map(least).collect()
}

/// Checks that no two rows have the same name and size.
///
/// # Errors
///
/// Two have: named.
fn check_names(rows: &[Row]) -> Result<()> {
    for (at, row) in rows.iter().enumerate() {
        if find(&rows[..at], &row.operation, row.size).is_some() {
            bail!("two rows are called {:?} with size {}", row.operation, row.size);
        }
    }
    Ok(())
}

/// Reads a file of rows.
///
/// # Errors
///
/// It cannot be read, or holds something else.
pub(crate) fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
}

/// Writes a file of rows, one in a line, so that changes of it can be read.
///
/// # Errors
///
/// It cannot be written.
pub(crate) fn write(file: &Path, rows: &[Row]) -> Result<()> {
    let lines = rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// Everything that a report is made of.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures<'a> {
    /// Ours.
    pub(crate) rows: &'a [Row],
    /// Linux's.
    pub(crate) linux: &'a [Row],
    /// Those of the pure parts.
    pub(crate) host: &'a [Row],
}

/// Writes everything that a report is made of, as one JSON object.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn write_all(file: &Path, figures: Figures<'_>) -> Result<()> {
    let text = serde_json::to_string_pretty(&figures)?;
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
pub(super) fn test_row(operation: &str, size: u64, instructions: u64) -> Row {
    let (operation, unit) = (operation.to_owned(), "pages".to_owned());
    Row { operation, unit, size, instructions, in_xen: None, traps: 1, entries: 1, floor: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guests_is_read_and_other_lines_are_not() {
        let line = "PVMMU-BENCH {\"operation\":\"pin\",\"unit\":\"tables\",\"size\":2,\
                    \"instructions\":7,\"in_xen\":5,\"traps\":1,\"entries\":3,\"floor\":null}";
        let row = Row::parse(line).unwrap().unwrap();
        assert!(row.is("pin", 2) && !row.is("pin", 3) && !row.is("unpin", 2));
        assert_eq!((row.instructions, row.in_xen, row.floor), (7, Some(5), None));
        assert_eq!(Row::parse("PVMMU-VERDICT pass").unwrap(), None);
        assert!(Row::parse("PVMMU-BENCH {\"operation\":").is_err());
    }

    #[test]
    fn an_interrupt_in_one_run_is_not_in_the_least() {
        let rows = [test_row("a", 1, 10), test_row("b", 1, 2020), test_row("c", 1, 30)];
        let late = [test_row("a", 1, 2010), test_row("b", 1, 20)];
        let figures: Vec<u64> = least(&rows, &late).iter().map(|row| row.instructions).collect();
        assert_eq!(figures, [10, 20, 30]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.json");
        let rows = vec![test_row("a", 1, 10), test_row("a", 2, 20)];
        write(&file, &rows).unwrap();
        assert_eq!(read(&file).unwrap(), rows);
    }

    #[test]
    fn two_rows_of_one_name_are_refused() {
        check_names(&[test_row("a", 1, 10), test_row("a", 2, 10)]).unwrap();
        let error = check_names(&[test_row("a", 1, 10), test_row("a", 1, 11)]).unwrap_err();
        assert!(error.to_string().contains("\"a\" with size 1"));
    }
}
