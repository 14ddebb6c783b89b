//! Memory for devices: what the programs make of frames of their pool.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::memory::Extent;
use hypercall::middleware::Counting;
use hypercall::{BatchStorage, Cpu, Frames, Machine};
use p2m::{Guest, P2m};
use swiotlb::region::{Region, Scratch, gather, scatter};
use swiotlb::{Area, BusAddr, DmaMask, Pool, Segment};

use crate::program::Kernel;
use crate::programs::OrSay;

/// Room to exchange 2 MiB at once.
pub(super) struct Room {
    storage: Box<BatchStorage<512, 1>>,
    extents: Vec<Extent>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            storage: Box::new(BatchStorage::new()),
            extents: alloc::vec![Extent::default(); 1024],
        }
    }

    /// Exchanges frames for runs of 2^`order` under `mask`.
    pub(super) fn gather<M: Machine>(
        &mut self,
        guest: Guest<'_, Counting<&M>>,
        frames: Frames,
        order: u32,
        mask: DmaMask,
    ) -> Result<Region, String> {
        let batch = &mut self.storage.batch();
        let mut scratch = Scratch { batch, extents: &mut self.extents };
        gather(&guest, frames, order, mask, &mut scratch).or_say("gather")
    }

    /// Exchanges them back.
    pub(super) fn scatter<M: Machine>(
        &mut self,
        guest: Guest<'_, Counting<&M>>,
        region: Region,
    ) -> Result<Frames, String> {
        let batch = &mut self.storage.batch();
        let mut scratch = Scratch { batch, extents: &mut self.extents };
        scatter(&guest, region, &mut scratch).or_say("scatter")
    }
}

/// Places for a pool of `segments` segments, with two areas.
pub(super) struct Places {
    segments: Vec<Segment>,
    areas: [Area; 2],
}

impl Places {
    pub(super) fn new(segments: usize) -> Self {
        let segments = (0..segments).map(|_| Segment::new()).collect();
        Self { segments, areas: [Area::new(), Area::new()] }
    }

    /// A pool of all places, in memory under `mask`.
    pub(super) fn pool<M: Machine + Cpu>(
        &self,
        kernel: &mut Kernel<'_, M>,
        room: &mut Room,
        mask: DmaMask,
    ) -> Result<Pool<'_>, String> {
        let pool = Pool::new(&self.segments, &self.areas).or_say("pool")?;
        let frames = (self.segments.len() as u64) << Segment::ORDER;
        let frames = kernel.pool.take_run(frames).ok_or("the frames are no run")?;
        let region = room.gather(kernel.guest, frames, Segment::ORDER, mask)?;
        pool.grow(kernel.guest.p2m(), region).or_say("grow")?;
        Ok(pool)
    }
}

/// Ends a pool: its memory is exchanged back, and the frames go to the guest's pool.
pub(super) fn close<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    room: &mut Room,
    pool: Pool<'_>,
) -> Result<(), String> {
    let mut regions = Vec::new();
    pool.close(&mut |region| regions.push(region)).or_say("close")?;
    for region in regions {
        let frames = room.scatter(kernel.guest, region)?;
        kernel.pool.give_run(frames);
    }
    Ok(())
}

/// The first of the pool's frames whose memory `mask` does not reach, as a run of `count`: such a
/// buffer has to be bounced.
pub(super) fn out_of_reach<M: Machine>(
    kernel: &mut Kernel<'_, M>,
    count: u64,
    mask: DmaMask,
) -> Result<Frames, String> {
    let frames = kernel.pool.take_run(count).ok_or("the frames are no run")?;
    let last = hypercall::Pfn::new(frames.start().raw() + count - 1);
    let is_far =
        |p2m: &P2m<'_>, pfn| p2m.mfn(pfn).is_ok_and(|mfn| !mask.reaches(BusAddr::new(mfn, 0), 1));
    if is_far(kernel.guest.p2m(), frames.start()) && is_far(kernel.guest.p2m(), last) {
        return Ok(frames);
    }
    Err("all memory is in the device's reach: the machine needs more".into())
}
