//! Making steps: from chance, and from what the answers say about the state reached.
//!
//! Pure chance rarely builds a tree that Xen takes. So most of what is made here are short recipes
//! (make a table of some level, link it, take it apart) on frames of which the generator believes
//! to know the state, and between them single operations on anything. The beliefs come from
//! answers, which are the same on both machines as long as the machines agree; that is what makes
//! the sequence a function of the seed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hypercall::{Cpu, Machine, VaFlush};

use crate::execute::{Answer, Executor};
use crate::observe::Observation;
use crate::op::{Cas, Hold, Link, Op, Step, UpdatePlace, VaPlace, Value, Which};
use crate::random::Random;

/// Flags of leaf entries: kernel and user, read-only and writable, with and without what Xen adds.
const LEAF_FLAGS: [u64; 16] = [
    0x63,
    0x61,
    0x67,
    0x65,
    0x01,
    0x03,
    0x103,
    0x163,
    0x23,
    0x21,
    0x0010_0000_0000_0067,
    0x0010_0000_0000_0065,
    0x8000_0000_0000_0063,
    0x8000_0000_0000_0061,
    0x8010_0000_0000_0067,
    0xe63,
];

/// Flags of entries that point to tables.
const TABLE_FLAGS: [u64; 6] = [0x67, 0x63, 0x03, 0x01, 0x61, 0x27];

/// Flags that some level refuses, or that are not present.
const ODD_FLAGS: [u64; 14] = [
    0x00,
    0x02,
    0x80,
    0x83,
    0x10,
    0x11,
    0x08,
    0x0b,
    0x19,
    0x9b,
    0x100,
    0x101,
    0x4000_0000_0000_0001,
    0x7ff0_0000_0000_0002,
];

/// Flags of the direct mapping: read-only twice, since that is what tables need.
const DIRECT_FLAGS: [u64; 6] =
    [0x61, 0x8000_0000_0000_0061, 0x63, 0x8000_0000_0000_0063, 0x67, 0x01];

/// After so many steps everything is put back, so that states stay various.
const STEPS_BETWEEN_CLEANINGS: usize = 500;

/// What the generator believes of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Belief {
    /// The level at which it is pinned.
    pinned: Option<u8>,
}

/// Makes steps from a seed.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    beliefs: Vec<Belief>,
    queue: VecDeque<Vec<Step>>,
    steps_since_cleaning: usize,
}

impl Generator {
    /// Creates a generator for an arena of `frames` frames, 1 to 256.
    ///
    /// ```
    /// use prove::Generator;
    ///
    /// let generator = Generator::new(1, 24); // seed 1, 24 frames to play with
    /// # let _ = generator;
    /// ```
    #[must_use]
    pub fn new(seed: u64, frames: usize) -> Self {
        let beliefs = alloc::vec![Belief::default(); frames.clamp(1, 256)];
        Self { random: Random::new(seed), beliefs, queue: VecDeque::new(), steps_since_cleaning: 0 }
    }

    /// Makes a group, applies it and learns from it. `show` gets the group and what was seen.
    pub fn step<M: Machine + Cpu>(
        &mut self,
        machine: &M,
        executor: &mut Executor,
        show: &mut dyn FnMut(&[Step], &Observation),
    ) {
        let group = self.next_group();
        let (answers, observation) = executor.apply_and_tell(machine, &group);
        show(&group, observation);
        for (step, answer) in group.iter().zip(answers) {
            self.learn(step.op, answer);
        }
    }

    /// Returns the step that ends a sequence: everything is put back.
    #[must_use]
    pub fn last(&mut self) -> Vec<Step> {
        self.beliefs.fill(Belief::default());
        self.queue.clear();
        self.steps_since_cleaning = 0;
        alloc::vec![Step { link: Link::Alone, op: Op::CleanUp }]
    }

    fn learn(&mut self, op: Op, answer: Answer) {
        if let (Op::Ext { command, first: Which::Arena(frame), .. }, Answer::Done(_)) = (op, answer)
        {
            let len = self.beliefs.len();
            let belief = &mut self.beliefs[usize::from(frame) % len];
            match command {
                0..=3 => belief.pinned = Some(command + 1),
                4 => belief.pinned = None,
                _ => {}
            }
        }
    }

    fn next_group(&mut self) -> Vec<Step> {
        if self.steps_since_cleaning >= STEPS_BETWEEN_CLEANINGS {
            return self.last();
        }
        let group = self.group_from_queue();
        self.steps_since_cleaning += group.len();
        group
    }

