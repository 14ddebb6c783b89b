//! The frames of the bench: few that the direct mapping reaches, for tables, and many that it does
//! not, for pages.

use alloc::vec::Vec;

use hypercall::{Cpu, Frame, Machine, Pfn};
use pvmmu::FrameSource;

use crate::guest::Guest;

/// Two stacks, told apart by where the direct mapping ends.
pub(super) struct Memory {
    near: Vec<Frame>,
    far: Vec<Frame>,
    far_start: Pfn,
}

impl Memory {
    /// All frames of the guest, which has none then.
    pub(super) fn of<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Self {
        let mut near: Vec<_> = core::iter::from_fn(|| guest.pool.take()).collect();
        near.reverse();
        let mut far = Vec::new();
        let mut far_start = Pfn::new(u64::MAX);
        if let Some(mut frames) = guest.far.take() {
            far_start = frames.start();
            far = Vec::with_capacity(usize::try_from(frames.count()).unwrap_or(0));
            far.extend(core::iter::from_fn(|| frames.take()));
            far.reverse();
        }
        Self { near, far, far_start }
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

impl FrameSource for Memory {
    fn take(&mut self) -> Option<Frame> {
        self.far.pop()
    }

    fn take_table(&mut self) -> Option<Frame> {
        self.near.pop()
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn() < self.far_start {
            self.near.push(frame);
        } else {
            self.far.push(frame);
        }
    }
}
