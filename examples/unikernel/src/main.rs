//! A Rust kernel that boots on Xen as a PV guest and shows what the crates of this workspace do.
//!
//! The first word of the guest's command line chooses a program (`programs`); every program is
//! written against the seam, so that it runs on real Xen as on the model. The bare metal parts are
//! in `kernel`: ELF notes and entry, faults, console, heap. It is the only crate with linker
//! symbols, statics and a panic handler.
//!
//! `cargo xtask run` builds and boots it.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod direct_map;
mod identity;
mod life;
mod pool;
mod program;
mod programs;
mod report;
mod store;

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
mod host;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    host::main()
}
