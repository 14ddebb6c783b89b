//! Out: gives frames back to Xen.
//!
//! The order: wipe while mapped, remove from the direct mapping and every TLB, remove from the map,
//! give up. Xen reports a frame that is still mapped as taken, although it stays the guest's. So
//! the unmapping has a trap of its own, which must succeed. The map forgets the frame before Xen
//! has it: another domain may own it the next moment, and use the same pfn for it.
#![expect(unsafe_code, reason = "changes mappings of frames that the balloon owns (I-12)")]

use core::ops::Range;

use hypercall::{FrameSource, Machine, MmuExtOp, MmuUpdate, Pfn, Pte, Refused};
use p2m::DirectEntries;

use crate::balloon::Balloon;
use crate::moves::{Released, map};
use crate::step::BalloonObstacle;
use crate::work::StepMemory;

impl Balloon<'_> {
    /// Gives up to `count` frames back. Returns how many Xen has taken, and what was in the way.
    pub(crate) fn inflate<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
        count: usize,
    ) -> (u64, Option<BalloonObstacle>) {
        let (taken, obstacle) = self.take_out(direct, allocator, work, count);
        if taken == 0 {
            work.batch.clear();
            return (0, obstacle);
        }
        if let Err(obstacle) = self.unmap(direct, allocator, work, taken) {
            return (0, Some(obstacle));
        }
        let Released { given, kept, obstacle: refused } = self.release(direct, work, 0..taken);
        if kept > 0 {
            // The first frame that Xen refused goes last: if it is no longer the guest's, it cannot
            // be mapped, and neither could the frames behind it.
            work.pfns.swap(given, given + kept - 1);
            self.take_back(direct, allocator, work, given..given + kept);
        }
        (given as u64, refused.or(obstacle))
    }

    /// Takes frames from the allocator, checks and wipes them, and plans their unmapping.
    fn take_out<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
        count: usize,
    ) -> (usize, Option<BalloonObstacle>) {
        work.batch.clear();
        for at in 0..count {
            let Some(frame) = allocator.take() else {
                return (at, Some(BalloonObstacle::NothingToSpare));
            };
            let pfn = match self.hold(frame) {
                Ok(pfn) => pfn,
                Err(Refused { value, error }) => {
                    allocator.give(value);
                    return (at, Some(error));
                }
            };
            if let Err(obstacle) = self.plan_unmapping(direct, pfn, work) {
                self.let_go(pfn, allocator);
                return (at, Some(obstacle));
            }
            work.pfns[at] = pfn;
        }
        (count, None)
    }

    fn plan_unmapping<M: Machine>(
        &self,
        direct: &mut DirectEntries<'_, M>,
        pfn: Pfn,
        work: &mut StepMemory<'_, '_>,
    ) -> Result<(), BalloonObstacle> {
        let mfn = direct.guest().p2m().mfn(pfn).map_err(BalloonObstacle::NoMemory)?;
        let (slot, pte) = direct.find(pfn).map_err(BalloonObstacle::NoDirectEntry)?;
        if !pte.is_writable() || pte.mfn() != mfn {
            return Err(BalloonObstacle::InUse { pfn, pte });
        }
        if self.wipes() {
            // SAFETY: the balloon owns the frame (I-12).
            unsafe { direct.guest().machine().clear_frame(pfn) }
                .map_err(BalloonObstacle::NotWiped)?;
        }
        let planned = work.batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw());
        planned.map_err(|_| work.no_room())
    }

    /// Removes the planned frames from the direct mapping and every TLB: all, or none.
    fn unmap<M: Machine>(
        &mut self,
        direct: &DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
        taken: usize,
    ) -> Result<(), BalloonObstacle> {
        if work.batch.op(MmuExtOp::tlb_flush_all()).is_err() {
            // Without the flush nothing leaves.
            work.batch.clear();
            self.let_all_go(work, taken, allocator);
            return Err(work.no_room());
        }
        // SAFETY: the entries map frames that the balloon owns (I-12), in which no Rust object is.
        let Err(refused) = (unsafe { work.batch.submit(direct.guest().machine()) }) else {
            return Ok(());
        };
        let pfn = work.pfns[0];
        work.batch.invert();
        // SAFETY: the entries become what they were.
        let undone = unsafe { work.batch.submit(direct.guest().machine()) };
        work.batch.clear();
        if undone.is_ok() {
            self.let_all_go(work, taken, allocator);
        } else {
            self.set_aside += taken as u64;
        }
        Err(BalloonObstacle::Mapping { pfn, error: refused })
    }

    /// Gives the first `count` pfns at hand, which are mapped, back to the allocator.
    fn let_all_go(
        &mut self,
        work: &StepMemory<'_, '_>,
        count: usize,
        allocator: &mut impl FrameSource,
    ) {
        for at in (0..count).rev() {
            self.let_go(work.pfns[at], allocator);
        }
    }

    /// Maps the balloon's frames that have memory, and gives them to the allocator. Sets aside
    /// those that cannot be mapped. Returns how many the allocator has.
    pub(crate) fn take_back<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
        range: Range<usize>,
    ) -> usize {
        let (mapped, _) = map(direct, work, range.clone());
        for at in (range.start..range.start + mapped).rev() {
            self.let_go(work.pfns[at], allocator);
        }
        self.set_aside += (range.len() - mapped) as u64;
        mapped
    }
}
