//! Figures of an earlier run, kept in the repository, and what has become worse since.

use std::path::PathBuf;

use super::row::{Row, find};
use crate::paths;
use crate::release::Release;

/// Hundredths of a figure that it may grow by.
const GROWTH_MAX: u64 = 2;

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

/// Returns a sentence for every figure that is worse by more than it may, and for every row that is
/// gone.
pub(crate) fn worse(baseline: &[Row], rows: &[Row]) -> Vec<String> {
    baseline.iter().flat_map(|before| worse_than(before, rows)).collect()
}

fn worse_than(before: &Row, rows: &[Row]) -> Vec<String> {
    let name = format!("{}, {} {}", before.operation, before.size, before.unit);
    let Some(now) = find(rows, &before.operation, before.size) else {
        return vec![format!("{name}: not measured any more")];
    };
    let figures = [
        ("instructions", before.instructions, now.instructions),
        ("traps", before.traps, now.traps),
        ("entries", before.entries, now.entries),
    ];
    let worse = |(_, before, now): &(&str, u64, u64)| now * 100 > before * (100 + GROWTH_MAX);
    let sentence = |(what, before, now)| format!("{name}: {now} {what}, {before} in the baseline");
    figures.into_iter().filter(worse).map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn two_hundredths_more_are_let_pass_and_the_next_instruction_is_not() {
        let baseline = [test_row("x", 4, 1000)];
        assert_eq!(worse(&baseline, &[test_row("x", 4, 1020)]), [""; 0]);
        let worse = worse(&baseline, &[test_row("x", 4, 1021)]);
        assert_eq!(worse, ["x, 4 pages: 1021 instructions, 1000 in the baseline"]);
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
