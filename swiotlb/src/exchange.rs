//! The exchange: frames out of the direct mapping, against others at Xen, and back into it.
//!
//! Three traps, however many frames: a multicall of one `mmu_update` that takes all of them out and
//! one flush; the exchange; one `mmu_update` that maps what came. Each has to have worked before
//! the next: Xen takes only frames that nothing maps, and what a refused exchange leaves has to be
//! known before it is mapped again.
#![expect(unsafe_code, reason = "takes frames out of the direct mapping that it owns (I-1, I-2)")]

use hypercall::{
    Batch, DomId, Errno, Error as CallError, Exchange, Extent, FrameAccess, Machine, MemoryOp, Mfn,
    MmuExtOp, MmuUpdate, PAGE_SIZE, Pfn, Pte, PteFlags, Reservation, Slot,
};
use p2m::{DirectEntries, P2m, Pfns};

use crate::address::{BusAddr, DmaMask};
use crate::contiguous::{Place, contiguous, is_aligned};
use crate::error::Error;

/// Memory to work with, from the caller: as it is large, operations need fewer traps.
#[derive(Debug)]
pub struct Scratch<'a, 'b> {
    /// One update for each frame that is exchanged at once, and one extended operation.
    pub batch: &'a mut Batch<'b>,
    /// Two words for each of them.
    pub extents: &'a mut [Extent],
}

impl Scratch<'_, '_> {
    /// How many frames can be exchanged at once.
    pub(crate) fn frames_max(&self) -> u64 {
        self.batch.updates_max().min(self.extents.len() / 2) as u64
    }
}

/// What is given for what.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Single frames for runs of 2^order that `mask` reaches.
    Gather(u32, DmaMask),
    /// Runs of 2^order for single frames.
    Scatter(u32),
}

impl Way {
    pub(crate) const fn order(self) -> u32 {
        match self {
            Self::Gather(order, _) | Self::Scatter(order) => order,
        }
    }

    /// The order of the runs that come of it.
    pub(crate) const fn made(self) -> u32 {
        match self {
            Self::Gather(order, _) => order,
            Self::Scatter(_) => 0,
        }
    }

    /// Why no exchange can give what is asked for: the mask reaches no run of this length, wherever
    /// it lies. Xen is not asked for those: it takes a mask of 0 bits for any address.
    pub(crate) const fn impossible(self) -> Option<Error> {
        match self {
            Self::Gather(order, mask)
                if !mask.reaches(BusAddr::from_raw(0), (PAGE_SIZE as u64) << order) =>
            {
                Some(Error::NoRun { order, mask })
            }
            Self::Gather(..) | Self::Scatter(_) => None,
        }
    }

    /// The orders of what is given and of what is taken.
    const fn orders(self) -> (u32, u32) {
        match self {
            Self::Gather(order, _) => (0, order),
            Self::Scatter(order) => (order, 0),
        }
    }
}

/// What became of frames that were to be exchanged.
#[derive(Debug)]
pub(crate) struct Part {
    /// How many are as they should be, from the first on.
    pub(crate) made: u64,
    /// Whether all are in the direct mapping, and what came is filled with zeroes.
    pub(crate) is_usable: bool,
    pub(crate) result: Result<(), Error>,
}

/// Exchanges `pfns`, for which the scratch has room, and which are the caller's by its token.
pub(crate) fn exchange<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    way: Way,
    scratch: &mut Scratch<'_, '_>,
) -> Part {
    let given = check_given(direct.guest().p2m(), pfns, way);
    if let Err(error) = given.and_then(|()| plan_unmapping(direct, pfns, scratch.batch)) {
        scratch.batch.clear();
        return Part { made: 0, is_usable: true, result: Err(error) };
    }
    // SAFETY: the frames are the caller's token's (I-1); they leave the direct mapping for as long
    // as this function runs, and no Rust object lives in them.
    if let Err(refused) = unsafe { scratch.batch.submit(direct.guest().machine()) } {
        scratch.batch.invert();
        // SAFETY: the entries become what they were.
        let undone = unsafe { scratch.batch.submit(direct.guest().machine()) };
        scratch.batch.clear();
        return Part { made: 0, is_usable: undone.is_ok(), result: Err(refused.into()) };
    }
    let (done, refusal) = ask(direct, pfns, way, scratch.extents);
    let recorded = record(direct, Pfns::new(pfns.start, done), way, scratch.extents);
    let mapped = map(direct, pfns, scratch.batch);
    let is_mapped = mapped.is_ok() || map(direct, pfns, scratch.batch).is_ok();
    let wiped = match is_mapped {
        true => wipe(direct, Pfns::new(pfns.start, done)),
        false => Ok(()),
    };
    let is_usable = is_mapped && wiped.is_ok();
    let right = recorded.and(mapped).and(wiped);
    let made = if right.is_ok() { done } else { 0 };
    Part { made, is_usable, result: right.and(refusal.map_or(Ok(()), Err)) }
}

