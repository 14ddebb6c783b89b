//! What the Rust toolchain must have: the bare-metal target that the guest is built for, and the
//! components that check the code.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::paths::find_program;
use crate::process::{run_captured, run_quietly};
use crate::progress::step;

/// The target that the guest and the `no_std` crates are built for.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// Sees to it that rustc can build for the target.
///
/// # Errors
///
/// It cannot, and rustup is missing or fails.
pub(crate) fn require() -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let (status, folder) = run_captured(&mut rustc, |_| {})?;
    if status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "the guest is built for {TARGET}, which this Rust toolchain lacks and which only \
             rustup can add: install rustup, then `rustup target add {TARGET}`. \
             `cargo xtask run --on model` works without it."
        );
    }
    step(&format!("Rust target {TARGET}"), |_| {
        run_quietly(Command::new("rustup").args(["target", "add", TARGET]), |_| {})?;
        Ok(())
    })
}

/// Sees to it that cargo has its linter and its formatter.
///
/// # Errors
///
/// It lacks one, and rustup is missing or fails.
pub(crate) fn require_components() -> Result<()> {
    for (program, component) in [("cargo-clippy", "clippy"), ("cargo-fmt", "rustfmt")] {
        let works = Command::new(program).arg("--version").output();
        if works.is_ok_and(|output| output.status.success()) {
            continue;
        }
        if find_program("rustup").is_none() {
            bail!("this Rust toolchain lacks {component}, which only rustup can add");
        }
        step(&format!("Rust component {component}"), |_| {
            run_quietly(Command::new("rustup").args(["component", "add", component]), |_| {})?;
            Ok(())
        })?;
    }
    Ok(())
}
