//! Making operations at random, so that enough of them succeed.

use hypercall::{EmulatedWrites, Machine};

use crate::arena::{Arena, Garbage};
use crate::coverage::{Answer, Coverage};
use crate::op::{Kind, Op};
use crate::record::Record;
use crate::trusted::Trusted;

/// How often each kind comes, out of the sum.
const WEIGHTS: [(Kind, u64); 25] = [
    (Kind::Direct, 220),
    (Kind::DirectVa, 30),
    (Kind::Write, 60),
    (Kind::Set, 300),
    (Kind::SetKeep, 20),
    (Kind::SetOdd, 10),
    (Kind::Batch, 60),
    (Kind::Calls, 20),
    (Kind::Pin, 160),
    (Kind::Unpin, 50),
    (Kind::PinBatch, 40),
    (Kind::UserRoot, 12),
    (Kind::BadRoot, 4),
    (Kind::Clear, 12),
    (Kind::Copy, 12),
    (Kind::Odd, 8),
    (Kind::MachPhys, 8),
    (Kind::Exchange, 4),
    (Kind::ExchangeUsed, 4),
    (Kind::Balloon, 4),
    (Kind::BalloonUsed, 4),
    (Kind::Store, 40),
    (Kind::CompareExchange, 20),
    (Kind::Assist, 1),
    (Kind::Reset, 45),
];

/// Slots that are used. Few, so that operations meet; slot 0 is not among them.
const SLOTS: [u16; 10] = [1, 2, 3, 7, 255, 256, 258, 272, 300, 511];

/// All slots that an operation may write: [`SLOTS`], and the two behind each that a batch takes
/// along.
pub(crate) const SLOTS_USED: [u16; 22] =
    [1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 258, 259, 260, 272, 273, 274, 300, 301, 302, 511, 6];

/// Flags that make good entries.
const GOOD_FLAGS: [u64; 6] = [0x1, 0x3, 0x63, 0x67, 0x8000_0000_0000_0063, 0x0010_0000_0000_0067];

/// A source of operations, and the record of what became of them.
#[derive(Debug)]
pub struct Prover<'a> {
    pub(crate) arena: Arena<'a>,
    pub(crate) record: Record,
    pub(crate) coverage: Coverage,
    state: u64,
    steps: u64,
}

/// An operation carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its number, from 0.
    pub number: u64,
    /// The operation.
    pub op: Op,
    /// What it was answered.
    pub answer: Answer,
    /// What was seen of it alone: answer, counts, entries read back.
    pub seen: Record,
}

impl<'a> Prover<'a> {
    /// Will work on `arena` by `seed`.
    ///
    /// An arena that has no frame, or more than [`FRAMES_MAX`](crate::FRAMES_MAX), is cut: without
    /// frames every operation is skipped.
    #[must_use]
    pub fn new(seed: u64, arena: Arena<'a>) -> Self {
        let Arena { frames, foreign, garbage } = arena;
        let count = frames.len().min(crate::FRAMES_MAX);
        let arena = Arena { frames: &mut frames[..count], foreign, garbage };
        Self { arena, record: Record::new(), coverage: Coverage::new(), state: seed, steps: 0 }
    }

    /// Everything seen so far.
    #[must_use]
    pub const fn record(&self) -> Record {
        self.record
    }

    /// How often which operation was answered how.
    #[must_use]
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Operations carried out.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Makes an operation and carries it out.
    ///
    /// # Safety
    /// The frames of the arena are nobody else's, and are mapped as
    /// [`ArenaFrame`](crate::ArenaFrame) says.
    #[expect(unsafe_code, reason = "changes page tables")]
    pub unsafe fn step<M>(&mut self, machine: &M) -> Step
    where
        M: Machine + EmulatedWrites,
    {
        let op = self.next_op();
        // SAFETY: the caller's promise is handed on.
        unsafe { self.replay(machine, op) }
    }

    /// Carries out a given operation.
    ///
    /// # Safety
    /// As for [`step`](Self::step).
    #[expect(unsafe_code, reason = "changes page tables")]
    pub unsafe fn replay<M>(&mut self, machine: &M, op: Op) -> Step
    where
        M: Machine + EmulatedWrites,
    {
        let mut seen = Record::new();
        let answer = if self.arena.frames.is_empty() {
            Answer::Skipped
        } else {
            // SAFETY: the caller's promise is handed on.
            let machine = unsafe { Trusted::new(machine) };
            self.apply(&machine, op, &mut seen)
        };
        seen.add(answer.code());
        self.record.add(seen.value());
        self.coverage.count(op.kind, answer);
        let number = self.steps;
        self.steps += 1;
        Step { number, op, answer, seen }
    }