/// Whether the runs that are given are runs: Xen takes all frames behind the first one of each.
fn check_given(p2m: &P2m<'_>, pfns: Pfns, way: Way) -> Result<(), Error> {
    let Way::Scatter(order) = way else { return Ok(()) };
    let len_bytes = PAGE_SIZE << order;
    for run in 0..pfns.count >> order {
        let pfn = Pfn::new(pfns.start.raw() + (run << order));
        let (_, together) = contiguous(p2m, Place { pfn, offset: 0, len_bytes })?;
        if together < len_bytes {
            return Err(Error::Scattered { pfn });
        }
    }
    Ok(())
}

/// All of `pfns` leave the direct mapping, and every TLB.
fn plan_unmapping<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    batch: &mut Batch<'_>,
) -> Result<(), Error> {
    batch.clear();
    for pfn in pfns.iter() {
        let (slot, pte) = find_mapped(direct, pfn)?;
        batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw())?;
    }
    Ok(batch.op(MmuExtOp::tlb_flush_all())?)
}

/// Where the direct mapping has the frame, which has to be the one that P2M names, and writable.
fn find_mapped<M: FrameAccess>(
    direct: &mut DirectEntries<'_, M>,
    pfn: Pfn,
) -> Result<(Slot, Pte), Error> {
    let (slot, pte) = direct.find(pfn)?;
    let mfn = direct.guest().p2m().mfn(pfn)?;
    if !pte.is_writable() || pte.mfn() != mfn {
        return Err(Error::NotMapped { pfn, mfn, pte });
    }
    Ok((slot, pte))
}

/// Asks Xen. How many frames were exchanged, and why not all of them.
fn ask<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfns: Pfns,
    way: Way,
    extents: &mut [Extent],
) -> (u64, Option<Error>) {
    let (give_order, take_order) = way.orders();
    let (given, taken) = match lists(direct.guest().p2m(), pfns, way, extents) {
        Ok(lists) => lists,
        Err(error) => return (0, Some(error)),
    };
    let domain = DomId::SELF;
    let flags = match way {
        Way::Gather(_, mask) => mask.reservation_flags(),
        Way::Scatter(_) => 0,
    };
    let give = Reservation { extents: given, order: give_order, flags: 0, domain };
    let take = Reservation { extents: taken, order: take_order, flags, domain };
    // SAFETY: the frames are the caller's token's, and nothing maps them any more.
    let answer = unsafe {
        direct.guest().machine().memory_op(&mut MemoryOp::Exchange(Exchange { give, take }))
    };
    let done = match answer {
        Ok(done) => done,
        Err(error) => u64::from(error.done),
    };
    // Xen goes in chunks of the larger order, and so do we.
    let frames = (done << give_order).min(pfns.count) >> way.order() << way.order();
    let refusal = match answer {
        Ok(_) if frames == pfns.count => None,
        Ok(_) => Some(Error::Short { asked: pfns.count, done: frames }),
        Err(error) => Some(refusal(error, way, Pfn::new(pfns.start.raw() + frames))),
    };
    (frames, refusal)
}

/// The two lists of an exchange: mfns that are given, pfns that frames are taken for.
fn lists<'e>(
    p2m: &P2m<'_>,
    pfns: Pfns,
    way: Way,
    extents: &'e mut [Extent],
) -> Result<(&'e mut [Extent], &'e mut [Extent]), Error> {
    let (give_order, take_order) = way.orders();
    let half = extents.len() / 2;
    let (given, taken) = extents.split_at_mut(half);
    let mut give = 0;
    let mut take = 0;
    for (at, pfn) in (0u64..).zip(pfns.iter()) {
        if at.is_multiple_of(1 << give_order) {
            given[give] = Extent::from_mfn(p2m.mfn(pfn)?);
            give += 1;
        }
        if at.is_multiple_of(1 << take_order) {
            taken[take] = Extent::from_pfn(pfn);
            take += 1;
        }
    }
    Ok((&mut given[..give], &mut taken[..take]))
}

