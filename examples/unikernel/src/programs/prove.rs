//! `prove`: random operations on this machine, and a record of all answers that can be compared
//! with another one's.
//!
//! Arguments, all optional: `seed=S`, `ops=N`, `every=K` (a digest after each K groups), `from=I`
//! and `to=J` (groups I to J in full: the steps, then the words observed), `frames=F`, `replay`
//! (the steps are in the boot module, one a line). `cargo xtask prove` runs it on real Xen and on
//! the model and compares the output.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use hypercall::{Cpu, FrameAccess as _, Level, Machine};
use prove::{Arena, ArenaFrame, Digest, Executor, Generator, Landmarks, Observation, Step};
use pvmmu::{TableSource as _, walk};

use super::OrSay;
use crate::guest::{Guest, number};
use crate::report::Verdict;

/// After so many operations everything is put back, so that states stay various.
const OPS_BETWEEN_CLEANINGS: u64 = 500;

/// What to do.
struct Plan {
    seed: u64,
    ops: u64,
    every: u64,
    window: core::ops::Range<u64>,
    frames: usize,
}

impl Plan {
    fn parse(arguments: &str) -> Result<Self, String> {
        let frames = number(arguments, "frames", 64)?;
        Ok(Self {
            seed: number(arguments, "seed", 1)?,
            ops: number(arguments, "ops", 2_000)?,
            every: number(arguments, "every", 100)?.max(1),
            window: number(arguments, "from", 0)?..number(arguments, "to", 0)?,
            frames: usize::try_from(frames).unwrap_or(64).clamp(8, 256),
        })
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    let plan = Plan::parse(guest.arguments)?;
    let mut executor = Executor::new(arena(guest, plan.frames)?);
    let record = match guest.arguments.split_whitespace().any(|word| word == "replay") {
        true => replay(guest, &mut executor)?,
        false => generate(guest, &mut executor, &plan)?,
    };
    write!(guest.console, "{}", executor.coverage()).or_say("console")?;
    if record.dirty {
        return Err(format!("after group {} not everything could be put back", record.groups));
    }
    let Record { ops, groups, digest, .. } = record;
    Ok(format!("{ops} operations in {groups} groups, digest {:016x}", digest.value()))
}

/// Frames for the operations, and the landmarks around them.
fn arena<M: Machine + Cpu>(guest: &mut Guest<'_, M>, frames: usize) -> Result<Arena, String> {
    let shared_info = guest.boot.shared_info;
    let root_va = guest.boot.root;
    let (context, pool) = guest.parts();
    let path = walk(&context, context.kernel_root, root_va).or_say("walk")?;
    let running_l1 = path.at(Level::L1).ok_or("the root is not mapped")?.slot.table;
    let running_root = context.p2m.mfn(context.kernel_root).or_say("P2M")?;
    let mut all = Vec::new();
    for _ in 0..frames {
        // The frames are not given back: the program ends with the guest.
        let pfn = pool.take().ok_or("the pool is empty")?.pfn();
        let va = context.machine.direct_map(pfn).or_say("direct mapping")?;
        let path = walk(&context, context.kernel_root, va).or_say("walk")?;
        let (direct, _) = path.leaf().ok_or("the arena is not mapped")?;
        let mfn = context.p2m.mfn(pfn).or_say("P2M")?;
        all.push(ArenaFrame { pfn, mfn, direct, va });
    }
    Ok(Arena::new(all, Landmarks { shared_info, running_root, running_l1 }))
}

/// What has been done and seen.
#[derive(Default)]
struct Record {
    ops: u64,
    groups: u64,
    digest: Digest,
    dirty: bool,
}

impl Record {
    fn add(&mut self, group: &[Step], observation: &Observation) {
        self.ops += group.len() as u64;
        self.groups += 1;
        self.digest.add(observation);
    }
}

fn generate<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    executor: &mut Executor,
    plan: &Plan,
) -> Result<Record, String> {
    let mut generator = Generator::new(plan.seed, plan.frames);
    let mut record = Record::default();
    let mut clean_at = OPS_BETWEEN_CLEANINGS;
    while record.ops < plan.ops && !record.dirty {
        let mut printed = Ok(());
        generator.step(guest.cpu, executor, &mut |group, observation| {
            if plan.window.contains(&record.groups) {
                printed = show(guest.console, record.groups, group, observation);
            }
            record.add(group, observation);
        });
        printed.or_say("console")?;
        if record.ops >= clean_at.min(plan.ops) {
            clean_at = record.ops + OPS_BETWEEN_CLEANINGS;
            record.digest.add(executor.clean_up(guest.cpu));
            record.dirty = !executor.is_clean();
            generator.forget();
        }
        if record.groups.is_multiple_of(plan.every) {
            digest_line(guest.console, &record).or_say("console")?;
        }
    }
    digest_line(guest.console, &record).or_say("console")?;
    Ok(record)
}

fn replay<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    executor: &mut Executor,
) -> Result<Record, String> {
    let text = guest.module.ok_or("replay needs the steps as boot module (--module FILE)")?;
    let text = core::str::from_utf8(text).or_say("the boot module")?;
    let text = text.trim_end_matches('\0');
    let steps =
        text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let steps = steps
        .map(|(at, line)| line.parse().or_say(&format!("line {} of the boot module", at + 1)))
        .collect::<Result<Vec<Step>, String>>()?;
    let mut record = Record::default();
    let mut rest = &steps[..];
    while !rest.is_empty() {
        let (group, others) = rest.split_at(Executor::group_len(rest).max(1));
        rest = others;
        let observation = executor.apply(guest.cpu, group);
        show(guest.console, record.groups, group, observation).or_say("console")?;
        record.add(group, observation);
    }
    record.digest.add(executor.clean_up(guest.cpu));
    record.dirty = !executor.is_clean();
    digest_line(guest.console, &record).or_say("console")?;
    Ok(record)
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
