//! `cargo xtask check`: checks that take long, or need a tool that most machines lack. They are run
//! on demand; what they need is installed under `target/tools`, nowhere else.
//!
//! | check | asks |
//! |---|---|
//! | `package` | is each crate complete without its neighbours' folders? |
//! | `licences` | does a dependency bring a licence, a source or a duplicate that is not wanted? |
//! | `semver` | does the version number say what changed since the last release? |
//! | `properties` | does any random input break a property, given more time? |
//! | `pairs` | has every page one owner, whichever two requests are refused? |
//! | `mutants` | is there code that may be wrong without a test that fails? |
//! | `miri` | does code that can run under an interpreter break a rule of the language? |
//! | `asan` | does any test touch memory that it should not, as the CPU sees it? |
//! | `fuzz` | does any input, chosen by coverage, break the model or `xen-explain`? |

mod named;
mod pairs;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

pub(crate) use self::named::check_texts as check_named_mutants;
use crate::ExitStatus;
use crate::cargo::{Package, cargo, nightly, packages};
use crate::cli::{CheckArguments, What};
use crate::paths;
use crate::process::{run_captured, run_visibly};

/// Packages whose code is mutated: everything else stands on them.
const MUTATED: [&str; 3] = ["hypercall", "p2m", "early-pgt"];
/// Packages whose unit tests run under Miri: the others' need a model, which is slow there.
const INTERPRETED: [&str; 2] = ["hypercall", "p2m"];
/// Packages whose tests run with AddressSanitizer.
const SANITIZED: [&str; 5] = ["hypercall", "p2m", "pvmmu", "xen-explain", "xen-model"];
/// Packages with properties of random input.
const WITH_PROPERTIES: [&str; 9] = [
    "early-pgt",
    "hypercall",
    "p2m",
    "pvmmu",
    "swiotlb",
    "unikernel",
    "xen-balloon",
    "xen-explain",
    "xen-model",
];
/// What says how many milliseconds each of these properties is tried.
pub(crate) const TIME_OF_A_PROPERTY: &str = "ARBTEST_BUDGET_MS";
/// The package of fuzz targets.
const FUZZ: &str = "proof/fuzz";
/// Inputs that each fuzz target is tried with.
const FUZZ_RUNS: u32 = 20_000;
const FUZZ_TARGETS: [&str; 2] = ["explain", "prove"];
/// Long ones from the beginning: by itself libFuzzer does not get beyond two steps of `prove`.
const FUZZ_INPUTS: [&str; 2] = ["-len_control=0", "-max_len=4096"];

/// Runs the checks that are asked for, one after the other.
///
/// # Errors
///
/// A tool cannot be had.
pub(crate) fn check(arguments: &CheckArguments) -> Result<ExitStatus> {
    let mut status = ExitStatus::Pass;
    for what in &arguments.what {
        println!("{what:?}");
        let passed = match what {
            What::Package => package()?,
            What::Licences => licences()?,
            What::Semver => semver(arguments.since.as_deref())?,
            What::Pairs => pairs::check("all")?,
            What::Accesses => pairs::check("accesses")?,
            What::Properties => properties()?,
            What::Mutants => match arguments.named() {
                Some(pattern) => named::check(pattern)?,
                None => mutants(arguments.shard.as_deref())? & named::check("")?,
            },
            What::Miri => miri()?,
            What::Asan => asan()?,
            What::Fuzz => fuzz()?,
        };
        if !passed {
            println!("{what:?}: FAILED");
            status = ExitStatus::Fail;
        }
    }
    Ok(status)
}

/// Tries each property of random input for half a minute, in optimised code.
fn properties() -> Result<bool> {
    let mut command = cargo();
    command.args(["test", "--profile", "pairs", "--lib", "--tests", "--no-fail-fast"]);
    command.args(WITH_PROPERTIES.iter().flat_map(|name| ["--package", name]));
    command.env(TIME_OF_A_PROPERTY, "30000");
    Ok(run_visibly(&mut command)?.success())
}

/// Packs the crates that are meant for others, and builds each from its package, with the packages
/// of the others in place of a registry.
fn package() -> Result<bool> {
    let mut command = cargo();
    command.args(["package", "--allow-dirty", "--quiet", "--target-dir"]);
    command.arg(paths::target()?.join("package"));
    passes(command.args(published()?))
}

