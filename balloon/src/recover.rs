//! Frames set aside: they have memory, and Xen would neither take them nor let them be mapped. Both
//! can change; so each step tries again before it does anything else.
#![expect(unsafe_code, reason = "gives pfns of the balloon's up that Xen has taken (I-12)")]

use hypercall::{FrameAccess, FrameSource, Machine, MmuExtOp, Pfn};
use p2m::DirectEntries;

use crate::balloon::{Balloon, current_reservation};
use crate::work::StepMemory;

/// The most pfns of the balloon's that a step looks at.
const SCAN_MAX: usize = 1024;

impl Balloon<'_> {
    /// Tries to map frames that are set aside, and the allocator has them. How many are no longer
    /// set aside; nothing if none was among the pfns looked at, and the next step looks at those
    /// behind them.
    ///
    /// # Hypercalls
    /// Up to three: an `mmu_update`; the count and a flush if it is refused.
    pub(crate) fn recover<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
    ) -> Option<u64> {
        let (count, looked) = self.collect_aside(direct, work);
        if count == 0 {
            self.aside_looked += looked as u64;
            if self.aside_looked < self.held.count() {
                return None;
            }
            // All were looked at: the map in this step is not the one that has them.
            self.aside_looked = 0;
            return Some(0);
        }
        self.aside_looked = 0;
        let before = self.set_aside;
        self.set_aside -= count as u64;
        let mapped = self.take_back(direct, allocator, work, 0..count);
        if mapped < count {
            let refused = work.pfns[mapped];
            self.aside_from = Pfn::new(refused.raw() + 1);
            self.write_off(direct, work, refused);
        }
        Some(before - self.set_aside)
    }

    /// Returns the next pfns that are set aside: how many, and how many of the balloon's were
    /// looked at. Behind the last pfn the first ones follow, so that none is passed over for good.
    fn collect_aside<M: FrameAccess>(
        &mut self,
        direct: &DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
    ) -> (usize, usize) {
        // Of those with memory as many as are set aside: more is another map's.
        let aside = usize::try_from(self.set_aside).unwrap_or(usize::MAX);
        let max = work.frames_max().min(aside);
        let from = self.aside_from;
        let (mut count, mut looked) = (0, 0);
        let before = self.held.iter_from(Pfn::new(0)).take_while(|pfn| *pfn < from);
        for pfn in self.held.iter_from(from).chain(before).take(SCAN_MAX) {
            if count == max {
                break;
            }
            if direct.guest().p2m().mfn(pfn).is_ok() {
                work.pfns[count] = pfn;
                count += 1;
            }
            looked += 1;
            self.aside_from = Pfn::new(pfn.raw() + 1);
        }
        (count, looked)
    }

    /// A frame that Xen neither takes nor maps, that nothing maps at its place, and that M2P does
    /// not know, while Xen counts fewer than the map has: it is not the guest's any more. Its pfn
    /// may get another one, so every TLB forgets it first: the flush that went with its unmapping
    /// may have been refused.
    fn write_off<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
        pfn: Pfn,
    ) {
        let Ok(xen) = current_reservation(direct.guest().machine()) else { return };
        let Ok(mfn) = direct.guest().p2m().mfn(pfn) else { return };
        let is_mapped = !matches!(direct.find(pfn), Ok((_, pte)) if !pte.is_present());
        let is_known = direct.guest().machine().machine_to_phys(mfn) == Some(pfn);
        if xen >= self.populated || is_mapped || is_known {
            return;
        }
        work.batch.clear();
        let planned = work.batch.op(MmuExtOp::tlb_flush_all());
        // SAFETY: a flush changes nothing.
        let flushed = unsafe { work.batch.submit(direct.guest().machine()) };
        work.batch.clear();
        if planned.is_err() || flushed.is_err() {
            return;
        }
        // SAFETY: the pfn is the balloon's (I-12), nothing maps it, and Xen has its frame no more.
        if unsafe { direct.guest().p2m().depopulate(pfn) }.is_ok() {
            self.populated -= 1;
            self.set_aside -= 1;
        }
    }
}
