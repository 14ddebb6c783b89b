//! The exchange: takes frames out of the direct mapping, exchanges them at Xen, and maps the new
//! ones.
//!
//! It takes three traps, however many frames: a multicall of one `mmu_update` that unmaps all of
//! them and one flush; the exchange; one `mmu_update` that maps the new frames. Each must succeed
//! before the next: Xen takes only unmapped frames, and what a refused exchange leaves must be
//! known before it is mapped again.
#![expect(unsafe_code, reason = "takes frames out of the direct mapping that it owns (I-1, I-2)")]

use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::{
    Batch, DomId, Errno, Error as CallError, FrameAccess, Full, Machine, Mfn, MmuExtOp, MmuUpdate,
    PAGE_SIZE, Pfn, Pte, PteFlags, Slot,
};
use p2m::{DirectEntries, P2m, Pfns};

use crate::address::{BusAddr, DmaMask};
use crate::contiguous::GuestBytes;
use crate::exchange_error::ExchangeError;

/// Memory to work with, from the caller. The larger it is, the fewer traps operations need.
#[derive(Debug)]
pub struct Scratch<'a, 'b> {
    /// One update for each frame that is exchanged at once, and one extended operation.
    pub batch: &'a mut Batch<'b>,
    /// Two words for each frame.
    pub extents: &'a mut [Extent],
}

impl Scratch<'_, '_> {
    /// Returns how many frames fit at once.
    pub(crate) fn frames_max(&self) -> u64 {
        self.batch.updates_max().min(self.extents.len() / 2) as u64
    }
}

/// The two sides of an exchange: frames in runs of one order, for as many in runs of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub(crate) given: u32,
    pub(crate) taken: u32,
    /// The addresses wanted for those taken.
    pub(crate) mask: DmaMask,
}

impl Orders {
    /// Returns the larger order. Frames are exchanged in whole runs of it.
    pub(crate) fn larger(self) -> u32 {
        self.given.max(self.taken)
    }

    /// Returns an error if the mask reaches no run of this length. Xen is not asked then, because
    /// it takes a mask of 0 bits for any address.
    pub(crate) const fn impossible(self) -> Option<ExchangeError> {
        let Self { taken, mask, .. } = self;
        match mask.reaches(BusAddr::from_raw(0), (PAGE_SIZE as u64) << taken) {
            true => None,
            false => Some(ExchangeError::NoRun { order: taken, mask }),
        }
    }
}

/// The outcome of an exchange.
#[derive(Debug)]
pub(crate) struct Part {
    /// How many frames, from the first on, are as they should be.
    pub(crate) made: u64,
    /// Whether the direct mapping has all frames, and new ones are filled with zeroes.
    pub(crate) is_usable: bool,
    pub(crate) result: Result<(), ExchangeError>,
}

/// Exchanges `pfns`, which fit the scratch and belong to the caller's token.
pub(crate) fn exchange<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    orders: Orders,
    scratch: &mut Scratch<'_, '_>,
) -> Part {
    let given = check_given(direct.guest().p2m(), pfns, orders);
    if let Err(error) = given.and_then(|()| plan_unmapping(direct, pfns, scratch.batch)) {
        scratch.batch.clear();
        return Part { made: 0, is_usable: true, result: Err(error) };
    }
    // SAFETY: the frames are the caller's token's (I-1). They leave the direct mapping only while
    // this function runs, and no Rust object is in them.
    if let Err(error) = unsafe { scratch.batch.submit(direct.guest().machine()) } {
        scratch.batch.invert();
        // SAFETY: the entries become what they were.
        let undone = unsafe { scratch.batch.submit(direct.guest().machine()) };
        scratch.batch.clear();
        let result = Err(ExchangeError::Refused { pfn: pfns.start, error });
        return Part { made: 0, is_usable: undone.is_ok(), result };
    }
    let (done, refusal) = ask(direct, pfns, orders, scratch.extents);
    let recorded = record(direct, Pfns::new(pfns.start, done), orders, scratch.extents);
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

/// Checks that the given runs are contiguous: Xen takes all frames behind the first one of each.
fn check_given(p2m: &P2m<'_>, pfns: Pfns, orders: Orders) -> Result<(), ExchangeError> {
    if orders.given == 0 {
        return Ok(());
    }
    let len_bytes = PAGE_SIZE << orders.given;
    for run in 0..pfns.count >> orders.given {
        let pfn = Pfn::new(pfns.start.raw() + (run << orders.given));
        let (_, together) = GuestBytes { pfn, offset: 0, len_bytes }.contiguous(p2m)?;
        if together < len_bytes {
            return Err(ExchangeError::Scattered { pfn });
        }
    }
    Ok(())
}

/// Plans the removal of `pfns` from the direct mapping and every TLB.
fn plan_unmapping<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    batch: &mut Batch<'_>,
) -> Result<(), ExchangeError> {
    batch.clear();
    let no_room = |Full| ExchangeError::Scratch { frames: pfns.count };
    for pfn in pfns.iter() {
        let (slot, pte) = find_mapped(direct, pfn)?;
        batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()).map_err(no_room)?;
    }
    batch.op(MmuExtOp::tlb_flush_all()).map_err(no_room)
}