    const fn random(&mut self) -> u64 {
        // splitmix64
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.random() % bound }
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let last = choices.len() as u64;
        choices[usize::try_from(self.below(last)).unwrap_or(0)]
    }

    /// A place of the arena.
    fn place(&mut self) -> u8 {
        let frames = self.arena.frames.len().max(1) as u64;
        u8::try_from(self.below(frames)).unwrap_or(0)
    }

    /// The level that a frame is mostly used at: 0 for data.
    const fn habit(place: u8) -> u8 {
        match place % 8 {
            0..=2 => 1,
            3 | 4 => 2,
            5 => 3,
            6 => 4,
            _ => 0,
        }
    }

    /// A frame whose habit is `level`.
    fn place_of(&mut self, level: u8) -> u8 {
        for _ in 0..32 {
            let place = self.place();
            if Self::habit(place) == level {
                return place;
            }
        }
        self.place()
    }

    /// What a slot of `a` is to lead to: mostly what fits there.
    fn target_for(&mut self, a: u8) -> u8 {
        match self.below(64) {
            0 => 255,
            1 => [254, 253][usize::from(self.below(2) == 0)],
            2..6 => self.place(),
            6 => a,
            _ => match Self::habit(a) {
                0 | 1 => self.place_of(0),
                level => self.place_of(level - 1),
            },
        }
    }

    fn flags(&mut self) -> u64 {
        match self.below(64) {
            0..16 => 0,
            16 => 1 << self.below(12) | 1,
            17 => 1 << (52 + self.below(12)) | 3,
            18..20 => self.random() & !1,
            20 => 1 | self.random() & 0xfff0_0000_0000_0fff,
            _ => self.one_of(&GOOD_FLAGS),
        }
    }

    /// The next operation of the sequence.
    pub fn next_op(&mut self) -> Op {
        let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.below(total);
        let kind = WEIGHTS.iter().find_map(|(kind, weight)| {
            if at < *weight {
                return Some(*kind);
            }
            at -= weight;
            None
        });
        let kind = kind.unwrap_or(Kind::Set);
        let mut op = Op { kind, a: self.place(), b: self.place(), index: 0, flags: 0 };
        match kind {
            Kind::Direct | Kind::DirectVa => {
                let (usual, other) = match Self::habit(op.a) {
                    0 => (0x8000_0000_0000_0063, 0x8000_0000_0000_0061),
                    _ => (0x8000_0000_0000_0061, 0x8000_0000_0000_0063),
                };
                op.flags = match self.below(32) {
                    0 => 0,
                    1..3 => other,
                    3 => self.flags(),
                    _ => usual,
                };
            }
            Kind::Pin | Kind::PinBatch => {
                let habit = Self::habit(if kind == Kind::Pin { op.a } else { op.b });
                let any = 1 + self.below(4);
                let level = if habit == 0 || self.below(12) == 0 { any } else { u64::from(habit) };
                op.index = u16::try_from(level).unwrap_or(1);
            }
            Kind::UserRoot => {
                op.a = self.place_of(4);
                op.index = u16::try_from(self.below(3)).unwrap_or(0);
            }
            Kind::Odd | Kind::SetOdd => {
                op.index = u16::try_from(self.below(64)).unwrap_or(0);
                op.b = self.target_for(op.a);
                op.flags = self.flags();
            }
            Kind::Store => {
                op.a = self.place_of(1);
                op.b = self.target_for(op.a);
                // The width is in the bits above those of the slot.
                let width = u16::try_from(self.below(8)).unwrap_or(0);
                op.index = self.one_of(&SLOTS) | width << 9;
                op.flags = self.flags();
            }
            _ => {
                op.b = self.target_for(op.a);
                op.index = self.one_of(&SLOTS);
                op.flags = self.flags();
            }
        }
        if self.arena.garbage == Garbage::NoAddress && op.flags & 1 == 0 {
            op.flags = 0;
        }
        op
    }
}
