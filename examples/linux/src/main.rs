//! What Linux pays for the same work: the only program of a Linux that runs as PV guest on the Xen
//! that the unikernel's bench runs on. `cargo xtask bench --vs linux` builds it as a static
//! program, makes it `/init`, and boots it under QEMU's instruction counter, where a tick of the
//! time-stamp counter is an executed instruction of program, kernel or hypervisor.
//!
//! | file | measures |
//! |---|---|
//! | `pin` | pin and unpin of a forked child's tables, by probes in the kernel |
//! | `live` | mmap, first touch, mprotect, munmap |
//! | `fork` | fork, exit and wait |
//! | `balloon` | the balloon driver's thread, out and in, as a domU |
//! | `trace` | the kernel's own trace: probes, and counts of multicalls |
//! | `system` | system calls |
//! | `row` | the lines that say what was measured, as the unikernel's |
//!
//! As a domU it measures the balloon, which `xl mem-set` moves, and as dom0 all the rest: the first
//! word of its command line, [`AS_DOMU`] or another one, says which.
//!
//! Times are measured first, with the trace off; then everything is done again with it on, and
//! counted.

mod balloon;
mod fork;
mod live;
mod pin;
mod row;
mod system;
mod trace;

use anyhow::Result;

/// What the kernel hands on to its first program in a domU.
const AS_DOMU: &str = "sized-by-xl";

fn main() {
    match measure() {
        Ok(rows) => println!("PVMMU-VERDICT pass {rows} rows"),
        Err(error) => println!("PVMMU-VERDICT fail {error:#}"),
    }
    system::end();
}

/// Measures everything, and says how many rows there are.
fn measure() -> Result<usize> {
    system::mount_all()?;
    let mut rows = row::Rows::begin();
    if std::env::args().any(|word| word == AS_DOMU) {
        balloon::run(&mut rows)?;
        return Ok(rows.printed());
    }
    rows.one("boot, to the first program", "boots", 1, system::ticks());
    live::run(&mut rows)?;
    fork::run(&mut rows)?;
    pin::run(&mut rows)?;
    Ok(rows.printed())
}
