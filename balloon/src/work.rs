//! Memory for the requests of a step.

use hypercall::memory::Extent;
use hypercall::{Batch, BatchStorage, Pfn};

use crate::step::BalloonObstacle;

/// Memory for the requests of a step. Its size bounds the work of a step, and so its duration.
#[derive(Debug)]
pub struct StepMemory<'w, 'b> {
    /// One update for each frame, and one extended operation.
    pub batch: &'w mut Batch<'b>,
    /// One word for each frame.
    pub extents: &'w mut [Extent],
    /// One for each frame.
    pub pfns: &'w mut [Pfn],
    /// The most frames that leave in a step.
    pub out_max: usize,
    /// The most single frames that arrive in a step. They cost Xen more than frames in 2 MiB
    /// extents, which need room for 512 of everything.
    pub in_max: usize,
}

impl StepMemory<'_, '_> {
    /// Returns how many frames a step can move in 2 MiB extents.
    #[must_use]
    pub fn frames_max(&self) -> usize {
        self.batch.updates_max().min(self.extents.len()).min(self.pfns.len())
    }

    /// Returns the obstacle to report if this is too small.
    pub(crate) fn no_room(&self) -> BalloonObstacle {
        BalloonObstacle::NoRoom { frames: self.frames_max(), flushes: self.batch.ops_max() }
    }
}

/// Memory for steps of up to `FRAMES` frames, 40 bytes for each. A step out moves a sixteenth
/// fewer, and a step in by single frames two fifteenths fewer, so that all take about as long.
///
/// With 512, a step is two traps and about a million instructions, Xen's included. A GiB takes
/// fewer than 1,100 traps (docs/performance.md).
#[derive(Debug)]
pub struct StepStorage<const FRAMES: usize> {
    batch: BatchStorage<FRAMES, 1>,
    extents: [Extent; FRAMES],
    pfns: [Pfn; FRAMES],
}

impl<const FRAMES: usize> StepStorage<FRAMES> {
    /// Creates storage.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            batch: BatchStorage::new(),
            extents: [Extent::from_pfn(Pfn::new(0)); FRAMES],
            pfns: [Pfn::new(0); FRAMES],
        }
    }

    /// Calls `step` with this storage.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use balloon::{Balloon, Moved, Wipe, StepStorage};
    ///
    /// let mut test = TestGuest::new(); // 4096 pages
    /// let mut words = [0; 64];
    /// let (mut balloon, _) = Balloon::new(&test.guest, &mut words, 512, Wipe::Never)?;
    /// balloon.set_target(4000);
    /// let mut storage = StepStorage::<32>::new(); // a step moves 32 frames at most
    /// let step = storage.with(|work| balloon.step(&test.guest, &mut test.frames, work));
    /// assert!(matches!(step.moved, Moved::Out(1..=32)));
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn with<T>(&mut self, step: impl FnOnce(&mut StepMemory<'_, '_>) -> T) -> T {
        let mut batch = self.batch.batch();
        let Self { extents, pfns, .. } = self;
        let (out_max, in_max) = (FRAMES - FRAMES / 16, FRAMES - FRAMES * 2 / 15);
        step(&mut StepMemory { batch: &mut batch, extents, pfns, out_max, in_max })
    }
}

impl<const FRAMES: usize> Default for StepStorage<FRAMES> {
    fn default() -> Self {
        Self::new()
    }
}
