//! `pairs`: every operation under every pair of refusals, and with every access to a frame failing;
//! `accesses`: these beside refusals. Each crate has the tests in `tests/pairs.rs`, on the driver
//! `pv_tests::pairs`; ordinarily they try a sample.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use crate::cargo::{Package, cargo, packages};
use crate::process::run_captured;
use crate::progress::Step;

/// The test program of a package that sweeps.
const TESTS: &str = "tests/pairs.rs";
/// The profile: optimised, with debug assertions.
const PROFILE: &str = "pairs";
/// How many lines of a failing program are shown.
const LINES_SHOWN: usize = 60;

/// Tries all pairs of `scope` in all packages and says how many there were.
///
/// # Errors
///
/// The workspace cannot be read, or a signal asked us to end.
pub(super) fn check(scope: &str) -> Result<bool> {
    let mut sums = BTreeMap::new();
    let mut passed = true;
    for package in packages()?.into_iter().filter(|package| package.has(TESTS)) {
        passed &= sweep(&package, scope, &mut sums)?;
    }
    let mut all = Sum::default();
    for (package, sum) in &sums {
        println!("{package}: {sum}");
        all.add(*sum);
    }
    println!("{all} in all");
    Ok(passed && all.operations > 0)
}

fn sweep(package: &Package, scope: &str, sums: &mut BTreeMap<String, Sum>) -> Result<bool> {
    let step = Step::begin(&format!("pairs of {}", package.name));
    let mut cargo = cargo();
    cargo.args(["test", "--quiet", "--profile", PROFILE, "--package", &package.name]);
    cargo.args(["--test", "pairs", "--", "--nocapture"]).env("PVMMU_PAIRS", scope);
    let (status, output) = run_captured(&mut cargo, |line| {
        if let Some(line) = Line::parse(line) {
            step.at(format!("{} {}", line.operation, line.sum.pairs));
            sums.entry(line.package).or_default().add(line.sum);
        }
    })?;
    step.end(if status.success() { "done" } else { "failed" });
    if !status.success() {
        let lines: Vec<&str> = output.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"));
    }
    Ok(status.success())
}

/// What a package has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    operations: u64,
    /// Runs with two requests refused.
    pairs: u64,
    /// Runs with an access that failed.
    accesses: u64,
}

impl Sum {
    const fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.pairs += other.pairs;
        self.accesses += other.accesses;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, pairs, accesses } = self;
        write!(f, "{pairs} pairs of refusals and {accesses} failed accesses ")?;
        write!(f, "in {operations} operations")
    }
}

/// What a test says in the end.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    package: String,
    operation: String,
    sum: Sum,
}

impl Line {
    /// Another test's dots may stand before it.
    fn parse(line: &str) -> Option<Self> {
        let (_, words) = line.split_once("pairs: ")?;
        let mut words = words.split(' ');
        let (package, operation) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (pairs, accesses) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { package, operation, sum: Sum { operations: 1, pairs, accesses } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_driver_is_read_wherever_it_begins() {
        let sum = Sum { operations: 1, pairs: 1234, accesses: 56 };
        let line = Line { package: "pvmmu".to_owned(), operation: "map_pages".to_owned(), sum };
        for before in ["", "..", "test map_pages ... "] {
            let text = format!("{before}pairs: pvmmu map_pages 1234 56 (and 40 single refusals)");
            assert_eq!(Line::parse(&text).as_ref(), Some(&line));
        }
        assert_eq!(Line::parse("12 pairs: of shoes"), None);
        assert_eq!(Line::parse("running 3 tests"), None);
    }
}
