//! A way from one size to another, step by step, and what it took.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use balloon::{Balloon, Moved, Next, Retarget, StepStorage};
use hypercall::{Cpu, FrameSource, Machine};

use super::super::OrSay;
use super::floor::Floors;
use crate::program::Kernel;
use crate::report::Verdict;

/// Frames that a step moves: the most traps for a GiB that are allowed are 1,100, the most ticks of
/// a step a million.
const STEP_FRAMES: usize = 512;
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

/// Ways that were gone, and what they took.
pub(super) struct Ways {
    storage: Box<StepStorage<STEP_FRAMES>>,
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

impl Ways {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { storage: Box::new(StepStorage::new()), ways: Vec::new() }
    }

    /// Goes to `target` frames; every step's accounts must be right.
    pub(super) fn go<M: Machine + Cpu>(
        &mut self,
        kernel: &Kernel<'_, M>,
        balloon: &mut Balloon<'_>,
        frames: &mut impl FrameSource,
        name: &str,
        target: u64,
    ) -> Result<(), String> {
        let from = balloon.accounts(kernel.guest.machine(), kernel.guest.p2m()).populated;
        if balloon.set_target(target) != Retarget::Step {
            return Err(format!("{name}: there is nothing to do for {target} frames"));
        }
        let (mut steps, mut longest, mut moved) = (0, 0, 0);
        let (begun, before) = (kernel.cpu.ticks(), kernel.guest.machine().counts());
        loop {
            let start = kernel.cpu.ticks();
            let step = self.storage.with(|work| balloon.step(&kernel.guest, frames, work));
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
        let traps = (kernel.guest.machine().counts() - before).hypercalls;
        if moved != from.abs_diff(target) {
            return Err(format!("{name}: {moved} frames moved, {} should", from.abs_diff(target)));
        }
        let (name, is_out) = (String::from(name), target < from);
        self.ways.push(Way { name, is_out, frames: moved, steps, traps, ticks, longest });
        Ok(())
    }

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
