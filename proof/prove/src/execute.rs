//! Applying steps to a machine.
#![expect(
    unsafe_code,
    reason = "issues requests about frames of the arena, which nobody else uses"
)]

mod memory;
mod mmu;

use alloc::vec::Vec;

use hypercall::{Call, Cpu, DomId, Machine, MmuExtOp, PAGE_SIZE, Pfn, Pte, PteFlags, Request};

use crate::arena::{Arena, OBSERVED, index};
use crate::coverage::{self, Coverage, EXCHANGES, STORES, UPDATES};
use crate::observe::Observation;
use crate::op::{Cas, Link, Op, Step, UpdatePlace, VaPlace, Value, Which};

/// After so many groups the whole arena is observed.
const GROUPS_PER_SWEEP: u64 = 64;

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It took effect, and answered with a value.
    Done(u64),
    /// It was refused, with this errno, or a fault.
    Refused(u32),
    /// An element before it in its request was refused.
    NotReached,
    /// It would have cost the guest a frame, and was not tried.
    Skipped,
}

impl Answer {
    /// As the word of an observation.
    const fn word(self) -> u64 {
        match self {
            Self::Done(value) => value,
            Self::Refused(errno) => 1 << 32 | errno as u64,
            Self::NotReached => 2 << 32,
            Self::Skipped => 3 << 32,
        }
    }

    /// For coverage: 0 for success.
    const fn errno(self) -> u32 {
        match self {
            Self::Refused(errno) => errno,
            _ => 0,
        }
    }
}

/// Stands for a page fault where an errno is wanted.
const FAULT: u32 = 1000;

/// Applies steps to a machine, and observes.
#[derive(Debug)]
pub struct Executor {
    arena: Arena,
    /// The level at which each frame is pinned, as the answers say.
    pinned: Vec<Option<u8>>,
    /// Frames that could not be had back from Xen.
    dead: Vec<bool>,
    user_base: Option<u8>,
    /// The direct mapping has changed since the last flush.
    stale: bool,
    groups: u64,
    clean: bool,
    start_reservation: Option<u64>,
    observation: Observation,
    coverage: Coverage,
}

impl Executor {
    /// Creates an executor over `arena`.
    #[must_use]
    pub fn new(arena: Arena) -> Self {
        let frames = arena.len();
        Self {
            arena,
            pinned: alloc::vec![None; frames],
            dead: alloc::vec![false; frames],
            user_base: None,
            stale: false,
            groups: 0,
            clean: true,
            start_reservation: None,
            observation: Observation::default(),
            coverage: Coverage::default(),
        }
    }

    /// Returns the arena as it is now.
    #[must_use]
    pub const fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Returns what was covered so far.
    #[must_use]
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Returns how many steps of `steps` form the next group: those that travel together.
    #[must_use]
    pub fn group_len(steps: &[Step]) -> usize {
        let together = |step: &&Step| step.link != Link::Alone && step.op.is_mmu();
        match steps.first() {
            None => 0,
            Some(first) if first.op.is_mmu() => {
                let rest = steps[1..].iter().take_while(together).count();
                (1 + rest).min(hypercall::CALLS_MAX)
            }
            Some(_) => 1,
        }
    }

    /// Applies a group (see [`group_len`](Self::group_len)) and returns what was seen.
    pub fn apply<M: Machine + Cpu>(&mut self, machine: &M, group: &[Step]) -> &Observation {
        self.apply_and_tell(machine, group).1
    }

    pub(crate) fn apply_and_tell<M: Machine + Cpu>(
        &mut self,
        machine: &M,
        group: &[Step],
    ) -> (Vec<Answer>, &Observation) {
        self.observation.clear();
        self.groups += 1;
        let answers = match group {
            [Step { op, .. }] if !op.is_mmu() => alloc::vec![self.alone(machine, *op)],
            _ => self.issue(machine, group),
        };
        for (step, answer) in group.iter().zip(&answers) {
            self.observation.push(answer.word());
            if !matches!(answer, Answer::Skipped | Answer::NotReached) {
                self.coverage.count(self.name(step.op), answer.errno());
            }
            self.follow(step.op, *answer);
        }
        self.observe(machine, group);
        (answers, &self.observation)
    }

    /// Starts a new sequence on the arena as it is; coverage goes on.
    pub fn restart(&mut self) {
        self.groups = 0;
        self.start_reservation = None;
    }