    fn group_from_queue(&mut self) -> Vec<Step> {
        if self.queue.is_empty() {
            self.refill();
        }
        let mut group = self.queue.pop_front().unwrap_or_default();
        // Some groups take the next ones with them.
        while self.random.chance(25) && group.len() < hypercall::CALLS_MAX {
            let Some(next) = self.queue.front() else { break };
            if !next.iter().chain(&group).all(|step| step.op.is_mmu()) {
                break;
            }
            let link = if self.random.chance(50) { Link::SameRequest } else { Link::SameMulticall };
            let next = self.queue.pop_front().unwrap_or_default();
            group.extend(next.into_iter().map(|step| Step { link, ..step }));
            group.truncate(hypercall::CALLS_MAX);
        }
        group
    }

    fn refill(&mut self) {
        match self.random.below(100) {
            0..22 => self.make_table(),
            22..32 => self.take_apart(),
            32..50 => self.edit_table(),
            50..56 => self.long_run(),
            _ => {
                let op = self.any_op();
                self.push(op);
                if self.random.chance(40) {
                    let op = self.any_op();
                    self.push(op);
                }
            }
        }
    }

    fn push(&mut self, op: Op) {
        self.queue.push_back(alloc::vec![Step { link: Link::Alone, op }]);
    }

    fn frame(&mut self) -> u8 {
        u8::try_from(self.random.below(self.beliefs.len())).unwrap_or(0)
    }

    /// Returns a frame believed pinned at `level`, or any.
    fn table(&mut self, level: u8) -> u8 {
        let start = self.random.below(self.beliefs.len());
        let len = self.beliefs.len();
        let found = (0..len)
            .map(|offset| (start + offset) % len)
            .find(|at| self.beliefs[*at].pinned == Some(level));
        u8::try_from(found.unwrap_or(start)).unwrap_or(0)
    }

    /// Returns an index into `SLOTS` that may be written: mostly one that is observed.
    fn slot(&mut self) -> u8 {
        let end = if self.random.chance(95) { crate::arena::OBSERVED } else { crate::SLOTS.len() };
        u8::try_from(self.random.below(end)).unwrap_or(0)
    }

    /// Returns a plausible entry for a table of `level`.
    fn good_value(&mut self, level: u8) -> Value {
        if level <= 1 {
            let which = match self.random.below(40) {
                0 => Which::SharedInfo,
                1 => Which::RunningL1,
                _ => Which::Arena(self.frame()),
            };
            return Value { which, flags: self.random.pick(&LEAF_FLAGS) };
        }
        let which = match self.random.below(30) {
            0 => Which::RunningL1,
            1 => Which::Arena(self.frame()),
            2 => Which::Arena(self.table(level)),
            _ => Which::Arena(self.table(level - 1)),
        };
        Value { which, flags: self.random.pick(&TABLE_FLAGS) }
    }

    fn any_value(&mut self) -> Value {
        let which = match self.random.below(12) {
            0 => Which::Zero,
            1 => Which::Invalid,
            2 => Which::OutOfRange,
            3 => Which::SharedInfo,
            4 => Which::RunningRoot,
            5 => Which::RunningL1,
            _ => Which::Arena(self.frame()),
        };
        let flags = match self.random.below(4) {
            0 => self.random.pick(&ODD_FLAGS),
            1 => self.random.pick(&TABLE_FLAGS),
            _ => self.random.pick(&LEAF_FLAGS),
        };
        // Mapping low I/O memory is the machine's affair: a guest that may do so gets what the
        // machine has there.
        let which = if which == Which::Zero && flags & 1 != 0 { Which::Invalid } else { which };
        Value { which, flags }
    }

    fn direct(&mut self, frame: u8, flags: u64) {
        let value = Value { which: Which::Arena(frame), flags };
        if self.random.chance(15) {
            let flush = self.random.pick(&[VaFlush::None, VaFlush::PageLocal, VaFlush::TlbAll]);
            self.push(Op::VaMapping { place: VaPlace::Direct(frame), flags, flush });
        } else {
            self.push(Op::Update { command: 0, place: UpdatePlace::Direct(frame), value });
        }
    }

    /// Writable, cleared, filled, read-only, pinned.
    fn make_table(&mut self) {
        let frame = self.frame();
        let level = match self.random.below(10) {
            0..5 => 1,
            5..8 => 2,
            8 => 3,
            _ => 4,
        };
        self.direct(frame, 0x63);
        self.push(Op::Zero { frame });
        for _ in 0..self.random.below(5) {
            let value =
                if self.random.chance(92) { self.good_value(level) } else { self.any_value() };
            let slot = self.slot();
            self.push(Op::Store { frame, slot, value });
        }
        if self.random.chance(95) {
            self.direct(frame, 0x61);
        }
        let level = if self.random.chance(96) { level } else { 1 + self.below_u8(4) };
        self.push(Op::Ext { command: level - 1, first: Which::Arena(frame), second: Which::Zero });
    }

    fn take_apart(&mut self) {
        let level = 1 + self.below_u8(4);
        let frame = self.table(level);
        self.push(Op::Ext { command: 4, first: Which::Arena(frame), second: Which::Zero });
        if self.random.chance(60) {
            self.direct(frame, 0x63);
        }
    }

