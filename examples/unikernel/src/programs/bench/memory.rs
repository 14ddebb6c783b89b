//! The frames of the bench: some for tables, and many for pages.
#![expect(unsafe_code, reason = "claims frames of a run again that nothing else uses")]

use alloc::vec::Vec;
use pvmmu::SpaceFrames;

use hypercall::{Cpu, Frame, FrameSource, Frames, Machine, Pfn};

use crate::program::Kernel;

/// Frames for tables: the lowest ones.
const NEAR_FRAMES: usize = 4096;

/// Two stacks, told apart by number.
pub(super) struct Memory {
    near: Vec<Frame>,
    far: Vec<Frame>,
    far_start: Pfn,
}

impl Memory {
    /// All frames of the guest, which has none then.
    pub(super) fn of<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Self {
        let mut far = Vec::with_capacity(kernel.pool.len());
        far.extend(core::iter::from_fn(|| FrameSource::take(&mut kernel.pool)));
        far.reverse();
        let mut near = far.split_off(far.len().saturating_sub(NEAR_FRAMES));
        near.shrink_to_fit();
        let far_start = far.last().map_or(Pfn::new(u64::MAX), Frame::pfn);
        Self { near, far, far_start }
    }

    /// A run of frames that are good for pages alone.
    pub(super) fn take_run(&mut self, count: usize) -> Option<Frames> {
        run_of(&mut self.far, count)
    }

    /// A run of frames for tables.
    pub(super) fn take_near_run(&mut self, count: usize) -> Option<Frames> {
        run_of(&mut self.near, count)
    }

    /// Takes back a run of frames for tables.
    pub(super) fn give_near_run(&mut self, mut run: Frames) {
        let start = self.near.len();
        self.near.extend(core::iter::from_fn(|| run.take()));
        self.near[start..].reverse();
    }

    /// Takes back a run.
    pub(super) fn give_run(&mut self, mut run: Frames) {
        let start = self.far.len();
        self.far.extend(core::iter::from_fn(|| run.take()));
        self.far[start..].reverse();
    }

    /// Puts the frames in order again: those on top follow one another, if all are back.
    pub(super) fn tidy(&mut self) {
        for stack in [&mut self.near, &mut self.far] {
            stack.sort_unstable_by_key(|frame| core::cmp::Reverse(frame.pfn()));
        }
    }

    /// How many frames are free.
    pub(super) fn len(&self) -> usize {
        self.near.len() + self.far.len()
    }

    /// How many of them are good for pages alone.
    pub(super) fn far(&self) -> usize {
        self.far.len()
    }
}

impl Default for Memory {
    /// No frames.
    fn default() -> Self {
        Self { near: Vec::new(), far: Vec::new(), far_start: Pfn::new(u64::MAX) }
    }
}

/// The frames on top of a stack, if they follow one another.
fn run_of(stack: &mut Vec<Frame>, count: usize) -> Option<Frames> {
    let first = stack.last()?.pfn();
    let run = stack.split_off(stack.len().checked_sub(count)?);
    let follows = |(at, frame): (u64, &Frame)| frame.pfn().offset_from(first) == Some(at);
    if !(0..).zip(run.iter().rev()).all(follows) {
        stack.extend(run);
        return None;
    }
    // SAFETY: the frames have just left the stack (I-1).
    Some(unsafe { Frames::claim(first, count as u64) })
}

/// The frames for tables alone.
pub(super) struct Near<'m>(pub(super) &'m mut Memory);

impl FrameSource for Near<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.0.near.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.0.give(frame);
    }
}

impl FrameSource for Memory {
    fn take(&mut self) -> Option<Frame> {
        self.far.pop()
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn() < self.far_start {
            self.near.push(frame);
        } else {
            self.far.push(frame);
        }
    }
}

impl SpaceFrames for Memory {
    fn take_table(&mut self) -> Option<Frame> {
        self.near.pop()
    }
}

/// A source that hands out the same few frames for pages again and again: Xen counts one more
/// reference whether the frame has others or not, so tables can be full however little memory there
/// is. For loose trees with read-only pages.
pub(super) struct Again<'m> {
    memory: &'m mut Memory,
    first: Pfn,
    count: u64,
    next: u64,
}

impl<'m> Again<'m> {
    /// The frames of `page_frames`, and tables from `memory`.
    pub(super) fn new(memory: &'m mut Memory, page_frames: &Frames) -> Self {
        Self { memory, first: page_frames.start(), count: page_frames.count(), next: 0 }
    }
}

impl FrameSource for Again<'_> {
    fn take(&mut self) -> Option<Frame> {
        let pfn = Pfn::new(self.first.raw() + self.next);
        self.next = (self.next + 1) % self.count;
        // SAFETY: the run is held by whoever made this and used for nothing else; what is mapped
        // again and again is read-only, and nothing is ever read from it.
        Some(unsafe { Frame::claim(pfn) })
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn().offset_from(self.first).is_none_or(|at| at >= self.count) {
            self.memory.give(frame);
        }
    }
}

impl SpaceFrames for Again<'_> {
    fn take_table(&mut self) -> Option<Frame> {
        self.memory.take_table()
    }
}