/// Finds the frame's entry in the direct mapping. It must be writable and map the frame that P2M
/// names.
fn find_mapped<M: FrameAccess>(
    direct: &mut DirectEntries<'_, M>,
    pfn: Pfn,
) -> Result<(Slot, Pte), ExchangeError> {
    let (slot, pte) = direct.find(pfn)?;
    let mfn = direct.guest().p2m().mfn(pfn)?;
    if !pte.is_writable() || pte.mfn() != mfn {
        return Err(ExchangeError::NotMapped { pfn, mfn, pte });
    }
    Ok((slot, pte))
}

/// Asks Xen. Returns how many frames it exchanged, and why not all of them.
fn ask<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfns: Pfns,
    orders: Orders,
    extents: &mut [Extent],
) -> (u64, Option<ExchangeError>) {
    let (given, taken) = match lists(direct.guest().p2m(), pfns, orders, extents) {
        Ok(lists) => lists,
        Err(error) => return (0, Some(error)),
    };
    let domain = DomId::SELF;
    let flags = orders.mask.reservation_flags();
    let give = Reservation { extents: given, order: orders.given, flags: 0, domain };
    let take = Reservation { extents: taken, order: orders.taken, flags, domain };
    // SAFETY: the frames are the caller's token's, and nothing maps them any more.
    let answer = unsafe {
        direct.guest().machine().memory_op(&mut MemoryOp::Exchange(Exchange { give, take }))
    };
    let done = match answer {
        Ok(done) => done,
        Err(error) => u64::from(error.done),
    };
    // Xen works in chunks of the larger order, and so does this.
    let frames = (done << orders.given).min(pfns.count) >> orders.larger() << orders.larger();
    let refusal = match answer {
        Ok(_) if frames == pfns.count => None,
        Ok(_) => Some(ExchangeError::Short { asked: pfns.count, done: frames }),
        Err(error) => Some(refusal(error, orders, Pfn::new(pfns.start.raw() + frames))),
    };
    (frames, refusal)
}

/// Returns the two lists of an exchange: mfns to give, pfns to fill.
fn lists<'e>(
    p2m: &P2m<'_>,
    pfns: Pfns,
    orders: Orders,
    extents: &'e mut [Extent],
) -> Result<(&'e mut [Extent], &'e mut [Extent]), ExchangeError> {
    let half = extents.len() / 2;
    let (given, taken) = extents.split_at_mut(half);
    let mut give = 0;
    let mut take = 0;
    for (at, pfn) in (0u64..).zip(pfns.iter()) {
        if at.is_multiple_of(1 << orders.given) {
            given[give] = Extent::from_mfn(p2m.mfn(pfn)?);
            give += 1;
        }
        if at.is_multiple_of(1 << orders.taken) {
            taken[take] = Extent::from_pfn(pfn);
            take += 1;
        }
    }
    Ok((&mut given[..give], &mut taken[..take]))
}

