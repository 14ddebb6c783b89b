//! Sends changes of live tables to Xen: makes frames read-only, sets entries, and undoes both after
//! a refusal.
#![expect(unsafe_code, reason = "sends changes that its callers vouch for (I-1, I-13)")]

use hypercall::{
    Batch, FrameAccess, GuestVa, Level, Machine, Mfn, MmuExtOp, MmuUpdate, Pfn, Pte, PteFlags, Slot,
};
use p2m::{DirectMap, Guest, Pfns, TableEntry, WalkError, walk};
use x86_64::structures::paging::PageTableIndex;

use crate::error::EarlyError;
use crate::uses::Access;

/// A change of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The entry.
    pub slot: Slot,
    /// Its value before.
    pub old: Pte,
    /// Its value afterwards.
    pub new: Pte,
}

impl Change {
    /// Returns the change that undoes this one.
    const fn back(self) -> Self {
        Self { slot: self.slot, old: self.new, new: self.old }
    }
}

/// What stopped a run of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopped {
    /// How many took effect before it.
    pub(crate) done: u64,
    pub(crate) failure: EarlyError,
}

impl Stopped {
    /// Names the frame of a run that changes the access to `frames`.
    fn protecting(mut self, mut frames: impl Iterator<Item = Pfn>, access: Access) -> Self {
        if let EarlyError::Link { error, .. } = self.failure
            && let Some(frame) = frames.nth(count(self.done))
        {
            self.failure = EarlyError::Protect { frame, access, error };
        }
        self
    }
}

/// Makes `tables`, which are filled, read-only. Then makes `changes`, which link them.
pub(crate) fn link<M: Machine, I: Iterator<Item = Result<Change, EarlyError>>>(
    guest: &Guest<'_, M>,
    tables: Pfns,
    changes: &impl Fn() -> I,
    batch: &mut Batch<'_>,
) -> Result<(), Stopped> {
    let all = protections(guest, tables.iter(), Access::ReadOnly).chain(changes());
    apply(guest, all, None, batch)
        .map_err(|stopped| stopped.protecting(tables.iter(), Access::ReadOnly))
}

/// Undoes the first `done` elements of a [`link`]. Unlinks tables before their frames become
/// writable, and before it looks up the entries of those.
pub(crate) fn unlink<M: Machine, I: Iterator<Item = Result<Change, EarlyError>>>(
    guest: &Guest<'_, M>,
    tables: Pfns,
    done: u64,
    changes: &impl Fn() -> I,
    batch: &mut Batch<'_>,
) -> Result<(), EarlyError> {
    let linked = count(done.saturating_sub(tables.count));
    if linked > 0 {
        let back = changes().take(linked).map(|change| change.map(Change::back));
        // A CPU may have used the new entries. Xen flushes what goes with a table, but nothing
        // that an L1 maps.
        let flush = Some(MmuExtOp::tlb_flush_all());
        apply(guest, back, flush, batch).map_err(|stopped| stopped.failure)?;
    }
    let protected = Pfns::new(tables.start, done.min(tables.count));
    protect(guest, protected.iter(), Access::Writable, batch).map_err(|stopped| stopped.failure)
}

/// Makes entries of the direct mapping read-only or writable: for the frames that [`PastPgt`]
/// returns, and for a port that gives the builder's tables back.
///
/// [`PastPgt`]: crate::PastPgt
///
/// # Errors
/// [`EarlyError::Protect`] names a frame, and those in front of it have changed. Any other error
/// means that an entry of the direct mapping cannot be found; frames in front of it have changed.
///
/// # Hypercalls
/// ceil(N / U) `mmu_update`, for N frames and room for U updates. Linux makes N.
///
/// # Safety
/// The caller owns the frames (I-1). No Rust object is in those that become read-only. Those that
/// become writable are not tables any more. Nothing is flushed: Xen does that when a frame that was
/// writable becomes a table, and until then a TLB may still let it be written.
///
/// ```
/// # use hypercall::BatchStorage;
/// # use p2m::Pfns;
/// # use pv_tests::booting::Booting;
/// # use xen_model::Role;
/// use early_pgt::{Access, set_access};
///
/// let booting = Booting::new(Role::DomU, 1 << 14);
/// let p2m = booting.p2m();
/// let guest = booting.guest(&booting.model, &p2m);
/// let slack = Pfns::new(booting.model.guest().first_free_page(), 4);
/// let mut storage = BatchStorage::<4, 1>::new();
/// // Nobody writes these four pages from here on.
/// unsafe { set_access(&guest, slack, Access::ReadOnly, &mut storage.batch()) }?;
/// # Ok::<(), early_pgt::EarlyError>(())
/// ```
pub unsafe fn set_access<M: Machine>(
    guest: &Guest<'_, M>,
    frames: Pfns,
    access: Access,
    batch: &mut Batch<'_>,
) -> Result<(), EarlyError> {
    protect(guest, frames.iter(), access, batch).map_err(|stopped| stopped.failure)
}

