//! `bench`: what each operation costs on the machine it runs on, beside what Linux pays on the same
//! Xen and beside the least that Xen charges for it.
//!
//! Under `cargo xtask run --icount` a tick of the clock is an executed instruction, guest's and
//! hypervisor's together, and every figure is the same on every run. The targets are those of Xen
//! 4.17; one that is missed is named at the end, and docs/performance.md says why.

mod floor;
mod live;
mod memory;
mod spaces;
mod table;

use alloc::boxed::Box;
use alloc::format;

use hypercall::{BatchStorage, Cpu, Machine};

use super::OrSay;
use crate::guest::Guest;
use crate::report::Verdict;
use memory::Memory;
use table::Table;

/// Room for what goes to Xen in one trap.
type Storage = BatchStorage<1100, 600>;

/// Pages that the rows about live pages work on: those of 128 full L1 tables.
const PAGES: u64 = 65_536;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    let mut memory = Memory::of(guest);
    if (memory.far() as u64) < PAGES {
        return Err(format!(
            "{PAGES} frames are needed behind the direct mapping, there are {}: try --mem 512",
            memory.far()
        ));
    }
    let free = memory.len();
    let mut storage = Box::new(Storage::new());
    let mut table = Table::begin(guest).or_say("console")?;
    floor::run(guest, &mut table, &mut memory, &mut storage)?;
    spaces::run(guest, &mut table, &mut memory, &mut storage)?;
    live::run(guest, &mut table, &mut memory, &mut storage)?;
    if memory.len() != free {
        return Err(format!("{} frames were lost", free - memory.len()));
    }
    table.end(guest)
}
