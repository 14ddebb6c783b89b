//! What the operations behind a mapper take frames from and give them to.

use hypercall::{DomId, Frame, FrameSource, Mfn, Uncertain};

use crate::frames::{Ours, Shares, SpaceFrames};

/// Frames, and how many of them are in doubt.
pub(super) struct Noting<'f, F> {
    pub(super) frames: &'f mut F,
    pub(super) uncertain: &'f mut u64,
}

impl<F: SpaceFrames> FrameSource for Noting<'_, F> {
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

impl<F: SpaceFrames> SpaceFrames for Noting<'_, F> {
    fn take_table(&mut self) -> Option<Frame> {
        self.frames.take_table()
    }

    fn give_foreign(&mut self, mfn: Mfn) {
        self.frames.give_foreign(mfn);
    }

    fn domain_of(&self, mfn: Mfn) -> DomId {
        self.frames.domain_of(mfn)
    }

    fn shares(&mut self, ours: Ours) -> Option<Shares<'_>> {
        self.frames.shares(ours)
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

impl SpaceFrames for One {}

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

impl SpaceFrames for Nothing {}
