//! The frames of the bench: some for tables, and many for pages.
#![expect(unsafe_code, reason = "claims frames of a run again that nothing else uses")]

use alloc::vec::Vec;
use p2m::Guest;
use pvmmu::Tools;

use hypercall::{Cpu, Frame, FrameSource, Frames, Machine, Pfn};

use crate::program::Kernel;

/// Frames for tables: the lowest ones.
const NEAR_FRAMES: usize = 4096;

/// Two stacks, told apart by number.
#[derive(Default)]
pub(super) struct Memory {
    /// Frames for tables.
    pub(super) near: Stack,
    /// Frames for pages.
    pub(super) far: Stack,
    far_start: Option<Pfn>,
}

/// Free frames.
#[derive(Default)]
pub(super) struct Stack(Vec<Frame>);

impl FrameSource for Stack {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        self.0.pop()
    }

    #[inline]
    fn give(&mut self, frame: Frame) {
        self.0.push(frame);
    }
}

impl Memory {
    /// All frames of the guest, which has none then.
    pub(super) fn of<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Self {
        let mut far = Vec::with_capacity(kernel.pool.len());
        far.extend(core::iter::from_fn(|| FrameSource::take(&mut kernel.pool)));
        far.reverse();
        let mut near = far.split_off(far.len().saturating_sub(NEAR_FRAMES));
        near.shrink_to_fit();
        let far_start = far.last().map(Frame::pfn);
        Self { near: Stack(near), far: Stack(far), far_start }
    }

    /// What operations on an address space work with: tables apart from pages.
    pub(super) fn tools<'a, 't, M>(&'a mut self, guest: Guest<'a, M>) -> Tools<'a, 't, M, Stack> {
        Tools::new(guest, &mut self.far).with_table_frames(&mut self.near)
    }

    /// A run of frames that are good for pages alone.
    pub(super) fn take_run(&mut self, count: usize) -> Option<Frames> {
        run_of(&mut self.far.0, count)
    }

    /// A run of frames for tables.
    pub(super) fn take_near_run(&mut self, count: usize) -> Option<Frames> {
        run_of(&mut self.near.0, count)
    }

    /// Takes back a run of frames for tables.
    pub(super) fn give_near_run(&mut self, mut run: Frames) {
        let start = self.near.0.len();
        self.near.0.extend(core::iter::from_fn(|| run.take()));
        self.near.0[start..].reverse();
    }

    /// Takes back a run.
    pub(super) fn give_run(&mut self, mut run: Frames) {
        let start = self.far.0.len();
        self.far.0.extend(core::iter::from_fn(|| run.take()));
        self.far.0[start..].reverse();
    }

    /// Puts the frames in order again: those on top follow one another, if all are back.
    pub(super) fn tidy(&mut self) {
        for stack in [&mut self.near, &mut self.far] {
            stack.0.sort_unstable_by_key(|frame| core::cmp::Reverse(frame.pfn()));
        }
    }

    /// How many frames are free.
    pub(super) fn len(&self) -> usize {
        self.near.0.len() + self.far.0.len()
    }

    /// How many of them are good for pages alone.
    pub(super) fn far(&self) -> usize {
        self.far.0.len()
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

impl FrameSource for Memory {
    fn take(&mut self) -> Option<Frame> {
        self.far.take()
    }

    fn give(&mut self, frame: Frame) {
        if self.far_start.is_none_or(|start| frame.pfn() < start) {
            self.near.give(frame);
        } else {
            self.far.give(frame);
        }
    }
}

/// A source that hands out the same few frames for pages again and again: Xen counts one more
/// reference whether the frame has others or not, so tables can be full however little memory there
/// is. For loose trees with read-only pages.
pub(super) struct Again {
    first: Pfn,
    count: u64,
    next: u64,
}

impl Again {
    /// The frames of `page_frames`.
    pub(super) const fn new(page_frames: &Frames) -> Self {
        Self { first: page_frames.start(), count: page_frames.count(), next: 0 }
    }
}

impl FrameSource for Again {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        let pfn = Pfn::new(self.first.raw() + self.next);
        self.next = (self.next + 1) % self.count;
        // SAFETY: the run is held by whoever made this and used for nothing else; what is mapped
        // again and again is read-only, and nothing is ever read from it.
        Some(unsafe { Frame::claim(pfn) })
    }

    /// The run has it still.
    #[inline]
    fn give(&mut self, _: Frame) {}
}