/// Returns the limit that an errno of `XENMEM_exchange` means. `pfn` begins the chunk refused.
fn refusal(error: CallError, orders: Orders, pfn: Pfn) -> ExchangeError {
    match error.errno {
        Errno::EPERM => ExchangeError::OrderLimit { order: orders.larger() },
        Errno::ENOMEM => ExchangeError::NoRun { order: orders.taken, mask: orders.mask },
        Errno::EINVAL => ExchangeError::InUse { pfn },
        _ => ExchangeError::Call { pfn, error },
    }
}

/// Records the new frames, and checks that they are what was asked for and that M2P knows them.
fn record<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfns: Pfns,
    orders: Orders,
    extents: &[Extent],
) -> Result<(), ExchangeError> {
    let taken = &extents[extents.len() / 2..];
    let mut result = Ok(());
    for (at, pfn) in (0u64..).zip(pfns.iter()) {
        let run = usize::try_from(at >> orders.taken).unwrap_or(usize::MAX);
        let within = at & ((1 << orders.taken) - 1);
        // All are recorded, whatever is wrong with one: the guest has them now.
        let first = taken.get(run).map_or(Mfn::new(u64::MAX), |extent| extent.mfn());
        let mfn = Mfn::new(first.raw().saturating_add(within));
        // SAFETY: Xen says that it exchanged the frame of the pfn, which a token stands for (I-1).
        let recorded = unsafe { direct.guest().p2m().replace(pfn, mfn) }
            .map(drop)
            .map_err(ExchangeError::from);
        let right = recorded.and_then(|()| check(direct, pfn, mfn, first, orders));
        result = result.and(right);
    }
    result
}

/// Checks a new frame.
fn check<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfn: Pfn,
    mfn: Mfn,
    first: Mfn,
    orders: Orders,
) -> Result<(), ExchangeError> {
    let found = direct.guest().machine().machine_to_phys(mfn);
    if found != Some(pfn) {
        return Err(ExchangeError::M2p { pfn, mfn, found });
    }
    let Orders { taken: order, mask, .. } = orders;
    let right = BusAddr::new(first, 0).is_aligned(order)
        && mask.reaches(BusAddr::new(mfn, 0), PAGE_SIZE as u64);
    if right { Ok(()) } else { Err(ExchangeError::WrongFrame { pfn, mfn, order, mask }) }
}

/// Maps those of `pfns` that the direct mapping does not have, as P2M says. Then reads back that it
/// has all.
///
/// # Hypercalls
/// One `mmu_update`; none if nothing is missing.
pub(crate) fn map<M: Machine>(
    direct: &mut DirectEntries<'_, M>,
    pfns: Pfns,
    batch: &mut Batch<'_>,
) -> Result<(), ExchangeError> {
    batch.clear();
    let no_room = |Full| ExchangeError::Scratch { frames: pfns.count };
    for pfn in pfns.iter() {
        let (slot, pte) = direct.find(pfn)?;
        if !pte.is_present() {
            let flags = direct.guest().machine().offered(PteFlags::KERNEL_RW);
            let new = Pte::new(direct.guest().p2m().mfn(pfn)?, flags);
            batch.update(MmuUpdate::set(slot, new), pte.raw()).map_err(no_room)?;
        }
    }
    // SAFETY: frames of the caller's token at their own places (I-2, I-3).
    if let Err(error) = unsafe { batch.submit(direct.guest().machine()) } {
        batch.clear();
        return Err(ExchangeError::Refused { pfn: pfns.start, error });
    }
    for pfn in pfns.iter() {
        find_mapped(direct, pfn)?;
    }
    Ok(())
}

/// Fills frames with zeroes: Xen hands them out with their last owner's contents.
pub(crate) fn wipe<M: Machine>(
    direct: &DirectEntries<'_, M>,
    pfns: Pfns,
) -> Result<(), ExchangeError> {
    for pfn in pfns.iter() {
        // SAFETY: a frame of the caller's token, and mapped (I-1).
        unsafe { direct.guest().machine().clear_frame(pfn) }?;
    }
    Ok(())
}
