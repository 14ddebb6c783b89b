//! In: takes memory from Xen.
//!
//! Uses extents of 2 MiB where the balloon holds whole blocks and Xen has them; they cost a small
//! part of what single frames cost. A frame goes into the map, then into the direct mapping, then
//! to the allocator. What cannot be mapped goes back.

use hypercall::memory::{Extent, MemoryOp};
use hypercall::{DomId, FrameAccess, FrameSource, Hypercalls, Machine, Pfn};
use p2m::{DirectEntries, Pfns};

use crate::balloon::{Balloon, Direction};
use crate::moves::map;
use crate::set::{LARGE, LARGE_FRAMES, LARGE_ORDER};
use crate::step::BalloonObstacle;
use crate::work::StepMemory;

/// Steps in which Xen is not asked for large extents after it had none.
const LARGE_PAUSE: u32 = 64;

impl Balloon<'_> {
    /// Asks Xen for up to `count` frames. Returns how many the allocator got, and what was in the
    /// way.
    pub(crate) fn deflate<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
        count: usize,
    ) -> (u64, Option<BalloonObstacle>) {
        let (came, obstacle) = match self.populate_large(direct, work, count) {
            (0, unrecorded) => {
                let count = count.min(work.in_max);
                let (came, obstacle) = self.populate_single(direct, work, count);
                (came, obstacle.or(unrecorded))
            }
            large => large,
        };
        if came == 0 {
            return (0, obstacle);
        }
        self.populated += came as u64;
        let (mapped, refused) = map(direct, work, 0..came);
        for at in 0..mapped {
            self.let_go(work.pfns[at], allocator);
        }
        if mapped < came {
            // What kept them from being mapped is what matters.
            self.set_aside += self.release(direct, work, mapped..came).kept as u64;
        }
        (mapped as u64, refused.or(obstacle))
    }

    /// Fills whole blocks that the balloon holds. Returns how many frames came, and why others
    /// went back. Their pfns are at hand and in the map.
    fn populate_large<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
        count: usize,
    ) -> (usize, Option<BalloonObstacle>) {
        if self.large_refused > 0 || count < LARGE_FRAMES {
            self.large_refused = self.large_refused.saturating_sub(1);
            return (0, None);
        }
        let mut blocks = 0;
        let mut next = 0;
        while (blocks + 1) * LARGE_FRAMES <= count {
            let Some(first) = self.held.next_block(next) else { break };
            next = first.raw() + LARGE;
            if (first.raw()..next).all(|pfn| can_get_memory(direct, Pfn::new(pfn))) {
                work.extents[blocks] = Extent::from_pfn(first);
                work.pfns[blocks] = first;
                blocks += 1;
            }
        }
        if blocks == 0 {
            self.held.no_block_below(u64::MAX);
            return (0, None);
        }
        self.held.no_block_below(work.pfns[0].raw());
        let extents = &mut work.extents[..blocks];
        let came = self.move_extents(direct.guest().machine(), extents, Direction::In, LARGE_ORDER);
        let came = came.unwrap_or(0);
        if came < blocks {
            self.large_refused = LARGE_PAUSE;
        }
        let (came, unrecorded) = self.record(direct, work, came, LARGE_ORDER);
        // Expands the first pfn of each block to all of its pfns, from the last block on.
        for block in (0..came).rev() {
            let first = work.pfns[block].raw();
            let pfns = (first..first + LARGE).map(Pfn::new);
            let places = &mut work.pfns[block * LARGE_FRAMES..];
            places.iter_mut().zip(pfns).for_each(|(place, pfn)| *place = pfn);
        }
        (came * LARGE_FRAMES, unrecorded)
    }

    /// Fills the lowest pfns that the balloon holds. Returns how many frames came, and why no
    /// more. Their pfns are at hand and in the map.
    fn populate_single<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
        count: usize,
    ) -> (usize, Option<BalloonObstacle>) {
        // When the frame is there, the map and the direct mapping themselves say whether they can
        // take it, and what they cannot take goes back to Xen. So one look at each table is
        // enough, unless something was in the way a moment ago.
        let looks_at_all = self.is_stuck();
        let mut asked = 0;
        let mut table = None;
        for pfn in self.held.lowest().take(count) {
            let its_table = Some(pfn.raw() / LARGE);
            if (looks_at_all || table != its_table) && !can_get_memory(direct, pfn) {
                break;
            }
            table = its_table;
            work.extents[asked] = Extent::from_pfn(pfn);
            work.pfns[asked] = pfn;
            asked += 1;
        }
        if asked == 0 {
            let lowest = self.held.lowest().next().filter(|_| count > 0);
            let obstacle = lowest.and_then(|pfn| why_not(direct, pfn));
            return (0, Some(obstacle.unwrap_or_else(|| work.no_room())));
        }
        let extents = &mut work.extents[..asked];
        let came = match self.move_extents(direct.guest().machine(), extents, Direction::In, 0) {
            Ok(came) => came,
            Err(error) => {
                let pfn = work.pfns[0];
                return (0, Some(BalloonObstacle::Refused { pfn, error }));
            }
        };
        let short = (came < asked).then(|| self.why_short(direct, asked, came));
        let (came, unrecorded) = self.record(direct, work, came, 0);
        (came, unrecorded.or(short))
    }

    /// Returns why Xen gave fewer frames than asked for.
    #[expect(unsafe_code, reason = "asks Xen for a number")]
    fn why_short<M: Hypercalls>(
        &self,
        direct: &DirectEntries<'_, M>,
        asked: usize,
        came: usize,
    ) -> BalloonObstacle {
        let mut maximum = MemoryOp::MaximumReservation(DomId::SELF);
        // SAFETY: it only reports.
        match unsafe { direct.guest().machine().memory_op(&mut maximum) } {
            Ok(frames) if self.populated + came as u64 >= frames => {
                BalloonObstacle::Maximum { frames }
            }
            _ => BalloonObstacle::XenHasNoMore { asked: asked as u64, came: came as u64 },
        }
    }

    /// Records what came for the first `came` pfns at hand. Returns how many are recorded. An
    /// extent that the map cannot take goes back to Xen, or belongs to nobody.
    #[expect(unsafe_code, reason = "records what Xen put behind pfns of the balloon's (I-12)")]
    fn record<M: Hypercalls>(
        &mut self,
        direct: &DirectEntries<'_, M>,
        work: &mut StepMemory<'_, '_>,
        came: usize,
        order: u32,
    ) -> (usize, Option<BalloonObstacle>) {
        let mut recorded = 0;
        let mut obstacle = None;
        for at in 0..came {
            let (pfn, mfn) = (work.pfns[at], work.extents[at].mfn());
            let populated = match order {
                // SAFETY: Xen says that it is behind the pfn, which is the balloon's (I-12).
                0 => unsafe { direct.guest().p2m().populate(pfn, mfn) },
                // SAFETY: as above, for a run of them.
                _ => unsafe { direct.guest().p2m().populate_run(Pfns::new(pfn, 1 << order), mfn) },
            };
            match populated {
                Ok(()) => {
                    work.pfns[recorded] = pfn;
                    recorded += 1;
                }
                Err(error) => {
                    obstacle = Some(BalloonObstacle::NoPlace(error));
                    let extent = &mut work.extents[at..=at];
                    let back =
                        self.move_extents(direct.guest().machine(), extent, Direction::Out, order);
                    if back != Ok(1) {
                        self.stray = self.stray.saturating_add(1 << order);
                    }
                }
            }
        }
        (recorded, obstacle)
    }
}

/// Returns whether a pfn of the balloon can get memory: it has a word in the map and an entry in
/// the direct mapping, both empty.
fn can_get_memory<M: FrameAccess>(direct: &mut DirectEntries<'_, M>, pfn: Pfn) -> bool {
    why_not(direct, pfn).is_none()
}

fn why_not<M: FrameAccess>(direct: &mut DirectEntries<'_, M>, pfn: Pfn) -> Option<BalloonObstacle> {
    if let Err(error) = direct.guest().p2m().check_can_fill(pfn) {
        return Some(BalloonObstacle::NoPlace(error));
    }
    match direct.find(pfn) {
        Err(error) => Some(BalloonObstacle::NoDirectEntry(error)),
        Ok((_, pte)) if pte.is_present() => Some(BalloonObstacle::Occupied { pfn, pte }),
        Ok(_) => None,
    }
}
