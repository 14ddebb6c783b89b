//! What the frame map costs, in instructions counted by valgrind: the same on every machine and in
//! every run, so a limit can be a test.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

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

/// Counts and compares.
///
/// # Errors
///
/// Something costs more than it may.
pub(super) fn check() -> Result<String> {
    if find_program("valgrind").is_none() {
        return Ok("(not counted: this machine has no valgrind)".to_owned());
    }
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "--package", "p2m", "--example", "lookup_cost"]);
    let target = paths::target()?;
    let (status, output) = run_captured(build.arg("--target-dir").arg(&target), |_| {})?;
    if !status.success() {
        bail!("{output}");
    }
    let program = target.join("release/examples/lookup_cost");
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
    Ok(format!("(look-up loop {p2m}, with a slice {slice}; audit {audit} a pfn)"))
}

/// What `times` of it cost: the difference between a run with as many and one with twice as many.
fn one(program: &Path, what: &str, pfns: u64, times: u64) -> Result<u64> {
    let once = instructions(program, what, pfns, times)?;
    Ok(instructions(program, what, pfns, 2 * times)? - once)
}

fn instructions(program: &Path, what: &str, pfns: u64, times: u64) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.arg(program).args([what, &pfns.to_string(), &times.to_string()]);
    let (status, output) = run_captured(&mut valgrind, |_| {})?;
    let line = output.lines().find(|line| line.contains("refs:"));
    let number = line.and_then(|line| line.rsplit(' ').next()).map(|text| text.replace(',', ""));
    match number {
        Some(number) if status.success() => number.parse().context("valgrind's count"),
        _ => bail!("valgrind ({status}):\n{output}"),
    }
}
