//! `prove`: random operations on this machine, and a record of all answers that can be compared
//! with another one's.
//!
//! Arguments, all optional: `seed=S` and `seeds=K` (K sequences, from seed S on), `ops=N` of each,
//! `every=K` (a digest after each K groups), `show=S` with `from=I` and `to=J` (groups I to J of
//! seed S in full: the steps, then the words observed), `replay` (the steps are in the boot module,
//! one a line). `cargo xtask prove` runs it on real Xen and on the model and compares the output.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use hypercall::{Cpu, FrameAccess as _, Level, Machine};
use p2m::{Pfns, walk};
use prove::{Arena, ArenaFrame, Digest, Executor, Generator, Landmarks, Observation, Step};

use super::OrSay;
use crate::program::{Kernel, number};
use crate::report::Verdict;

/// Frames of the arena.
const FRAMES: usize = 64;

/// What to do.
struct Plan {
    seeds: Range<u64>,
    ops: u64,
    every: u64,
    show: u64,
    window: Range<u64>,
}

impl Plan {
    fn parse(arguments: &str) -> Result<Self, String> {
        let seed = number(arguments, "seed", 1)?;
        Ok(Self {
            seeds: seed..seed.saturating_add(number(arguments, "seeds", 1)?),
            ops: number(arguments, "ops", 2_000)?,
            every: number(arguments, "every", 100)?.max(1),
            show: number(arguments, "show", seed)?,
            window: number(arguments, "from", 0)?..number(arguments, "to", 0)?,
        })
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let plan = Plan::parse(kernel.arguments)?;
    let mut executor = Executor::new(arena(kernel)?);
    let mut record = Record::default();
    if kernel.arguments.split_whitespace().any(|word| word == "replay") {
        replay(kernel, &mut executor, &mut record)?;
    } else {
        for seed in plan.seeds.clone() {
            writeln!(kernel.console, "P seed {seed}").or_say("console")?;
            executor.restart();
            record.groups = 0;
            generate(kernel, &mut executor, seed, &plan, &mut record)?;
        }
    }
    write!(kernel.console, "{}", executor.coverage()).or_say("console")?;
    if !executor.is_clean() {
        return Err("not everything could be put back".into());
    }
    let Record { ops, digest, .. } = record;
    Ok(format!("{ops} operations, digest {:016x}", digest.value()))
}

/// Frames for the operations, and the landmarks around them.
fn arena<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<Arena, String> {
    let all = arena_frames(kernel, FRAMES)?;
    let shared_info = kernel.boot.shared_info;
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    let root_va = guest.machine().direct_map(guest.kernel_root()).or_say("the root")?;
    let path = walk(&guest, guest.kernel_root(), root_va).or_say("walk")?;
    let running_l1 = path.at(Level::L1).ok_or("the root is not mapped")?.slot.table;
    let running_root = guest.p2m().mfn(guest.kernel_root()).or_say("P2M")?;
    Ok(Arena::new(all, Landmarks { shared_info, running_root, running_l1 }))
}

/// A run of frames of the pool, with the places where the direct mapping maps them.
pub(super) fn arena_frames<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    frames: usize,
) -> Result<Vec<ArenaFrame>, String> {
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut all = Vec::new();
    // The frames are not given back: the program ends with the guest.
    let run = pool.take_run(frames as u64).ok_or("the pool has no such run")?;
    for pfn in Pfns::new(run.start(), run.count()).iter() {
        let va = guest.machine().direct_map(pfn).or_say("direct mapping")?;
        let path = walk(&guest, guest.kernel_root(), va).or_say("walk")?;
        let (direct, _) = path.leaf().ok_or("the arena is not mapped")?;
        let mfn = guest.p2m().mfn(pfn).or_say("P2M")?;
        all.push(ArenaFrame { pfn, mfn, direct, va });
    }
    Ok(all)
}

/// What has been done and seen.
#[derive(Default)]
struct Record {
    ops: u64,
    /// Of this sequence.
    groups: u64,
    digest: Digest,
}

impl Record {
    fn add(&mut self, group: &[Step], observation: &Observation) {
        self.ops += group.len() as u64;
        self.groups += 1;
        self.digest.add(observation);
    }
}

fn generate<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    executor: &mut Executor,
    seed: u64,
    plan: &Plan,
    record: &mut Record,
) -> Result<(), String> {
    let mut generator = Generator::new(seed, FRAMES);
    let end = record.ops + plan.ops;
    while record.ops < end {
        let mut printed = Ok(());
        generator.step(kernel.cpu, executor, &mut |group, observation| {
            if plan.show == seed && plan.window.contains(&record.groups) {
                printed = show(kernel.console, record.groups, group, observation);
            }
            record.add(group, observation);
        });
        printed.or_say("console")?;
        if record.groups.is_multiple_of(plan.every) {
            digest_line(kernel.console, record).or_say("console")?;
        }
    }
    let last = generator.last();
    let observation = executor.apply(kernel.cpu, &last);
    record.add(&last, observation);
    digest_line(kernel.console, record).or_say("console")
}

fn replay<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    executor: &mut Executor,
    record: &mut Record,
) -> Result<(), String> {
    let text = kernel.module.ok_or("replay needs the steps as boot module (--module FILE)")?;
    let text = core::str::from_utf8(text).or_say("the boot module")?;
    let lines = text.trim_end_matches('\0').lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let steps = lines
        .map(|(at, line)| line.parse().or_say(&format!("line {} of the boot module", at + 1)))
        .collect::<Result<Vec<Step>, String>>()?;
    let mut rest = &steps[..];
    while !rest.is_empty() {
        let (group, others) = rest.split_at(Executor::group_len(rest).max(1));
        rest = others;
        let observation = executor.apply(kernel.cpu, group);
        show(kernel.console, record.groups, group, observation).or_say("console")?;
        record.add(group, observation);
    }
    digest_line(kernel.console, record).or_say("console")
}

/// The state of the record: groups, digest.
fn digest_line(console: &mut dyn fmt::Write, record: &Record) -> fmt::Result {
    writeln!(console, "D {} {:016x}", record.groups, record.digest.value())
}

/// A group in full: its steps, a line each, then the words observed.
fn show(
    console: &mut dyn fmt::Write,
    number: u64,
    group: &[Step],
    observation: &Observation,
) -> fmt::Result {
    for step in group {
        writeln!(console, "S {number} {step}")?;
    }
    write!(console, "O {number}")?;
    for word in observation.words() {
        write!(console, " {word:x}")?;
    }
    writeln!(console)
}
