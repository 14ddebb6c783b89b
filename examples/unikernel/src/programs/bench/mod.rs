//! `bench`: what each operation costs on the machine it runs on, and the least that Xen charges for
//! it.
//!
//! Under `cargo xtask run --icount` a tick of the clock is an executed instruction, guest's and
//! hypervisor's together, and every figure is the same on every run. `cargo xtask bench` boots this
//! program, puts Linux's figures beside ours and holds both against the targets; here things are
//! measured and not judged.
//!
//! # Adding a row
//! An owner of operations has a file of their own here, with
//! `pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String>`, and a
//! line in [`run`] below. It measures between [`Bench::begin`] and [`Bench::end`] and prints with
//! [`Bench::row`]:
//!
//! ```text
//! let start = bench.begin();
//! let pgd = pgd.pin(&bench.kernel.guest, &mut bench.storage.batch()).or_say("pin")?;
//! let cost = bench.end(start);
//! bench.row("pin, sparse tables", "tables", 512, cost, Some(floor))?;
//! ```
//!
//! * Operation and size together name a row: in the baseline (`tests/baselines`), among the targets
//!   (`xtask/src/bench/targets.rs`: add yours there), in the plots, which have one curve for each
//!   operation. So the same operation in several sizes has one name.
//! * The floor is what Xen itself takes for the same change: bare requests with nothing around
//!   them, measured in the same boot ([`bare`] measures those of the MMU). `None` if there is none.
//! * Frames come from `bench.memory` and must all be back there at the end.
//! * Nothing may depend on what a clock says but the figures themselves.

mod balloon;
mod bare;
mod contiguous;
mod early;
mod flush;
mod fork;
mod frame_map;
mod live;
mod memory;
mod pooled;
mod primitives;
mod row;
mod spaces;
mod suspend;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::hint::black_box;

use hypercall::middleware::{Counting, Timed};
use hypercall::{BatchStorage, Cpu, Machine};

use crate::pool::Pool;
use crate::program::Kernel;
use crate::report::Verdict;
use memory::Memory;
use row::{Bench, Cost};

/// Room for what goes to Xen in one trap.
type Storage = BatchStorage<1100, 600>;

/// The most pages that a row works on: those of 128 full L1 tables.
const PAGES: u64 = 65_536;

/// Turns of a loop that a late run begins with, so that an interrupt of Xen's comes in another row.
/// One comes every ten million instructions: some three million are no part of that, however often.
const LATE: u64 = 617_283;

/// Runs the program: the part that the first word behind its name says, later with each word "late"
/// behind that.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let booted = kernel.cpu.ticks();
    let second = kernel.second;
    let timed = Timed::new(kernel.cpu);
    let machine = Counting::new(&timed);
    let mut kernel = Kernel {
        guest: kernel.guest.with_machine(&machine),
        cpu: &timed,
        boot: kernel.boot,
        pool: core::mem::replace(&mut kernel.pool, Pool::empty()),
        made: core::mem::take(&mut kernel.made),
        arguments: kernel.arguments,
        module: kernel.module,
        console: &mut *kernel.console,
        platform: kernel.platform,
        second: None,
    };
    let memory = Memory::of(&mut kernel);
    if (memory.far() as u64) < PAGES {
        return Err(format!(
            "{PAGES} frames are needed for pages, there are {}: try --mem 512",
            memory.far()
        ));
    }
    let storage = Box::new(Storage::new());
    let in_xen = || timed.ticks_in_requests();
    let mut bench = Bench { kernel: &mut kernel, memory, storage, in_xen: &in_xen, rows: 0 };
    let mut words = bench.kernel.arguments.split_whitespace();
    let part = words.next().unwrap_or_default();
    let late = words.filter(|word| *word == "late").count() as u64;
    for turn in 0..late * LATE {
        black_box(turn);
    }
    match part {
        "all" | "" => on_one_vcpu(&mut bench, booted)?,
        "flush" => flush::run(&mut bench, second.ok_or("this machine has no second vCPU")?)?,
        "balloon" => balloon::run(&mut bench)?,
        _ => {
            let parts = "all, balloon and flush";
            return Err(format!("no part of the bench is called {part:?}: there are {parts}"));
        }
    }
    Ok(format!("{} rows", bench.rows))
}

/// Everything that needs no second vCPU.
fn on_one_vcpu<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, booted: u64) -> Result<(), String> {
    // From power on, which is when the clock began; what came before the kernel is Xen's.
    let entered = bench.kernel.platform.entered();
    let boot = Cost { ticks: booted, in_xen: entered, ..Cost::default() };
    bench.row("boot, to the first program", "boots", 1, boot, Some(entered))?;
    let window = frame_map::window_frames(bench);
    let free = bench.memory.len();
    contiguous::run(bench)?;
    // While the memory is one run.
    let new = early::new_pages(bench)?;
    let bare = bare::run(bench)?;
    early::run(bench, &bare, new)?;
    spaces::run(bench)?;
    pooled::run(bench, &bare)?;
    live::run(bench, &bare)?;
    primitives::run(bench, &bare)?;
    fork::run(bench, &bare)?;
    balloon::run(bench)?;
    if bench.memory.len() != free {
        return Err(format!("{} frames were lost", free - bench.memory.len()));
    }
    suspend::run(bench)?;
    frame_map::run(bench, &bare, window)
}