/// Returns the packages that are meant for others, as arguments.
fn published() -> Result<Vec<String>> {
    let packages = packages()?;
    let published = packages.into_iter().filter(Package::is_published);
    Ok(published.flat_map(|package| ["--package".to_owned(), package.name]).collect())
}

fn licences() -> Result<bool> {
    tool("cargo-deny")?;
    passes(with_tools(cargo())?.args(["deny", "check", "bans", "licenses", "sources"]))
}

/// Compares with `since`, or the last tag; before the first release there is nothing to compare
/// with, unless a revision is named.
fn semver(since: Option<&str>) -> Result<bool> {
    let Some(since) = since.map_or_else(last_tag, |since| Ok(Some(since.to_owned())))? else {
        println!("there is no release yet, so any change is allowed; --since REVISION compares");
        return Ok(true);
    };
    tool("cargo-semver-checks")?;
    let mut command = with_tools(cargo())?;
    command.args(["semver-checks", "--baseline-rev", &since]);
    passes(command.args(published()?))
}

fn last_tag() -> Result<Option<String>> {
    let mut git = Command::new("git");
    git.args(["describe", "--tags", "--abbrev=0"]).current_dir(paths::workspace());
    let (status, tag) = run_captured(&mut git, |_| {})?;
    Ok(status.success().then(|| tag.trim().to_owned()))
}

/// Changes the code in small ways and lists the changes that no test notices.
fn mutants(shard: Option<&str>) -> Result<bool> {
    tool("cargo-mutants")?;
    let output = paths::target()?.join("mutants");
    let mut command = with_tools(cargo())?;
    command.args(["mutants", "--no-shuffle", "--colors", "never", "--output"]).arg(&output);
    command.args(MUTATED.iter().flat_map(|name| ["--package", name]));
    if let Some(shard) = shard {
        command.args(["--shard", shard]);
    }
    // Its status says whether mutants were missed; its list says which.
    let status = run_visibly(&mut command)?;
    let missed = output.join("mutants.out/missed.txt");
    let missed = fs::read_to_string(&missed)
        .with_context(|| format!("cargo-mutants ended with {status} and left no list"))?;
    println!("{} mutants that no test notices:\n{missed}", missed.lines().count());
    Ok(missed.is_empty())
}

fn miri() -> Result<bool> {
    let mut command = nightly(&["miri"])?;
    command.args(["miri", "test", "--quiet", "--lib", "--target-dir"]);
    command.arg(paths::target()?.join("miri"));
    passes(command.args(INTERPRETED.iter().flat_map(|name| ["--package", name])))
}

fn asan() -> Result<bool> {
    let mut command = nightly(&[])?;
    command.env("RUSTFLAGS", "-Zsanitizer=address");
    command.args(["test", "--quiet", "--lib", "--tests", "--target", "x86_64-unknown-linux-gnu"]);
    command.arg("--target-dir").arg(paths::target()?.join("asan"));
    passes(command.args(SANITIZED.iter().flat_map(|name| ["--package", name])))
}

fn fuzz() -> Result<bool> {
    tool("cargo-fuzz")?;
    let mut passed = true;
    for target in FUZZ_TARGETS {
        let mut command = with_tools(nightly(&[])?)?;
        command.args(["fuzz", "run", "--fuzz-dir", FUZZ, target]);
        command.args(["--", &format!("-runs={FUZZ_RUNS}"), "-seed=1"]);
        command.args(FUZZ_INPUTS);
        passed &= passes(&mut command)?;
    }
    Ok(passed)
}

fn passes(command: &mut Command) -> Result<bool> {
    Ok(run_visibly(command)?.success())
}

/// Returns the folder of tools that this project installs for itself.
fn tools() -> Result<PathBuf> {
    Ok(paths::target()?.join("tools"))
}

/// Returns a tool of cargo's, installed if it is not there.
fn tool(name: &str) -> Result<()> {
    let root = tools()?;
    if root.join("bin").join(name).is_file() || paths::find_program(name).is_some() {
        return Ok(());
    }
    println!("installing {name} under {} (once)", root.display());
    let mut command = cargo();
    command.args(["install", "--quiet", "--locked", "--root"]).arg(&root).arg(name);
    if !run_visibly(&mut command)?.success() {
        bail!("{name} cannot be installed; this check needs it, `cargo xtask test` does not");
    }
    Ok(())
}

/// Returns a command that finds the tools.
fn with_tools(mut command: Command) -> Result<Command> {
    let mut path = tools()?.join("bin").into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    command.env("PATH", path);
    Ok(command)
}