/// Which limit an errno of `XENMEM_exchange` stands for; `pfn` begins the chunk that it did not
/// do.
fn refusal(error: CallError, way: Way, pfn: Pfn) -> Error {
    match (error.errno, way) {
        (Errno::EPERM, _) => Error::OrderLimit { order: way.order() },
        (Errno::ENOMEM, Way::Gather(order, mask)) => Error::NoRun { order, mask },
        (Errno::ENOMEM, Way::Scatter(_)) => Error::NoRun { order: 0, mask: DmaMask::ALL },
        (Errno::EINVAL, _) => Error::InUse { pfn },
        _ => Error::Call(error),
    }
}

/// Records the frames that came, and checks that they are what was asked for and that M2P knows
/// them.
fn record<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfns: Pfns,
    way: Way,
    extents: &[Extent],
) -> Result<(), Error> {
    let (_, take_order) = way.orders();
    let taken = &extents[extents.len() / 2..];
    let mut result = Ok(());
    for (at, pfn) in (0u64..).zip(pfns.iter()) {
        let run = usize::try_from(at >> take_order).unwrap_or(usize::MAX);
        let within = at & ((1 << take_order) - 1);
        // All are recorded, whatever is wrong with one: they are what the guest has now.
        let first = taken.get(run).map_or(Mfn::new(u64::MAX), |extent| extent.mfn());
        let mfn = Mfn::new(first.raw().saturating_add(within));
        // SAFETY: Xen says that it exchanged the frame of the pfn, which a token stands for (I-1).
        let recorded =
            unsafe { direct.guest().p2m().replace(pfn, mfn) }.map(drop).map_err(Error::from);
        let right = recorded.and_then(|()| check(direct, (pfn, mfn), first, way));
        result = result.and(right);
    }
    result
}

/// Whether a frame that came is as asked.
fn check<M: Machine>(
    direct: &DirectEntries<'_, M>,
    (pfn, mfn): (Pfn, Mfn),
    first: Mfn,
    way: Way,
) -> Result<(), Error> {
    let found = direct.guest().machine().machine_to_phys(mfn);
    if found != Some(pfn) {
        return Err(Error::M2p { pfn, mfn, found });
    }
    match way {
        Way::Gather(order, mask)
            if !is_aligned(BusAddr::new(first, 0), order)
                || !mask.reaches(BusAddr::new(mfn, 0), PAGE_SIZE as u64) =>
        {
            Err(Error::WrongFrame { pfn, mfn, order, mask })
        }
        _ => Ok(()),
    }
}

/// Maps those of `pfns` that are not in the direct mapping, as P2M says; then reads back that all
/// are.
///
/// # Hypercalls
/// One `mmu_update`, none if nothing is missing.
pub(crate) fn map<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    batch: &mut Batch<'_>,
) -> Result<(), Error> {
    batch.clear();
    for pfn in pfns.iter() {
        let (slot, pte) = direct.find(pfn)?;
        if !pte.is_present() {
            let flags = direct.guest().machine().offered(PteFlags::KERNEL_RW);
            let new = Pte::new(direct.guest().p2m().mfn(pfn)?, flags);
            batch.update(MmuUpdate::set(slot, new), pte.raw())?;
        }
    }
    // SAFETY: frames of the caller's token at their own places (I-2, I-3).
    if let Err(refused) = unsafe { batch.submit(direct.guest().machine()) } {
        batch.clear();
        return Err(refused.into());
    }
    for pfn in pfns.iter() {
        find_mapped(direct, pfn)?;
    }
    Ok(())
}

/// Fills frames with zeroes: what Xen gives out holds what its last owner left there.
pub(crate) fn wipe<M: Machine>(direct: &DirectEntries<'_, M>, pfns: Pfns) -> Result<(), Error> {
    for pfn in pfns.iter() {
        // SAFETY: a frame of the caller's token, and mapped (I-1).
        unsafe { direct.guest().machine().clear_frame(pfn) }?;
    }
    Ok(())
}