/// Gives `frames` this access in the direct mapping.
pub(crate) fn protect<M: Machine>(
    guest: &Guest<'_, M>,
    frames: impl Iterator<Item = Pfn> + Clone,
    access: Access,
    batch: &mut Batch<'_>,
) -> Result<(), Stopped> {
    apply(guest, protections(guest, frames.clone(), access), None, batch)
        .map_err(|stopped| stopped.protecting(frames, access))
}

/// Returns the changes that give `frames` this access in the direct mapping.
fn protections<M: FrameAccess>(
    guest: &Guest<'_, M>,
    frames: impl Iterator<Item = Pfn>,
    access: Access,
) -> impl Iterator<Item = Result<Change, EarlyError>> {
    let mut direct_map = DirectMap::default();
    frames.map(move |pfn| {
        let (slot, old) = direct_map.entry(guest, pfn)?;
        Ok(Change { slot, old, new: access.on(old) })
    })
}

/// Sends changes, as many at a time as there is storage for. `flush` goes with the last of them.
fn apply<M: Machine>(
    guest: &Guest<'_, M>,
    changes: impl Iterator<Item = Result<Change, EarlyError>>,
    flush: Option<MmuExtOp>,
    batch: &mut Batch<'_>,
) -> Result<(), Stopped> {
    batch.clear();
    let mut done = 0;
    for change in changes {
        let Change { slot, old, new } = change.map_err(|failure| Stopped { done, failure })?;
        if batch.room() == 0 {
            done = send(guest, batch, done)?;
        }
        let pushed = batch.update(MmuUpdate::set(slot, new), old.raw());
        pushed.map_err(|full| Stopped { done, failure: full.into() })?;
    }
    if let Some(flush) = flush {
        batch.op(flush).map_err(|full| Stopped { done, failure: full.into() })?;
    }
    send(guest, batch, done).map(drop)
}

/// Sends the batch behind `done` elements that took effect. Returns how many have then.
fn send<M: Machine>(
    guest: &Guest<'_, M>,
    batch: &mut Batch<'_>,
    done: u64,
) -> Result<u64, Stopped> {
    let updates = batch.updates() as u64;
    // SAFETY: each entry changed maps a frame of a buffer, which the caller owns, or the caller of
    // `finish` vouches for it.
    let Err(error) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(done + updates) };
    let done = done + batch.applied().count() as u64;
    let failure = match batch.unapplied().next() {
        Some((update, old)) => {
            // The value that is set, or was before the entry was emptied.
            let pte = if update.value() == 0 { old } else { update.value() };
            let mfn = Pte::from_raw(pte).mfn();
            EarlyError::Link { mfn, pfn: guest.pfn(mfn).ok(), error }
        }
        None => EarlyError::Flush(error),
    };
    batch.clear();
    Err(Stopped { done, failure })
}

/// Returns the entry for `va` in the table of `level` of the running tree.
pub(crate) fn entry<M: FrameAccess>(
    guest: &Guest<'_, M>,
    va: GuestVa,
    level: Level,
) -> Result<TableEntry, EarlyError> {
    let path = walk(guest, guest.kernel_root(), va)?;
    Ok(path.at(level).ok_or(WalkError::NotMapped(va))?)
}

/// Returns an entry that leads to a table of the direct map. Nothing is executed through it.
pub(crate) fn leads_to<M: FrameAccess>(guest: &Guest<'_, M>, table: Mfn) -> Pte {
    let flags = PteFlags::TABLE.union(PteFlags::NO_EXECUTE);
    Pte::new(table, guest.machine().offered(flags))
}

/// Returns the index of block `number` in the table above it.
pub(crate) const fn index(number: u64) -> PageTableIndex {
    PageTableIndex::new_truncate((number % 512) as u16)
}

/// Returns the number of elements, for an iterator.
pub(crate) fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
