//! Sources of frames for the operations behind a mapper.

use hypercall::{Frame, FrameSource, Uncertain};

/// Frames, and the number of those in doubt.
pub(super) struct Noting<'f, F> {
    pub(super) frames: &'f mut F,
    pub(super) uncertain: &'f mut u64,
}

impl<F: FrameSource> FrameSource for Noting<'_, F> {
    fn take(&mut self) -> Option<Frame> {
        self.frames.take()
    }

    fn give(&mut self, frame: Frame) {
        self.frames.give(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        *self.uncertain += frames.count();
        self.frames.give_uncertain(frames);
    }
}
