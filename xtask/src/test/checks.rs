//! The checks that need nothing but cargo: format, lints for the host and for Xen, unit,
//! integration and documentation tests, documentation without warnings, house rules.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::session::Session;
use super::{claims, examples, house_rules, inventory, shape};
use crate::bench;
use crate::cargo::{Package, cargo, packages};
use crate::deep::{TIME_OF_A_PROPERTY, check_named_mutants};
use crate::paths;
use crate::process::run_captured;
use crate::provision::rust_target::{self, TARGET};
use crate::station::model_program;

const GROUP: &str = "code";

/// Runs all of them.
///
/// # Errors
///
/// A signal asked us to end, or the workspace cannot be read.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    rust_target::require_components()?;
    let packages = packages()?;
    let names = |wanted: &dyn Fn(&Package) -> bool| {
        let wanted = packages.iter().filter(|package| wanted(package));
        wanted.flat_map(|package| ["--package", &package.name]).collect::<Vec<&str>>()
    };
    session.step(GROUP, "format", || must(cargo().args(["fmt", "--all", "--check"])))?;
    session.step(GROUP, "house rules", house_rules::check)?;
    session.step(GROUP, "examples in the documentation", examples::check)?;
    session.step(GROUP, "arguments are arguments", shape::tuples)?;
    session.step(GROUP, "layers without circles", shape::circles)?;
    session.step(GROUP, "one word for one thing", shape::names)?;
    session.step(GROUP, "invariants are attacked, claims shown", claims::check)?;
    session.step(GROUP, "inventory of unsafe code", inventory::check)?;
    session.step(GROUP, "named mutants", check_named_mutants)?;
    session.step(GROUP, "lints on the host", || {
        let mut cargo = cargo();
        cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
        must(cargo.args(["--", "-D", "warnings"]))
    })?;
    let bare = names(&Package::is_for_bare_metal);
    if !bare.is_empty() {
        session.step(GROUP, "lints for Xen", || {
            rust_target::require()?;
            let mut cargo = cargo();
            cargo.args(["clippy", "--quiet", "--target", TARGET]).args(&bare);
            must(cargo.args(["--", "-D", "warnings"]))
        })?;
    }
    session.step(GROUP, "unit and integration tests", unit_tests)?;
    session.step(GROUP, "readers beside a writer, every order (loom)", every_order)?;
    let libraries = names(&Package::is_library);
    // Valgrind is busy on one processor for as long as all of these together.
    let (time, counts) = thread::scope(|scope| -> Result<(Duration, Result<String>)> {
        let counting = scope.spawn(|| {
            let started = Instant::now();
            let counts = bench::check_host();
            (started.elapsed(), counts)
        });
        programs_and_documentation(session, &libraries)?;
        Ok(counting.join().expect("counting ends"))
    })?;
    session.record(GROUP, "instruction counts (valgrind)", time, counts)?;
    Ok(())
}

