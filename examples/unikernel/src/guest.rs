//! What a program has to work with.

use core::fmt;

use alloc::vec::Vec;

use hypercall::{BootInfo, Counting, Frame, Frames, GuestVa, Machine, Pfn};
use p2m::P2m;
use pvmmu::{Context, FrameSource};

/// The CPU as a program sees it: loads and stores that may fault, and a clock.
pub(crate) trait Cpu {
    /// Reads a word, unless that faults.
    fn load(&self, va: GuestVa) -> Option<u64>;

    /// Writes a word into memory that the running address space maps; false if that faults.
    fn store(&self, va: GuestVa, value: u64) -> bool;

    /// The time-stamp counter.
    fn ticks(&self) -> u64;
}

/// The guest a program runs in.
pub(crate) struct Guest<'a, M> {
    /// The machine, counting what is asked of Xen.
    pub(crate) machine: Counting<&'a M>,
    /// The CPU.
    pub(crate) cpu: &'a dyn Cpu,
    /// What the builder said.
    pub(crate) boot: BootInfo,
    /// Its frame map.
    pub(crate) p2m: P2m<'a>,
    /// The root it booted on.
    pub(crate) kernel_root: Pfn,
    /// Frames free to use, all in the direct mapping.
    pub(crate) pool: Pool,
    /// Frames free to use that the direct mapping does not reach: good for pages, not for tables.
    pub(crate) far: Option<Frames>,
    /// Where it prints.
    pub(crate) console: &'a mut dyn fmt::Write,
}

impl<M: Machine> Guest<'_, M> {
    /// The context of address space operations, and the pool beside it.
    pub(crate) fn parts(&mut self) -> (Context<'_, Counting<&M>>, &mut Pool) {
        let Self { machine, p2m, kernel_root, pool, .. } = self;
        (Context { machine, p2m, kernel_root: *kernel_root }, pool)
    }
}

/// Free frames, on the heap.
pub(crate) struct Pool {
    frames: Vec<Frame>,
}

impl Pool {
    /// All of `frames`.
    pub(crate) fn new(mut frames: Frames) -> Self {
        let mut all: Vec<_> = core::iter::from_fn(|| frames.take()).collect();
        all.reverse();
        Self { frames: all }
    }

    /// How many are free.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

impl FrameSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.frames.push(frame);
    }
}
