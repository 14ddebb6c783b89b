//! What docs/soundness.md says is held by tests: each invariant has a row that names what attacks
//! it, each claim one that names what shows it, and every test, file and program named there
//! exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::begins_tests;
use crate::cargo::rust_files;
use crate::paths;

/// Where the tables stand.
const LIST: &str = "docs/soundness.md";
/// The heading of the invariants; in the first column is the number of each.
const INVARIANTS: &str = "## Invariants";
/// The heading of the table with a row for each invariant.
const ATTACKS: &str = "## How each is enforced, and what attacks it";
/// The heading of the table with a row for each claim.
const CLAIMS: &str = "## What is claimed, and what shows it";
/// How a command begins that runs a program of the unikernel.
const RUN: &str = "cargo xtask run ";
/// Where these programs are.
const PROGRAMS: &str = "examples/unikernel/src/programs";

/// Compares the tables with the project.
///
/// # Errors
///
/// An invariant has no row, or a row names nothing, or something that does not exist.
pub(super) fn check() -> Result<String> {
    let workspace = paths::workspace();
    let text = fs::read_to_string(workspace.join(LIST)).with_context(|| LIST)?;
    let mut tests = BTreeSet::new();
    for file in rust_files()? {
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        tests.extend(tests_of(name, &fs::read_to_string(&file)?));
    }
    let exists = |name: &str| match name.strip_prefix(RUN) {
        Some(options) if options.starts_with("--") => true,
        Some(program) => {
            let program = workspace.join(PROGRAMS).join(program);
            program.is_dir() || program.with_extension("rs").exists()
        }
        None if name.starts_with("cargo xtask ") => true,
        None if name.contains(['/', '.']) => workspace.join(name).exists(),
        None => tests.contains(name),
    };
    let (attacks, claims) = (rows(&text, ATTACKS)?, rows(&text, CLAIMS)?);
    let mut faults = unattacked(&rows(&text, INVARIANTS)?, &attacks);
    for row in attacks.iter().chain(&claims) {
        let names = named(row);
        if names.is_empty() {
            faults.push(format!("{} names no test", row[0]));
        }
        let missing = names.into_iter().filter(|name| !exists(name));
        faults.extend(missing.map(|name| format!("{}: there is no `{name}`", row[0])));
    }
    if !faults.is_empty() {
        bail!("{LIST}:\n{}", faults.join("\n"));
    }
    Ok(format!("{} invariants attacked, {} claims shown", attacks.len(), claims.len()))
}

/// Returns the cells of each row of the table under a heading, without its head.
fn rows<'t>(text: &'t str, heading: &str) -> Result<Vec<Vec<&'t str>>> {
    let (_, part) = text.split_once(heading).with_context(|| format!("{LIST} lacks {heading}"))?;
    let part = part.split("\n## ").next().unwrap_or_default();
    let rows = part.lines().filter(|line| line.starts_with("| ")).skip(1);
    Ok(rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect())
}

/// Invariants without a row of their own.
fn unattacked(invariants: &[Vec<&str>], attacks: &[Vec<&str>]) -> Vec<String> {
    let attacked: BTreeSet<&str> = attacks.iter().map(|row| row[0]).collect();
    let missing = invariants.iter().map(|row| row[0]).filter(|name| !attacked.contains(name));
    missing.map(|name| format!("nothing attacks {name}")).collect()
}

/// Returns what the last cell of a row names.
fn named<'t>(row: &[&'t str]) -> Vec<&'t str> {
    row.last().map_or_else(Vec::new, |cell| cell.split('`').skip(1).step_by(2).collect())
}

/// Returns the functions that are tests, or attempts: those in files of tests, and those behind the
/// line at which a file's tests begin.
fn tests_of(name: &Path, text: &str) -> Vec<String> {
    let is_of_tests = name.iter().skip(1).any(|part| part == "tests" || part == "tests.rs");
    let tests = text.lines().skip_while(|line| !is_of_tests && !begins_tests(line));
    let lines = tests.map(str::trim_start);
    let names = lines.filter_map(|line| line.strip_prefix("fn ")?.split(['(', '<']).next());
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invariant_without_a_row_is_found() {
        let text = "## Invariants\n| | invariant |\n|---|---|\n| I-1 | one |\n| I-2 | two |\n\n\
                    ## How each is enforced, and what attacks it\n| | how | test |\n|---|---|---|\n\
                    | I-1 | so | `a`, `b/c.rs` |\n## Next\n| `x` |";
        let (invariants, attacks) = (rows(text, INVARIANTS).unwrap(), rows(text, ATTACKS).unwrap());
        assert_eq!(unattacked(&invariants, &attacks), ["nothing attacks I-2"]);
        assert_eq!(named(&attacks[0]), ["a", "b/c.rs"]);
        assert_eq!(named(&["I-1", "`so`", "by hand"]), Vec::<&str>::new());
        assert!(rows(text, CLAIMS).is_err());
    }

    #[test]
    fn what_this_project_claims_names_tests_that_exist() {
        check().unwrap();
    }

    #[test]
    fn tests_are_told_from_other_functions() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n    fn c<T>() {}\n}\n";
        assert_eq!(tests_of(Path::new("x/src/y.rs"), text), ["b", "c"]);
        assert_eq!(tests_of(Path::new("x/tests/y.rs"), text), ["a", "b", "c"]);
        assert_eq!(tests_of(Path::new("tests/src/y.rs"), "fn a() {}"), Vec::<String>::new());
    }
}