/// The programs of the guest and of the host, and what the documentation says.
fn programs_and_documentation(session: &mut Session, libraries: &[&str]) -> Result<()> {
    session.step(GROUP, "programs on the model", on_the_model)?;
    session.step(GROUP, "examples on the model", examples)?;
    if !libraries.is_empty() {
        session.step(GROUP, "documentation tests", || {
            let output = must(cargo().args(["test", "--quiet", "--doc"]).args(libraries))?;
            Ok(format!("{} passed", count_passed(&output)))
        })?;
    }
    session.step(GROUP, "documentation", || {
        let mut cargo = cargo();
        cargo.args(["doc", "--quiet", "--workspace", "--no-deps"]);
        must(cargo.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    Ok(())
}

/// Packages with tests of lock-free code.
const EVERY_ORDER: [&str; 4] = ["hypercall", "p2m", "pvmmu", "swiotlb"];

/// Returns the tests of lock-free code, which loom runs in every order that the memory model
/// allows. They are compiled with other atomics, so in a folder of their own.
fn every_order() -> Result<String> {
    let folder = paths::target()?.join("loom");
    let mut cargo = cargo();
    cargo.args(["test", "--quiet", "--release", "--lib", "--target-dir"]).arg(folder);
    cargo.args(EVERY_ORDER.iter().flat_map(|name| ["--package", name]));
    let output = must(cargo.env("RUSTFLAGS", "--cfg loom"))?;
    Ok(format!("{} passed", count_passed(&output)))
}

/// Programs that the model runs as Xen does.
const ON_THE_MODEL: [&str; 14] = [
    "demo",
    "alias",
    "audit",
    "balloon",
    "dump",
    "flags",
    "foreign",
    "mapper",
    "memory",
    "primitives",
    "rights",
    "spaces",
    "vcpus",
    "conformance",
];

/// Returns the guest's programs on the model of each release, in both roles.
fn on_the_model() -> Result<String> {
    let program = model_program()?;
    let places = ["4.14", "4.17", "4.20"].map(|xen| [(xen, "dom0"), (xen, "domu")]);
    let runs = places.as_flattened().iter().flat_map(|&(xen, role)| {
        let of_dom0 = (role == "dom0").then_some("identity");
        ON_THE_MODEL.into_iter().chain(of_dom0).map(move |name| (xen, role, name))
    });
    let runs: Vec<_> = runs.collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some((xen, role, name)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut model = Command::new(&program);
            must(model.args(["--xen", xen, "--as", role, "--vcpus", "2", name]))?;
        }
        Ok(())
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker ends"))
    })?;
    Ok(format!("{} passed", runs.len()))
}

/// Host programs that each teach one crate: package and name.
const EXAMPLES: [(&str, &str); 2] = [("swiotlb", "bounce"), ("xen-balloon", "resize")];

fn examples() -> Result<String> {
    for (package, name) in EXAMPLES {
        must(cargo().args(["run", "--quiet", "--package", package, "--example", name]))?;
    }
    Ok(format!("{} ran", EXAMPLES.len()))
}

/// Runs a command that is quiet when all is well. Returns what it wrote.
fn must(command: &mut Command) -> Result<String> {
    let (status, output) = run_captured(command, |_| {})?;
    if !status.success() {
        bail!("{status}\n{output}");
    }
    Ok(output)
}

/// Milliseconds that ordinarily go to each property of random input;
/// `cargo xtask check properties` gives them more.
const ENOUGH_TIME: &str = "500";

fn unit_tests() -> Result<String> {
    let nextest = run_captured(cargo().args(["nextest", "--version"]), |_| {});
    let arguments = if nextest.is_ok_and(|(status, _)| status.success()) {
        &["nextest", "run", "--workspace", "--status-level", "fail"][..]
    } else {
        &["test", "--workspace", "--lib", "--bins", "--tests", "--examples"]
    };
    let output = must(cargo().args(arguments).env(TIME_OF_A_PROPERTY, ENOUGH_TIME))?;
    match count_passed(&output) {
        0 => bail!("no test ran:\n{output}"),
        passed => Ok(format!("{passed} passed")),
    }
}

/// Adds up the numbers before the word `passed` in the closing lines of cargo's test runners.
fn count_passed(output: &str) -> usize {
    let closing = |line: &&str| line.contains("Summary [") || line.starts_with("test result: ");
    let lines = output.lines().filter(closing);
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| word.starts_with("passed"))?;
            words[..at].last()?.parse::<usize>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_counted_with_either_runner() {
        let nextest = "   Compiling x\n     Summary [   0.2s] 43 tests run: 41 passed, 2 skipped\n";
        assert_eq!(count_passed(nextest), 41);
        let plain = "test result: ok. 3 passed; 0 failed; 0 ignored\nx passed\n\
                     test result: ok. 4 passed; 0 failed; 0 ignored\n";
        assert_eq!(count_passed(plain), 7);
        assert_eq!(count_passed("nothing passed\n"), 0);
    }
}
