//! What the frame map and a mapping for a device cost, in instructions counted by valgrind: the
//! same on every machine and in every run, so a limit can be a test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Error, Result, bail};

use crate::cargo::cargo;
use crate::paths::{self, find_program};
use crate::process::run_captured;

/// Pfns of 64 MiB and of 1 TiB.
const SIZES: [u64; 2] = [1 << 14, 1 << 28];
const LOOK_UPS: u64 = 10_000;
/// Instructions that a look-up may take more than a bounds-checked index into a slice. It answers
/// more: whether there is memory at all, in a list that may grow meanwhile.
const LOOK_UP_MORE_MAX: u64 = 4;
/// Pfns of the map that is audited.
const AUDITED: u64 = 1 << 16;
/// Instructions that an audit may take for a pfn.
const AUDIT_MAX: u64 = 40;
const MAPPINGS: u64 = 10_000;
/// Instructions that mapping 2 KiB for a device and unmapping it may take, if nothing is copied.
const MAPPING_MAX: u64 = 120;

/// Counts and compares.
///
/// # Errors
///
/// Something costs more than it may.
pub(super) fn check() -> Result<String> {
    if find_program("valgrind").is_none() {
        return Ok("(not counted: this machine has no valgrind)".to_owned());
    }
    let mapping = mapping()?;
    let program = example("p2m", "lookup_cost")?;
    let mut look_ups = Vec::new();
    for pfns in SIZES {
        let slice = one(&program, "slice", pfns, LOOK_UPS)? / LOOK_UPS;
        let p2m = one(&program, "p2m", pfns, LOOK_UPS)? / LOOK_UPS;
        if p2m > slice + LOOK_UP_MORE_MAX {
            bail!("a look-up among {pfns} pfns takes {p2m} instructions, a slice index {slice}");
        }
        look_ups.push((slice, p2m));
    }
    if look_ups[0] != look_ups[1] {
        bail!("a look-up costs {look_ups:?} at the two sizes");
    }
    let audit = one(&program, "audit", AUDITED, 1)? / AUDITED;
    if audit > AUDIT_MAX {
        bail!("an audit takes {audit} instructions for a pfn, {AUDIT_MAX} are allowed");
    }
    let (slice, p2m) = look_ups[0];
    Ok(format!(
        "(look-up loop {p2m}, with a slice {slice}; audit {audit} a pfn; map and unmap {mapping})"
    ))
}

/// What mapping 2 KiB as it is costs, with unmapping it.
fn mapping() -> Result<u64> {
    let program = example("swiotlb", "map_cost")?;
    let count = |what, times: u64| instructions(&program, &[what, &times.to_string()]);
    let one =
        |what| Ok::<_, Error>((count(what, 2 * MAPPINGS)? - count(what, MAPPINGS)?) / MAPPINGS);
    let mapping = one("direct")?.saturating_sub(one("none")?);
    if mapping > MAPPING_MAX {
        bail!("mapping and unmapping takes {mapping} instructions, {MAPPING_MAX} are allowed");
    }
    Ok(mapping)
}

/// An example of a package, built to be measured.
fn example(package: &str, name: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--package", package, "--example", name]);
    let target = paths::target()?;
    let (status, output) = run_captured(build.arg("--target-dir").arg(&target), |_| {})?;
    if !status.success() {
        bail!("{output}");
    }
    Ok(target.join("release/examples").join(name))
}

/// What `times` of it cost: the difference between a run with as many and one with twice as many.
fn one(program: &Path, what: &str, pfns: u64, times: u64) -> Result<u64> {
    let count = |times: u64| instructions(program, &[what, &pfns.to_string(), &times.to_string()]);
    Ok(count(2 * times)? - count(times)?)
}

fn instructions(program: &Path, words: &[&str]) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.arg(program).args(words);
    let (status, output) = run_captured(&mut valgrind, |_| {})?;
    let line = output.lines().find(|line| line.contains("refs:"));
    let number = line.and_then(|line| line.rsplit(' ').next()).map(|text| text.replace(',', ""));
    match number {
        Some(number) if status.success() => number.parse().context("valgrind's count"),
        _ => bail!("valgrind ({status}):\n{output}"),
    }
}
