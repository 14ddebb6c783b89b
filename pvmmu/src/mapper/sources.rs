//! What the operations behind a mapper take frames from and give them to.

use hypercall::{Frame, FrameSource, Uncertain};

/// Frames, and how many of them are in doubt.
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

/// No frames; takes one back.
pub(super) struct One(pub(super) Option<Frame>);

impl FrameSource for One {
    fn take(&mut self) -> Option<Frame> {
        None
    }

    fn give(&mut self, frame: Frame) {
        self.0 = Some(frame);
    }
}

/// No frames.
pub(super) struct Nothing;

impl FrameSource for Nothing {
    fn take(&mut self) -> Option<Frame> {
        None
    }

    fn give(&mut self, frame: Frame) {
        log::error!("{frame:?} came back from an operation that frees none: it is lost");
    }
}
