//! The requests of both directions: giving frames to Xen, and mapping frames.
#![expect(unsafe_code, reason = "changes mappings of frames that the balloon owns (I-12)")]

use core::ops::Range;

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{DomId, Element, Error, Hypercalls, Machine, MmuUpdate, Pfn, Pte, PteFlags};
use p2m::DirectEntries;

use crate::balloon::{Balloon, Direction};
use crate::step::BalloonObstacle;
use crate::work::StepMemory;

/// What became of frames offered to Xen.
#[derive(Debug)]
pub(crate) struct Released {
    /// The first so many at hand, which Xen has taken.
    pub(crate) given: usize,
    /// So many behind them, which have their memory as before.
    pub(crate) kept: usize,
    /// What was in the way.
    pub(crate) obstacle: Option<BalloonObstacle>,
}

impl Balloon<'_> {
    /// Gives Xen the memory of `range` of the pfns at hand, which nothing maps. The map forgets it
    /// first, so that it never calls another domain's frame the guest's. Afterwards the pfns whose
    /// frames Xen took are the first at hand. The others follow, and the map has them as before.
    ///
    /// # Hypercalls
    /// One multicall.
    pub(crate) fn release<M: Hypercalls>(
        &mut self,
        direct: &DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
        range: Range<usize>,
    ) -> Released {
        let start = range.start;
        let (mut offered, mut obstacle) = (0, None);
        for at in range {
            let pfn = work.pfns[at];
            // SAFETY: the pfn is the balloon's (I-12), and nothing maps its memory any more.
            match unsafe { direct.guest().p2m().depopulate(pfn) } {
                Ok(mfn) => {
                    work.extents[offered] = Extent::from_mfn(mfn);
                    work.pfns[start + offered] = pfn;
                    offered += 1;
                }
                Err(error) => {
                    // The map had memory for it when it was read, and has none now.
                    self.populated = self.populated.saturating_sub(1);
                    obstacle = Some(BalloonObstacle::NoMemory(error));
                }
            }
        }
        let extents = &mut work.extents[..offered];
        let answer = self.move_extents(direct.guest().machine(), extents, Direction::Out, 0);
        let given = *answer.as_ref().unwrap_or(&0);
        let first = work.pfns.get(start + given).copied().unwrap_or(Pfn::new(0));
        self.populated = self.populated.saturating_sub(given as u64);
        let mut kept = 0;
        for at in given..offered {
            let pfn = work.pfns[start + at];
            // SAFETY: Xen has not taken the frame: it is the pfn's, as it was a moment ago.
            match unsafe { direct.guest().p2m().populate(pfn, work.extents[at].mfn()) } {
                Ok(()) => {
                    work.pfns[start + given + kept] = pfn;
                    kept += 1;
                }
                Err(error) => {
                    self.populated = self.populated.saturating_sub(1);
                    self.stray = self.stray.saturating_add(1);
                    obstacle = Some(BalloonObstacle::NoPlace(error));
                }
            }
        }
        let short = BalloonObstacle::XenTookFewer { offered: offered as u64, taken: given as u64 };
        let obstacle = match answer {
            Err(error) => Some(BalloonObstacle::Refused { pfn: first, error }),
            Ok(_) => obstacle.or((given < offered).then_some(short)),
        };
        Released { given, kept, obstacle }
    }

    /// Asks Xen to move `extents` of an order in or out, and for the guest's count then. Returns
    /// how many it moved.
    ///
    /// # Hypercalls
    /// One multicall.
    pub(crate) fn move_extents<M: Hypercalls>(
        &mut self,
        machine: &M,
        extents: &mut [Extent],
        direction: Direction,
        order: u32,
    ) -> Result<usize, Error> {
        let count = extents.len();
        if count == 0 {
            return Ok(0);
        }
        let list = Reservation { extents, order, flags: 0, domain: DomId::SELF };
        let mut operation = match direction {
            Direction::Out => MemoryOp::Decrease(list),
            Direction::In => MemoryOp::Populate(list),
        };
        // SAFETY: the pfns are the balloon's (I-12): nothing maps those that lose memory, and those
        // that get some are empty.
        let (moved, has) = unsafe { machine.memory_op_counted(&mut operation) };
        self.xen = has.ok();
        moved.map(|moved| usize::try_from(moved).unwrap_or(count).min(count))
    }
}

/// Maps `range` of the pfns at hand, which have memory, at their places in the direct mapping.
/// Returns how many, from the first on, are mapped, and why the next one is not.
///
/// # Hypercalls
/// One `mmu_update`.
pub(crate) fn map<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    work: &mut StepMemory<'_, '_>,
    range: Range<usize>,
) -> (usize, Option<BalloonObstacle>) {
    work.batch.clear();
    let mut obstacle = None;
    let mut planned = 0;
    let flags = direct.guest().machine().offered(PteFlags::KERNEL_RW);
    let pfns = &work.pfns[range];
    for pfn in pfns {
        match plan_mapping(direct, *pfn, flags) {
            // There is room: the batch holds as many as there are pfns at hand.
            Ok((update, old)) if work.batch.update(update, old.raw()).is_ok() => planned += 1,
            Ok(_) => break,
            Err(found) => {
                obstacle = Some(found);
                break;
            }
        }
    }
    // SAFETY: frames of the balloon's at their own places (I-2, I-3, I-12).
    let result = unsafe { work.batch.submit(direct.guest().machine()) };
    if let Err(refused) = result {
        planned = work.batch.applied().filter(|done| matches!(done, Element::Update(_))).count();
        let first = pfns.get(planned).copied().unwrap_or(Pfn::new(0));
        obstacle = Some(BalloonObstacle::Mapping { pfn: first, error: refused });
    }
    work.batch.clear();
    (planned, obstacle)
}

fn plan_mapping<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfn: Pfn,
    flags: PteFlags,
) -> Result<(MmuUpdate, Pte), BalloonObstacle> {
    let mfn = direct.guest().p2m().mfn(pfn).map_err(BalloonObstacle::NoMemory)?;
    let (slot, pte) = direct.find(pfn).map_err(BalloonObstacle::NoDirectEntry)?;
    if pte.is_present() && pte.mfn() != mfn {
        return Err(BalloonObstacle::Occupied { pfn, pte });
    }
    Ok((MmuUpdate::set(slot, Pte::new(mfn, flags)), pte))
}