    /// Returns whether every [`Op::CleanUp`] so far put everything back.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.clean
    }

    /// [`Op::CleanUp`]: the answer counts what could not be put back.
    fn clean_up<M: Machine + Cpu>(&mut self, machine: &M) -> Answer {
        let mut failed = 0;
        let numbers = (0..=u8::MAX).take(self.arena.len());
        let numbers: Vec<u8> = numbers.filter(|at| !self.is_dead(*at)).collect();
        let mut seen = alloc::vec![self.op(machine, MmuExtOp::new_user_baseptr(None))];
        for number in &numbers {
            seen.push(self.op(machine, MmuExtOp::unpin(self.arena.frame(*number).mfn)));
        }
        for number in &numbers {
            let writable = self.set_direct(machine, *number, PteFlags::KERNEL_RW);
            failed += u64::from(writable != Answer::Done(0));
            seen.push(writable);
        }
        self.freshen(machine);
        for number in &numbers {
            let frame = *self.arena.frame(*number);
            seen.push(self.machphys(machine, frame.mfn, frame.pfn));
            if failed == 0 {
                // SAFETY: the frame belongs to the arena, and was just made writable.
                let zeroed = unsafe { machine.write_bytes(frame.pfn, 0, &[0; PAGE_SIZE]) };
                failed += u64::from(zeroed.is_err());
            }
        }
        self.pinned.fill(None);
        self.user_base = None;
        for answer in seen {
            self.observation.push(answer.word());
        }
        self.clean &= failed == 0;
        Answer::Done(failed)
    }

    /// Keeps track of what must not be lost.
    fn follow(&mut self, op: Op, answer: Answer) {
        use hypercall::commands::ext;
        if let (Op::Ext { command, first, .. }, Answer::Done(_)) = (op, answer) {
            let at = |number: u8, len: usize| usize::from(number) % len;
            let len = self.arena.len();
            match (u32::from(command), first) {
                (ext::PIN_L1_TABLE..=ext::PIN_L4_TABLE, Which::Arena(number)) => {
                    self.pinned[at(number, len)] = Some(command);
                }
                (ext::UNPIN_TABLE, Which::Arena(number)) => self.pinned[at(number, len)] = None,
                (ext::NEW_USER_BASEPTR, Which::Arena(number)) => self.user_base = Some(number),
                (ext::NEW_USER_BASEPTR, _) => self.user_base = None,
                _ => {}
            }
        }
    }

    fn is_held(&self, number: u8) -> bool {
        let at = |number: u8| usize::from(number) % self.arena.len();
        self.pinned[at(number)].is_some() || self.user_base.map(at) == Some(at(number))
    }

    /// Returns the level at which a frame is pinned, from 0.
    fn level(&self, number: u8) -> Option<usize> {
        self.pinned[usize::from(number) % self.arena.len()].map(usize::from)
    }

    fn is_dead(&self, number: u8) -> bool {
        self.dead[usize::from(number) % self.arena.len()]
    }

    /// Returns the frames that a group names, each once, in order; of the whole arena now and then.
    fn touched(&self, group: &[Step]) -> Vec<u8> {
        let mut frames: Vec<u8> = Vec::new();
        if self.groups.is_multiple_of(GROUPS_PER_SWEEP) {
            frames.extend((0..=u8::MAX).take(self.arena.len()));
        } else {
            for step in group {
                for number in step.op.frames().into_iter().flatten() {
                    let number = u8::try_from(usize::from(number) % self.arena.len()).unwrap_or(0);
                    if !frames.contains(&number) {
                        frames.push(number);
                    }
                }
            }
        }
        frames.retain(|number| !self.is_dead(*number));
        frames
    }

    fn observe<M: Machine>(&mut self, machine: &M, group: &[Step]) {
        for number in self.touched(group) {
            let frame = *self.arena.frame(number);
            self.observation.push(0xf000_0000 | u64::from(number));
            let direct = self.read_direct(machine, number);
            // The CPU sets these whenever the page is used.
            let used = PteFlags::ACCESSED.union(PteFlags::DIRTY);
            let direct = direct.with_flags(direct.flags().difference(used));
            self.observation.push(self.arena.normal(direct));
            self.observation.push(self.normal_pfn(machine.machine_to_phys(frame.mfn)));
            for slot in 0..OBSERVED {
                let slot = u8::try_from(slot).unwrap_or(0);
                let entry = machine.read_entry(frame.pfn, index(slot)).unwrap_or(Pte::ABSENT);
                self.observation.push(self.arena.normal(entry));
            }
        }
    }

    fn normal_pfn(&self, pfn: Option<Pfn>) -> u64 {
        let Some(pfn) = pfn else { return u64::MAX };
        let known = self.arena.frames.iter().position(|frame| frame.pfn == pfn);
        known.map_or(pfn.raw(), |at| 0x1_0000_0000 + at as u64)
    }

    /// Operations that are no MMU requests.
    fn alone<M: Machine + Cpu>(&mut self, machine: &M, op: Op) -> Answer {
        let [first, _] = op.frames();
        if first.is_some_and(|number| self.is_dead(number)) {
            return Answer::Skipped;
        }
        match op {
            Op::Store { frame, slot, value } => {
                self.freshen(machine);
                self.store(machine, frame, slot, self.arena.pte(value).raw())
            }
            Op::CompareExchange { frame, slot, expected, value } => {
                self.freshen(machine);
                self.compare_exchange(machine, frame, slot, expected, value)
            }
            Op::Zero { frame } => {
                self.freshen(machine);
                self.zero(machine, frame)
            }
            Op::Exchange { frame, hold } => self.exchange(machine, frame, hold),
            Op::Balloon { frame, hold } => self.balloon(machine, frame, hold),
            Op::CleanUp => self.clean_up(machine),
            Op::Update { .. } | Op::Ext { .. } | Op::VaMapping { .. } => Answer::Skipped,
        }
    }

    fn store<M: Cpu>(&self, machine: &M, frame: u8, slot: u8, value: u64) -> Answer {
        // SAFETY: a word of a frame of the arena; if it is a live table, Xen validates what is
        // stored.
        match unsafe { machine.store(self.arena.va(frame, slot), value) } {
            Ok(()) => Answer::Done(0),
            Err(_) => Answer::Refused(FAULT),
        }
    }

    fn compare_exchange<M: Machine + Cpu>(
        &self,
        machine: &M,
        frame: u8,
        slot: u8,
        expected: Cas,
        value: Value,
    ) -> Answer {
        let there = machine.read_entry(self.arena.frame(frame).pfn, index(slot));
        let there = there.unwrap_or(Pte::ABSENT).raw();
        let expected = if expected == Cas::Current { there } else { there ^ 0x200 };
        let new = self.arena.pte(value).raw();
        // SAFETY: as in `store`.
        match unsafe { machine.compare_exchange(self.arena.va(frame, slot), expected, new) } {
            Ok(seen) => Answer::Done(u64::from(seen == expected)),
            Err(_) => Answer::Refused(FAULT),
        }
    }

    /// Makes the CPU forget what the direct mapping was.
    fn freshen<M: Machine>(&mut self, machine: &M) {
        if self.stale {
            let _ = self.op(machine, MmuExtOp::tlb_flush_local());
            self.stale = false;
        }
    }

    fn op<M: Machine>(&self, machine: &M, op: MmuExtOp) -> Answer {
        let ops = [op];
        issue_one(machine, Request::MmuExt(&ops, DomId::SELF))
    }

    /// Returns what coverage calls the operation.
    fn name(&self, op: Op) -> &'static str {
        match op {
            Op::Update { command: 1, .. } => "update m2p",
            Op::Update { command: 4.., .. } => "update bad-command",
            Op::Update { place: UpdatePlace::Direct(_), .. } => "update direct",
            Op::Update { place: UpdatePlace::Slot(frame, _), command, .. } => {
                match self.level(frame) {
                    Some(_) if command == 2 => "update keep-ad",
                    Some(level) => UPDATES[level],
                    None => "update data",
                }
            }
            Op::Update { .. } => "update other",
            Op::Ext { command, .. } => coverage::ext_name(command),
            Op::VaMapping { place: VaPlace::Direct(_), .. } => "va_mapping",
            Op::VaMapping { .. } => "va_mapping bad",
            Op::Store { frame, .. } | Op::Zero { frame } => match self.level(frame) {
                Some(level) => STORES[level],
                None => "store data",
            },
            Op::CompareExchange { frame, .. } => match self.level(frame) {
                Some(level) => EXCHANGES[level],
                None => "cas data",
            },
            Op::CleanUp => "clean up",
            Op::Exchange { .. } => "exchange",
            Op::Balloon { .. } => "balloon",
        }
    }
}

