//! What a step works with: the guest around it, its allocator, and memory for its requests.

use hypercall::{Batch, BatchStorage, Extent, Frame, Pfn};
use p2m::P2m;

use crate::step::Obstacle;

/// The guest around a step.
#[derive(Debug)]
pub struct Around<'a, M, D> {
    /// The machine.
    pub machine: &'a M,
    /// The frame map.
    pub p2m: &'a P2m<'a>,
    /// Whoever knows where the direct mapping of a pfn has its entry (`p2m::FindDirect`).
    pub direct: &'a mut D,
}

/// The guest's allocator, as the balloon sees it.
pub trait Allocator {
    /// A frame that the guest can spare, if it has one: memory of its own, mapped by the direct
    /// mapping alone, and writable. What is in it is lost, even if it comes back.
    ///
    /// Frames whose entries lie in one table, so whose pfns are near each other, are the cheapest.
    fn take(&mut self) -> Option<Frame>;

    /// Takes a frame: new memory, or one that Xen would not have. It is in the direct mapping,
    /// writable, and holds anything, such as what another domain left in it.
    fn give(&mut self, frame: Frame);
}

/// Memory for the requests of a step, from the caller: its size bounds what a step does, and so how
/// long it takes.
#[derive(Debug)]
pub struct Work<'w, 'b> {
    /// One update for each frame, and one extended operation.
    pub batch: &'w mut Batch<'b>,
    /// One word for each frame.
    pub extents: &'w mut [Extent],
    /// One for each frame.
    pub pfns: &'w mut [Pfn],
    /// The most frames that go out in a step.
    pub out_max: usize,
    /// The most frames that come in one by one in a step. They cost Xen more than those of 2 MiB
    /// extents, for which there should be room (512 of everything).
    pub in_max: usize,
}

impl Work<'_, '_> {
    /// How many frames a step can move in 2 MiB extents.
    #[must_use]
    pub fn frames_max(&self) -> usize {
        self.batch.updates_max().min(self.extents.len()).min(self.pfns.len())
    }

    /// What is in the way if there is too little of this.
    pub(crate) fn no_room(&self) -> Obstacle {
        Obstacle::NoRoom { frames: self.frames_max(), flushes: self.batch.ops_max() }
    }
}

/// Memory for steps of up to `FRAMES` frames, 40 bytes for each. Out go a sixteenth fewer, and
/// single ones come in two fifteenths fewer, so that each kind of step takes about as long.
///
/// With 512 a step is two traps and about a million instructions, Xen's included, and a GiB takes
/// fewer than 1,100 traps (docs/performance.md).
#[derive(Debug)]
pub struct WorkStorage<const FRAMES: usize> {
    batch: BatchStorage<FRAMES, 1>,
    extents: [Extent; FRAMES],
    pfns: [Pfn; FRAMES],
}

impl<const FRAMES: usize> WorkStorage<FRAMES> {
    /// Fresh storage.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            batch: BatchStorage::new(),
            extents: [Extent::from_pfn(Pfn::new(0)); FRAMES],
            pfns: [Pfn::new(0); FRAMES],
        }
    }

    /// Lets `step` work in this storage.
    ///
    /// ```
    /// # use pv_tests::guest::Guest;
    /// use balloon::{Around, Balloon, Moved, Wipe, WorkStorage};
    ///
    /// let mut guest = Guest::new(); // 4096 pages
    /// let mut words = [0; 64];
    /// let about = (guest.model, guest.p2m);
    /// let (mut balloon, _) = Balloon::new(about, &mut words, 512, Wipe::Never)?;
    /// balloon.set_target(4000);
    /// let mut direct = guest.direct();
    /// let mut around = Around { machine: guest.model, p2m: guest.p2m, direct: &mut direct };
    /// let mut storage = WorkStorage::<32>::new(); // a step moves 32 frames at most
    /// let step = storage.with(|work| balloon.step(&mut around, &mut guest.frames, work));
    /// assert!(matches!(step.moved, Moved::Out(1..=32)));
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn with<T>(&mut self, step: impl FnOnce(&mut Work<'_, '_>) -> T) -> T {
        let mut batch = self.batch.batch();
        let Self { extents, pfns, .. } = self;
        let (out_max, in_max) = (FRAMES - FRAMES / 16, FRAMES - FRAMES * 2 / 15);
        step(&mut Work { batch: &mut batch, extents, pfns, out_max, in_max })
    }
}

impl<const FRAMES: usize> Default for WorkStorage<FRAMES> {
    fn default() -> Self {
        Self::new()
    }
}
