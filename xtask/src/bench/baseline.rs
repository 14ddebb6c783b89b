//! Figures of an earlier run, kept in the repository, and what has become worse since.

use std::fmt;
use std::path::PathBuf;

use super::row::{Row, find};
use crate::paths;
use crate::release::Release;

/// Returns the file with our figures on a release of Xen.
pub(crate) fn ours(release: Release) -> PathBuf {
    folder().join(format!("xen-{release}.json"))
}

/// Returns the file with Linux's figures on a release of Xen.
pub(crate) fn linux(release: Release) -> PathBuf {
    folder().join(format!("linux-xen-{release}.json"))
}

/// Returns the file with the figures of the pure parts.
pub(crate) fn host() -> PathBuf {
    folder().join("host.json")
}

fn folder() -> PathBuf {
    paths::workspace().join("tests/baselines")
}

/// Rows beside those of a baseline.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// A sentence for every figure that is worse by more than it may, and for every row that is
    /// gone.
    pub(crate) worse: Vec<String>,
    /// Rows of the baseline.
    rows: usize,
    /// Those that take more instructions now, by however little.
    more: usize,
    /// Those that take fewer.
    fewer: usize,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, more, fewer, .. } = self;
        write!(f, "of {rows} rows {more} take more instructions than in the baseline, ")?;
        write!(f, "{fewer} take fewer")
    }
}

/// Compares rows with those of a baseline. A figure may be `within` hundredths above it.
pub(crate) fn compare(baseline: &[Row], rows: &[Row], within: u64) -> Comparison {
    let mut comparison = Comparison { rows: baseline.len(), ..Comparison::default() };
    for before in baseline {
        let Some(now) = find(rows, &before.operation, before.size) else {
            comparison.worse.push(format!("{}: not measured any more", name(before)));
            continue;
        };
        comparison.more += usize::from(now.instructions > before.instructions);
        comparison.fewer += usize::from(now.instructions < before.instructions);
        comparison.worse.extend(worse_than(before, now, within));
    }
    comparison
}

fn worse_than(before: &Row, now: &Row, within: u64) -> impl Iterator<Item = String> {
    let figures = [
        ("instructions", before.instructions, now.instructions),
        ("traps", before.traps, now.traps),
        ("entries", before.entries, now.entries),
    ];
    let name = name(before);
    let worse = move |(_, before, now): &(&str, u64, u64)| now * 100 > before * (100 + within);
    let sentence =
        move |(what, before, now)| format!("{name}: {now} {what}, {before} in the baseline");
    figures.into_iter().filter(worse).map(sentence)
}

fn name(row: &Row) -> String {
    format!("{}, {} {}", row.operation, row.size, row.unit)
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    fn worse(baseline: &[Row], rows: &[Row]) -> Vec<String> {
        compare(baseline, rows, 2).worse
    }

    #[test]
    fn two_hundredths_more_are_let_pass_and_the_next_instruction_is_not() {
        let baseline = [test_row("x", 4, 1000)];
        assert_eq!(worse(&baseline, &[test_row("x", 4, 1020)]), [""; 0]);
        let worse = worse(&baseline, &[test_row("x", 4, 1021)]);
        assert_eq!(worse, ["x, 4 pages: 1021 instructions, 1000 in the baseline"]);
    }

    #[test]
    fn as_many_hundredths_are_let_pass_as_are_allowed() {
        let baseline = [test_row("x", 4, 1000)];
        let is_worse = |now, within| {
            let comparison = compare(&baseline, &[test_row("x", 4, now)], within);
            !comparison.worse.is_empty()
        };
        assert!(!is_worse(1010, 1) && is_worse(1011, 1));
        assert!(!is_worse(1000, 0) && is_worse(1001, 0));
    }

    #[test]
    fn rows_that_take_more_and_fewer_are_counted() {
        let before = ["a", "b", "c", "d"].map(|name| test_row(name, 1, 1000));
        let now = [("a", 1001), ("b", 1002), ("c", 1000), ("d", 900)];
        let now = now.map(|(name, instructions)| test_row(name, 1, instructions));
        let comparison = compare(&before, &now, 1);
        let text = comparison.to_string();
        assert_eq!(text, "of 4 rows 2 take more instructions than in the baseline, 1 take fewer");
        assert!(comparison.worse.is_empty());
    }

    #[test]
    fn one_trap_more_is_worse() {
        let baseline = [test_row("x", 4, 1000)];
        let now = Row { traps: 2, ..test_row("x", 4, 900) };
        assert_eq!(worse(&baseline, &[now]), ["x, 4 pages: 2 traps, 1 in the baseline"]);
    }

    #[test]
    fn a_row_that_is_gone_is_named_and_a_new_one_is_welcome() {
        let worse = worse(&[test_row("x", 4, 1000)], &[test_row("y", 4, 1000)]);
        assert_eq!(worse, ["x, 4 pages: not measured any more"]);
    }
}
