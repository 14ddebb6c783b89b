//! Frames set aside: they have memory, and Xen would neither take them nor let them be mapped. Both
//! can change; so each step tries again before it does anything else.

use hypercall::{Machine, Pfn};
use p2m::FindDirect;

use crate::around::{Allocator, Around, Work};
use crate::balloon::{Balloon, current_reservation};

/// The most pfns of the balloon's that a step looks at.
const SCAN_MAX: usize = 4096;

impl Balloon<'_> {
    /// Tries to map frames that are set aside, and the allocator has them. How many are no longer
    /// set aside.
    ///
    /// # Hypercalls
    /// Up to two: the count, and an `mmu_update`.
    pub(crate) fn recover<M: Machine, D: FindDirect>(
        &mut self,
        around: &mut Around<'_, M, D>,
        allocator: &mut impl Allocator,
        work: &mut Work<'_, '_>,
    ) -> u64 {
        let count = self.collect_aside(around, work);
        if count == 0 {
            return 0;
        }
        let before = self.set_aside;
        self.set_aside -= count as u64;
        let mapped = self.take_back(around, allocator, work, 0..count);
        if mapped < count {
            let refused = work.pfns[mapped];
            self.aside_from = Pfn::new(refused.raw() + 1);
            self.write_off(around, refused);
        }
        before - self.set_aside
    }

    /// The next pfns that are set aside.
    fn collect_aside<M, D>(&mut self, around: &Around<'_, M, D>, work: &mut Work<'_, '_>) -> usize {
        let max = work.frames_max();
        let mut places = work.pfns[..max].iter_mut();
        let mut next = None;
        let mut count = 0;
        for pfn in self.held.iter_from(self.aside_from).take(SCAN_MAX) {
            if around.p2m.mfn(pfn).is_ok() {
                let Some(place) = places.next() else {
                    next = Some(pfn);
                    break;
                };
                *place = pfn;
                count += 1;
            }
            next = pfn.checked_add(1);
        }
        self.aside_from = next.filter(|_| count > 0).unwrap_or(Pfn::new(0));
        count
    }

    /// A frame that Xen neither takes nor maps, while it counts fewer than the map has: it is not
    /// the guest's any more.
    fn write_off<M: Machine, D>(&mut self, around: &Around<'_, M, D>, pfn: Pfn) {
        let Ok(xen) = current_reservation(around.machine) else { return };
        if xen < self.populated && around.p2m.depopulate(pfn).is_ok() {
            self.populated -= 1;
            self.set_aside -= 1;
        }
    }
}
