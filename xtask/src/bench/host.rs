//! The pure parts on this host: instruction counts under valgrind, by gungraun's benches in package
//! `pv-tests`. Its runner is installed under the target directory when it is first needed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::row::{Row, find};
use crate::cargo::cargo;
use crate::paths::{self, find_program};
use crate::process::{run_captured, run_quietly};
use crate::progress::{Step, step};

/// The package with the benches.
const PACKAGE: &str = "pv-tests";
/// The program that starts valgrind and reads its figures: of the library's version.
const RUNNER: &str = "gungraun-runner";
/// Version of both.
const VERSION: &str = "0.20.0";

/// All figures.
///
/// # Errors
///
/// This machine lacks valgrind, the runner cannot be installed, or a bench fails.
pub(super) fn measure() -> Result<Vec<Row>> {
    if !can_count() {
        bail!("instructions on this host are counted by valgrind, which is not installed");
    }
    let runner = require_runner()?;
    let target = paths::target()?;
    // The runner compares with the figures of an earlier run; the baseline does that here.
    let earlier = target.join("gungraun").join(PACKAGE);
    if earlier.is_dir() {
        fs::remove_dir_all(&earlier).context("removing the figures of an earlier run")?;
    }
    let step = Step::begin("counting on this host");
    let mut cargo = cargo();
    cargo.args(["bench", "--quiet", "--package", PACKAGE, "--bench", "host", "--target-dir"]);
    cargo.arg(&target).args(["--", "--output-format=json"]).env("GUNGRAUN_RUNNER", runner);
    let (status, output) = run_captured(&mut cargo, |_| {})?;
    step.vanish();
    if !status.success() {
        bail!("the benches of {PACKAGE} ({status}):\n{output}");
    }
    let mut rows: Vec<Row> =
        output.lines().filter(|line| line.starts_with('{')).map(row).collect::<Result<_>>()?;
    if rows.is_empty() {
        bail!("the benches of {PACKAGE} printed no figures:\n{output}");
    }
    add_floors(&mut rows);
    Ok(rows)
}

/// Returns whether this machine can count.
pub(super) fn can_count() -> bool {
    find_program("valgrind").is_some()
}

/// What a look-up is held against: an index into a slice.
fn add_floors(rows: &mut [Row]) {
    let floors: Vec<_> = rows.iter().map(|row| find(rows, "slice index 1000", row.size)).collect();
    let floors: Vec<_> = floors.into_iter().map(|row| row.map(|row| row.instructions)).collect();
    for (row, floor) in rows.iter_mut().zip(floors) {
        if row.operation == "p2m look up 1000" {
            row.floor = floor;
        }
    }
}

fn require_runner() -> Result<PathBuf> {
    let tools = paths::target()?.join("tools");
    let runner = tools.join("bin").join(RUNNER);
    if !runner.is_file() {
        step(&format!("{RUNNER} {VERSION}"), |step| {
            let mut cargo = cargo();
            cargo.args(["install", "--locked", "--debug", RUNNER, "--version", VERSION, "--root"]);
            run_quietly(cargo.arg(&tools), |line| step.at(line.trim()))
        })?;
    }
    Ok(runner)
}

/// Reads what the runner prints of one bench: a JSON object in a line.
fn row(line: &str) -> Result<Row> {
    let bench: Value = serde_json::from_str(line).context("reading the runner's figures")?;
    let word = |name: &str| {
        let word = bench.get(name).and_then(Value::as_str);
        word.with_context(|| format!("the runner's figures have no {name}"))
    };
    let instructions = bench.pointer("/profiles/0/data/total/metrics/Ir/values/new");
    let instructions = instructions.and_then(Value::as_u64).context("no instructions counted")?;
    // The arguments in the bench's words, of which one is a number.
    let digits: String = word("description")?.chars().filter(char::is_ascii_digit).collect();
    let unit = word("id")?.split('_').next().unwrap_or_default().to_owned();
    Ok(Row {
        operation: word("function_name")?.replace('_', " "),
        unit,
        size: digits.parse().context("a bench without a size")?,
        instructions,
        in_xen: None,
        traps: 0,
        entries: 0,
        floor: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn a_figure_of_the_runners_is_a_row() {
        let line = r#"{"function_name":"p2m_adopt","id":"pfns_0","description":"(list(16384))",
            "profiles":[{"data":{"total":{"metrics":{"Ir":{"values":{"new":14}}}}}}]}"#;
        let row = row(line).unwrap();
        assert!(row.is("p2m adopt", 16_384));
        assert_eq!((row.instructions, row.unit.as_str()), (14, "pfns"));
    }

    #[test]
    fn a_look_up_is_held_against_an_index() {
        let mut rows = [test_row("slice index 1000", 8, 10), test_row("p2m look up 1000", 8, 13)];
        add_floors(&mut rows);
        assert_eq!((rows[0].floor, rows[1].floor), (None, Some(10)));
    }

    #[test]
    fn a_bench_without_instructions_is_an_error() {
        let line = r#"{"function_name":"x","id":"pfns_0","description":"1","profiles":[]}"#;
        assert!(row(line).unwrap_err().to_string().contains("no instructions"));
    }
}
