//! The size of the guest: crate balloon, between the pool and the workload.

use alloc::format;
use alloc::string::String;

use balloon::{Balloon, BalloonStep, Goal, Limit, Moved, Next, StepStorage};
use hypercall::{Cpu, Frame, FrameAccess, FrameSource, Frames, Machine};
use p2m::P2m;

use super::super::OrSay as _;
use super::epoch::Epoch;
use super::hoard::Hoard;
use super::workload::Workload;
use super::{Nanoseconds, POOL_RESERVE};
use crate::life::{Survives, survives};
use crate::pool::Pool;
use crate::program::Platform;

/// Frames that a step moves at most.
const STEP_FRAMES: usize = 512;
/// A unit of the balloon's pauses.
const SECOND: u64 = 1_000_000_000;

// Counts, and a set of pfns.
impl Survives for Balloon<'_> {}

survives! {
    /// How large the guest is, and is to be.
    pub(super) struct Size<'s> {
        balloon: Balloon<'s>,
        /// Nanoseconds for which it would be in vain to take a step.
        rest: u64,
        /// The balloon has nothing to do.
        idle: bool,
        /// What the guest said last of what is in the way.
        said: String,
    }
}

/// Frames that the guest can spare: those that nobody uses, then those of the heap, then those of
/// the workload.
struct Spare<'a, M> {
    machine: &'a M,
    platform: &'a dyn Platform,
    pool: &'a mut Pool,
    workload: &'a mut Workload,
    hoard: &'a mut Hoard,
    sound: Result<(), String>,
}

impl<M: FrameAccess> FrameSource for Spare<'_, M> {
    fn take(&mut self) -> Option<Frame> {
        if self.pool.len() as u64 > POOL_RESERVE {
            return self.pool.take();
        }
        match self.hoard.shrink(self.platform) {
            Ok(Some(frames)) => {
                self.pool.give_run(frames);
                return self.pool.take();
            }
            Ok(None) => {}
            wrong @ Err(_) => {
                let sound = core::mem::replace(&mut self.sound, Ok(()));
                self.sound = sound.and(wrong.map(drop));
            }
        }
        let (frame, sound) = self.workload.release(self.machine)?;
        self.sound = core::mem::replace(&mut self.sound, Ok(())).and(sound);
        Some(frame)
    }

    fn give(&mut self, frame: Frame) {
        self.pool.give(frame);
    }
}

impl<'s> Size<'s> {
    /// The size as it is.
    pub(super) const fn new(balloon: Balloon<'s>) -> Self {
        Self { balloon, rest: 0, idle: true, said: String::new() }
    }

    /// The target, if there are no pfns for it.
    pub(super) const fn lacks_pfns(&self) -> Option<u64> {
        match self.balloon.goal() {
            Goal { wanted, limit: Some(Limit::Pfns(_)), .. } => Some(wanted),
            _ => None,
        }
    }

    /// Takes over pfns that have no memory and may get some.
    pub(super) fn widen(&mut self, p2m: &P2m<'_>, frames: Frames) -> Result<(), String> {
        self.balloon.add_empty(p2m, frames).or_say("the balloon")
    }

    /// Counts pfns that never get memory.
    pub(super) const fn leave_out(&mut self, pfns: u64) {
        self.balloon.leave_out(pfns);
    }

    /// Aims at `pages`.
    pub(super) fn aim(&mut self, pages: u64) {
        self.idle = false;
        match self.balloon.set_target(pages) {
            balloon::Retarget::Step => self.rest = 0,
            balloon::Retarget::Idle => self.idle = true,
            // What was in the way is in the way of this target, too.
            balloon::Retarget::KeepWaiting => {}
        }
    }

    /// Time has passed.
    pub(super) const fn passed(&mut self, time: Nanoseconds) {
        self.rest = self.rest.saturating_sub(time.0);
    }

    /// Whether a step is worth taking now.
    pub(super) const fn wants_step(&self) -> bool {
        !self.idle && self.rest == 0
    }

    /// Whether every pfn is accounted for and Xen agrees; in words.
    pub(super) fn account<M: Machine + Cpu>(
        &self,
        epoch: &Epoch<'_, '_, M>,
    ) -> Result<String, String> {
        let accounts = self.balloon.accounts(epoch.machine(), epoch.p2m());
        match accounts.is_balanced() {
            true => {
                let goal = self.balloon.goal().frames;
                Ok(format!("ballooned={} goal={goal}", accounts.ballooned))
            }
            false => Err(format!("{accounts}")),
        }
    }

    /// Takes a step. A sentence, if there is something new to say.
    pub(super) fn step<M: Machine + Cpu>(
        &mut self,
        epoch: &mut Epoch<'_, '_, M>,
        workload: &mut Workload,
        hoard: &mut Hoard,
    ) -> Result<Option<String>, String> {
        let platform = epoch.platform();
        let (guest, pool) = epoch.parts();
        let mut spare =
            Spare { machine: guest.machine(), platform, pool, workload, hoard, sound: Ok(()) };
        let mut storage = StepStorage::<STEP_FRAMES>::new();
        let step = storage.with(|work| self.balloon.step(&guest, &mut spare, work));
        spare.sound?;
        Ok(self.take_note(step))
    }

    fn take_note(&mut self, step: BalloonStep) -> Option<String> {
        if step.moved != Moved::Nothing {
            self.said.clear();
        }
        match step.next {
            Next::Again => None,
            Next::Idle => {
                self.idle = true;
                self.balloon.goal().limit.map(|_| format!("the goal is {}", self.balloon.goal()))
            }
            Next::Wait { why, pause } => {
                self.rest = u64::from(pause) * SECOND;
                let words = format!("not at {} yet: {why}", self.balloon.goal());
                let news = words != self.said;
                self.said.clone_from(&words);
                news.then_some(words)
            }
        }
    }
}
