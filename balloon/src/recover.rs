//! Recovers frames set aside: they have memory, and Xen refused to take them and to map them. Both
//! can change, so each step tries again before it does anything else.
#![expect(unsafe_code, reason = "gives pfns of the balloon's up that Xen has taken (I-12)")]

use hypercall::{FrameAccess, FrameSource, Machine, MmuExtOp, Pfn};
use p2m::DirectEntries;

use crate::balloon::{Balloon, current_reservation};
use crate::work::StepMemory;

/// The most pfns of the balloon that a step searches.
const SCAN_MAX: usize = 1024;

impl Balloon<'_> {
    /// Tries to map frames that are set aside, and gives them to the allocator. Returns how many
    /// are no longer set aside; none if the pfns searched had none, and the next step goes on
    /// behind them.
    ///
    /// # Hypercalls
    /// Up to three: an `mmu_update`; if it is refused, the count and a flush.
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
            // All were searched: they belong to another map than this step's.
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

    /// Collects the next pfns that are set aside. Returns how many it found and how many it
    /// searched. The search starts over behind the last pfn, so that none is missed for good.
    fn collect_aside<M: FrameAccess>(
        &mut self,
        direct: &DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
    ) -> (usize, usize) {
        // At most as many as are set aside: more with memory would be another map's.
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

    /// Writes off a frame that is not the guest's any more: Xen neither takes nor maps it, its
    /// entry is empty, M2P does not know it, and Xen counts fewer frames than the map. Its pfn may
    /// get another frame, so a flush comes first: the one of its unmapping may have been refused.
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
        // SAFETY: the pfn is the balloon's (I-12), nothing maps it, and its frame is gone.
        if unsafe { direct.guest().p2m().depopulate(pfn) }.is_ok() {
            self.populated -= 1;
            self.set_aside -= 1;
        }
    }
}