/// Issues one request.
fn issue_one<M: Machine>(machine: &M, request: Request<'_>) -> Answer {
    let mut calls = [Call::new(request)];
    // SAFETY: every request made in this crate is about frames of the arena, whose direct mapping
    // keeps mapping them.
    let whole = unsafe { machine.issue(&mut calls) };
    match whole.and(calls[0].result()) {
        Ok(()) => Answer::Done(0),
        Err(error) => Answer::Refused(error.errno.raw()),
    }
}

impl Op {
    /// Returns whether the operation is an MMU request, which can travel with others.
    #[must_use]
    pub const fn is_mmu(&self) -> bool {
        matches!(self, Self::Update { .. } | Self::Ext { .. } | Self::VaMapping { .. })
    }

    /// Returns the frames of the arena that the operation names: the one it acts on, and one it
    /// points to.
    pub(crate) const fn frames(&self) -> [Option<u8>; 2] {
        const fn of(which: Which) -> Option<u8> {
            match which {
                Which::Arena(number) => Some(number),
                _ => None,
            }
        }
        match *self {
            Self::Update { place, value, .. } => match place {
                UpdatePlace::Slot(frame, _) | UpdatePlace::Direct(frame) => {
                    [Some(frame), of(value.which)]
                }
                UpdatePlace::OutOfRange | UpdatePlace::XenSlot => [None, of(value.which)],
            },
            Self::Ext { first, second, .. } => [of(first), of(second)],
            Self::VaMapping { place: VaPlace::Direct(frame), .. }
            | Self::Zero { frame }
            | Self::Exchange { frame, .. }
            | Self::Balloon { frame, .. } => [Some(frame), None],
            Self::VaMapping { .. } | Self::CleanUp => [None, None],
            Self::Store { frame, value, .. } | Self::CompareExchange { frame, value, .. } => {
                [Some(frame), of(value.which)]
            }
        }
    }
}
