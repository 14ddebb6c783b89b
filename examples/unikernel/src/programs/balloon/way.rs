//! A way from one size to another, step by step, and what it took.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use balloon::{Balloon, Moved, Next, Retarget};
use hypercall::{Cpu, Machine};

use super::super::OrSay;
use super::floor::Floors;
use super::{Spare, Storage};
use crate::guest::{Kernel, Pool};
use crate::report::Verdict;

/// Pages in a GiB.
const GIB: u64 = 1 << 18;
/// The most traps for a GiB.
const TRAPS_MAX: u64 = 1100;
/// The same where Xen has to find every frame by itself: steps are shorter, so that they take no
/// longer.
const SINGLES_IN_TRAPS_MAX: u64 = 1180;
/// Traps that a way may take beside those: its last step is short, and one step may find that Xen
/// has no large extents.
const ODD_TRAPS: u64 = 4;

impl Way {
    const fn traps_per_gib(&self) -> u64 {
        (self.traps * GIB).div_ceil(self.frames)
    }
}

/// What ways took.
#[derive(Default)]
pub(super) struct Ways {
    ways: Vec<Way>,
}

struct Way {
    name: String,
    is_out: bool,
    frames: u64,
    steps: u64,
    traps: u64,
    ticks: u64,
    longest: u64,
}

/// Goes to `target` frames with the guest's pool; every step's accounts must be right.
pub(super) fn go<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    (balloon, storage): (&mut Balloon<'_>, &mut Storage),
    target: u64,
    way: (&str, &mut Ways),
) -> Result<(), String> {
    let mut pool = core::mem::replace(&mut kernel.pool, Pool::empty());
    let result = go_with(kernel, (balloon, storage, &mut Spare(&mut pool)), target, way);
    kernel.pool = pool;
    result
}

/// Goes to `target` frames; every step's accounts must be right.
pub(super) fn go_with<M: Machine + Cpu>(
    kernel: &Kernel<'_, M>,
    (balloon, storage, allocator): (
        &mut Balloon<'_>,
        &mut Storage,
        &mut impl hypercall::FrameSource,
    ),
    target: u64,
    (name, ways): (&str, &mut Ways),
) -> Result<(), String> {
    let from = balloon.accounts(&kernel.machine, kernel.p2m).populated;
    if balloon.set_target(target) != Retarget::Step {
        return Err(format!("{name}: there is nothing to do for {target} frames"));
    }
    let (mut steps, mut longest, mut moved) = (0, 0, 0);
    let (begun, before) = (kernel.cpu.ticks(), kernel.machine.counts());
    loop {
        let start = kernel.cpu.ticks();
        let step = storage.with(|work| balloon.step(&kernel.guest(), allocator, work));
        longest = longest.max(kernel.cpu.ticks().wrapping_sub(start));
        steps += 1;
        if let Moved::Out(frames) | Moved::In(frames) = step.moved {
            moved += frames;
        }
        if !step.accounts.is_balanced() {
            return Err(format!("{name}, step {steps}: {}", step.accounts));
        }
        match step.next {
            Next::Again => {}
            Next::Idle => break,
            Next::Wait { why, .. } => return Err(format!("{name}, step {steps}: {why}")),
        }
    }
    let ticks = kernel.cpu.ticks().wrapping_sub(begun);
    let traps = (kernel.machine.counts() - before).hypercalls;
    if moved != from.abs_diff(target) {
        return Err(format!("{name}: {moved} frames moved, {} should", from.abs_diff(target)));
    }
    let name = String::from(name);
    let is_out = target < from;
    ways.ways.push(Way { name, is_out, frames: moved, steps, traps, ticks, longest });
    Ok(())
}

impl Ways {
    /// Prints the table.
    pub(super) fn print<M>(&self, kernel: &mut Kernel<'_, M>) -> Result<(), String> {
        let out = &mut *kernel.console;
        let head = "way            frames   steps   traps  traps/GiB  ticks/page  longest step";
        writeln!(out, "{head}").or_say("console")?;
        for way in &self.ways {
            let Way { name, frames, steps, traps, ticks, longest, .. } = way;
            let (per_gib, per_page) = (way.traps_per_gib(), ticks / frames);
            writeln!(
                out,
                "{name:<10} {frames:>10} {steps:>7} {traps:>7} {per_gib:>10} {per_page:>11} \
                 {longest:>13}"
            )
            .or_say("console")?;
        }
        Ok(())
    }

    /// Prints everything, and says whether the traps are few enough.
    pub(super) fn judge<M>(&self, kernel: &mut Kernel<'_, M>, floors: &Floors) -> Verdict {
        writeln!(kernel.console, "{floors}").or_say("console")?;
        self.print(kernel)?;
        let mut worst = 0;
        for way in &self.ways {
            let is_in = !way.is_out && way.name.starts_with("singles");
            let most = if is_in { SINGLES_IN_TRAPS_MAX } else { TRAPS_MAX };
            let Way { name, frames, traps, .. } = way;
            let most = (frames * most).div_ceil(GIB) + ODD_TRAPS;
            if *traps > most {
                return Err(format!("{name}: {traps} traps for {frames} frames, not {most}"));
            }
            worst = worst.max(way.traps_per_gib());
        }
        let frames: u64 = self.ways.iter().filter(|way| way.is_out).map(|way| way.frames).sum();
        Ok(format!(
            "{} ways, {frames} frames out and in, at most {worst} traps for a GiB",
            self.ways.len()
        ))
    }
}
