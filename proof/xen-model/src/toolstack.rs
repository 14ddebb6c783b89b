//! What others do to a guest's memory while it runs: a toolstack that moves its limit, domains that
//! take what Xen has free. Not the guest's hypercalls, so not on the seam.

use crate::model::{Model, Vcpu};
use crate::state::State;

impl State {
    /// Sees to it that Xen has `frames` frames free, or as many as others have taken.
    fn leave_free(&mut self, frames: u64) {
        while self.heap.len() > frames {
            let Some(frame) = self.heap.allocate(0, u64::MAX) else { return };
            self.hoard.push(frame);
        }
        while self.heap.len() < frames {
            let Some(frame) = self.hoard.pop() else { return };
            self.heap.free(frame);
        }
    }
}

impl Model {
    /// Returns how many frames Xen has free.
    #[must_use]
    pub fn free_frames(&self) -> u64 {
        self.state().heap.len()
    }

    /// Other domains take all that Xen has free but `frames` frames, or give back what they took
    /// until it has so many.
    pub fn leave_free(&self, frames: u64) {
        self.state_mut().leave_free(frames);
    }
}

impl Vcpu<'_> {
    /// A toolstack sets the most pages that the domain may have (`XEN_DOMCTL_max_mem`): as in Xen,
    /// it may be fewer than it has.
    pub fn set_maximum(&self, pages: u64) {
        let id = self.domain();
        if let Some(domain) = self.run().find_mut(id) {
            domain.max_pages = pages;
        }
    }
}