    /// Updates of a table believed pinned, by every way there is.
    fn edit_table(&mut self) {
        let level = 1 + self.below_u8(4);
        let frame = self.table(level);
        for _ in 0..1 + self.random.below(6) {
            let slot = self.slot();
            let value = match self.random.below(10) {
                0 => self.any_value(),
                1 => Value { which: Which::Zero, flags: 0 },
                _ => self.good_value(level),
            };
            let place = UpdatePlace::Slot(frame, slot);
            let op = match self.random.below(20) {
                0 => Op::Store { frame, slot, value },
                1 => Op::CompareExchange { frame, slot, expected: Cas::Current, value },
                2 => Op::CompareExchange { frame, slot, expected: Cas::Other, value },
                3 | 4 => Op::Update { command: 2, place, value },
                5 => Op::Update { command: 3, place, value },
                _ => Op::Update { command: 0, place, value },
            };
            self.push(op);
        }
    }

    /// One request of many elements, often with a bad one in the middle.
    fn long_run(&mut self) {
        let level = 1 + self.below_u8(2);
        let frame = self.table(level);
        let group = (0..2 + self.random.below(14))
            .map(|at| {
                let link = if at == 0 { Link::Alone } else { Link::SameRequest };
                let place = UpdatePlace::Slot(frame, self.slot());
                let good = self.random.chance(90);
                let value = if good { self.good_value(level) } else { self.any_value() };
                Step { link, op: Op::Update { command: 0, place, value } }
            })
            .collect();
        self.queue.push_back(group);
    }

    fn below_u8(&mut self, end: u8) -> u8 {
        u8::try_from(self.random.below(usize::from(end))).unwrap_or(0)
    }

    fn any_which(&mut self) -> Which {
        match self.any_value().which {
            Which::Zero => Which::Arena(self.frame()),
            which => which,
        }
    }

    fn any_op(&mut self) -> Op {
        let frame = self.frame();
        let slot = self.slot();
        match self.random.below(100) {
            0..25 => {
                let command = if self.random.chance(85) { 0 } else { self.below_u8(8) };
                let place = match self.random.below(20) {
                    0 => UpdatePlace::OutOfRange,
                    1 => UpdatePlace::XenSlot,
                    _ => UpdatePlace::Slot(frame, slot),
                };
                Op::Update { command, place, value: self.any_value() }
            }
            25..45 => {
                let value =
                    Value { which: Which::Arena(frame), flags: self.random.pick(&DIRECT_FLAGS) };
                Op::Update { command: 0, place: UpdatePlace::Direct(frame), value }
            }
            45..50 => self.any_va_mapping(frame),
            50..60 => Op::Store { frame, slot, value: self.any_value() },
            60..64 => {
                let expected = if self.random.chance(70) { Cas::Current } else { Cas::Other };
                Op::CompareExchange { frame, slot, expected, value: self.any_value() }
            }
            64..68 => Op::Zero { frame },
            68..72 => Op::Update {
                command: 1,
                place: UpdatePlace::Slot(frame, 0),
                value: self.any_value(),
            },
            72..75 => Op::Exchange { frame, hold: self.any_hold() },
            75..78 => Op::Balloon { frame, hold: self.any_hold() },
            _ => self.any_ext(),
        }
    }

    fn any_hold(&mut self) -> Hold {
        if self.random.chance(70) { Hold::Released } else { Hold::Mapped }
    }

    fn any_va_mapping(&mut self, frame: u8) -> Op {
        let place = match self.random.below(10) {
            0 => VaPlace::Hole,
            1 => VaPlace::Nowhere,
            _ => VaPlace::Direct(frame),
        };
        let flushes = [
            VaFlush::None,
            VaFlush::PageLocal,
            VaFlush::PageAll,
            VaFlush::TlbLocal,
            VaFlush::TlbAll,
        ];
        let flags = self.random.pick(&DIRECT_FLAGS);
        Op::VaMapping { place, flags, flush: self.random.pick(&flushes) }
    }

    fn any_ext(&mut self) -> Op {
        let (first, second) = (self.any_which(), self.any_which());
        let command = match self.random.below(20) {
            0..5 => self.below_u8(4),
            5..9 => 4,
            9 => 5,
            10..13 => 15,
            13 => 16,
            14 => 17,
            15 => self.random.pick(&[6, 10]),
            _ => self.below_u8(24),
        };
        let level4 = Which::Arena(self.table(4));
        match command {
            15 if self.random.chance(60) => Op::Ext { command, first: level4, second },
            15 if self.random.chance(50) => Op::Ext { command, first: Which::Zero, second },
            // Addresses are frames here, which is as good as any.
            7 | 11 => Op::Ext { command, first: Which::Zero, second },
            _ => Op::Ext { command, first, second },
        }
    }
}
