//! Frames set aside: they have memory, and Xen would neither take them nor let them be mapped. Both
//! can change; so each step tries again before it does anything else.

use hypercall::{Machine, Pfn};
use p2m::FindDirect;

use crate::around::{Allocator, Around, Work};
use crate::balloon::{Balloon, current_reservation};

/// The most pfns of the balloon's that a step looks at.
const SCAN_MAX: usize = 1024;

/// What a look for frames set aside came to.
pub(crate) enum Recovered {
    /// So many are no longer set aside.
    Frames(u64),
    /// None was among the pfns looked at; the next step looks at those behind them.
    NoneYet,
}

impl Balloon<'_> {
    /// Tries to map frames that are set aside, and the allocator has them.
    ///
    /// # Hypercalls
    /// Up to two: the count, and an `mmu_update`.
    pub(crate) fn recover<M: Machine, D: FindDirect>(
        &mut self,
        around: &mut Around<'_, M, D>,
        allocator: &mut impl Allocator,
        work: &mut Work<'_, '_>,
    ) -> Recovered {
        let (count, looked) = self.collect_aside(around, work);
        if count == 0 {
            return if looked < SCAN_MAX { Recovered::Frames(0) } else { Recovered::NoneYet };
        }
        let before = self.set_aside;
        self.set_aside -= count as u64;
        let mapped = self.take_back(around, allocator, work, 0..count);
        if mapped < count {
            let refused = work.pfns[mapped];
            self.aside_from = Pfn::new(refused.raw() + 1);
            self.write_off(around, refused);
        }
        Recovered::Frames(before - self.set_aside)
    }

    /// The next pfns that are set aside: how many, and how many of the balloon's were looked at.
    /// Behind the last pfn the first ones follow, so that none is passed over for good.
    fn collect_aside<M, D>(
        &mut self,
        around: &Around<'_, M, D>,
        work: &mut Work<'_, '_>,
    ) -> (usize, usize) {
        let max = work.frames_max();
        let from = self.aside_from;
        let (mut count, mut looked) = (0, 0);
        let before = self.held.iter_from(Pfn::new(0)).take_while(|pfn| *pfn < from);
        for pfn in self.held.iter_from(from).chain(before).take(SCAN_MAX) {
            if count == max {
                break;
            }
            if around.p2m.mfn(pfn).is_ok() {
                work.pfns[count] = pfn;
                count += 1;
            }
            looked += 1;
            self.aside_from = Pfn::new(pfn.raw() + 1);
        }
        (count, looked)
    }

    /// A frame that Xen neither takes nor maps, while it counts fewer than the map has: it is not
    /// the guest's any more.
    #[expect(unsafe_code, reason = "gives a pfn of the balloon's up that Xen has taken (I-12)")]
    fn write_off<M: Machine, D>(&mut self, around: &Around<'_, M, D>, pfn: Pfn) {
        let Ok(xen) = current_reservation(around.machine) else { return };
        // SAFETY: the pfn is the balloon's (I-12), nothing maps it, and Xen has its frame no more.
        if xen < self.populated && unsafe { around.p2m.depopulate(pfn) }.is_ok() {
            self.populated -= 1;
            self.set_aside -= 1;
        }
    }
}
