//! Tables that are pinned by themselves, besides the root: those from a pool, and the L1 tables of
//! a tree that is edited while other vCPUs walk it. Such a table stays validated when unlinked.
//!
//! The entry that leads to the table carries the mark. While a tree is live, pin and mark change
//! together, table by table, so wherever Xen refuses, all marks are right. When a tree ends, the
//! pins go first. The marks stay until everything else has worked, because an undo needs them to
//! pin tables again. Plain stores clear them in the loose tree.
#![expect(unsafe_code, reason = "pins and unpins tables that belong to the tree (I-4)")]

use hypercall::{Batch, Level, Machine, Mfn, MmuExtOp, MmuUpdate, Pte, Refused, Slot};

use crate::doubt::Doubt;
use crate::error::{NotDone, PinFailure};
use crate::marks::{Held, held, held_table};
use crate::pgd::{Holds, Pgd, Pinned, Roots};
use crate::tables::{Part, Place};
use p2m::Guest;

impl Pgd<Pinned> {
    /// Pins every L1 table by itself, too. Moving or unlinking an L1 table later does not validate
    /// it again. Returns the number newly pinned.
    ///
    /// # Errors
    /// [`Refused`] with the failure, and what stopped the undo, if anything. The tables before it
    /// are pinned by themselves, and every mark is right.
    ///
    /// # Hypercalls
    /// For T tables, a batch of B updates and O extended operations: 2 ceil(T / min(B, O, 64)), an
    /// `mmuext_op` and an `mmu_update` in turn. One more after a refusal.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 1000 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages); // two tables of level 1
    /// assert_eq!(pgd.hold_l1_tables(&tools.guest, &mut tools.batch)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hold_l1_tables<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<u64, Refused<Result<(), PinFailure>, PinFailure>> {
        self.put_right(guest).map_err(PinFailure::from)?;
        self.holds = Holds::Tables;
        let items = [None; CHUNK];
        let mut holding = Holding { guest, batch, items, pending: 0, done: 0, undone: Ok(()) };
        let tables = Part::user_half(self.root()).above(Level::L1);
        let held = tables.links(guest, &mut |link| holding.add(link));
        match held.and_then(|()| holding.submit()) {
            Ok(()) => Ok(holding.done),
            Err(error) => {
                let value = holding.undone;
                if value.is_err() {
                    Doubt::TABLES.note(&mut self.doubt);
                }
                Err(Refused { value, error })
            }
        }
    }
}

/// Tables that change together.
const CHUNK: usize = 64;

/// L1 tables that are being pinned by themselves.
struct Holding<'a, 'b, 'c, M> {
    guest: &'a Guest<'c, M>,
    batch: &'a mut Batch<'b>,
    /// The slots and values of the links.
    items: [Option<(Slot, Pte)>; CHUNK],
    pending: usize,
    done: u64,
    /// Whether the undo failed, if anything was refused.
    undone: Result<(), PinFailure>,
}

impl<M: Machine> Holding<'_, '_, '_, M> {
    fn add(&mut self, link: Place) -> Result<(), PinFailure> {
        if link.level > Level::L2 || held(link.pte).is_some() {
            return Ok(());
        }
        let room = self.batch.updates_max().min(self.batch.ops_max()).min(CHUNK);
        if self.pending == room {
            self.submit()?;
        }
        let slot = self.guest.slot(link.table, link.index())?;
        let place = self.items.get_mut(self.pending).filter(|_| room > 0);
        *place.ok_or(PinFailure::BatchTooSmall)? = Some((slot, link.pte));
        self.pending += 1;
        Ok(())
    }

    /// Sends the pins, then the marks of those that Xen took.
    fn submit(&mut self) -> Result<(), PinFailure> {
        let pending = core::mem::take(&mut self.pending);
        let items = &self.items[..pending];
        let items = || items.iter().flatten().copied();
        self.batch.clear();
        for (_, pte) in items() {
            self.batch.op(MmuExtOp::pin(Level::L1, pte.mfn()))?;
        }
        // SAFETY: the tables belong to the tree (I-4), whose entries hold them all the while.
        let pins = unsafe { self.batch.submit(self.guest.machine()) };
        let pinned = if pins.is_ok() { pending } else { self.batch.applied().count() };

        self.batch.clear();
        for (slot, pte) in items().take(pinned) {
            let flags = pte.flags().union(held_table(Held::InPlace));
            let update = MmuUpdate::set(slot, pte.with_flags(flags));
            self.batch.update(update, pte.raw())?;
        }
        // SAFETY: the entries keep their frames and all that Xen reads: only a mark changes.
        let marks = unsafe { self.batch.submit(self.guest.machine()) };
        let marked = if marks.is_ok() { pinned } else { self.batch.applied().count() };
        self.done += marked as u64;

        self.batch.clear();
        for (_, pte) in items().take(pinned).skip(marked) {
            self.batch.op(MmuExtOp::unpin(pte.mfn()))?;
        }
        // SAFETY: takes back the pins without a mark.
        let undone = unsafe { self.batch.submit(self.guest.machine()) };
        self.undone = undone.map_err(|refused| PinFailure::Call(refused.error));
        let table = |at: usize, error| {
            let mfn = items().nth(at).map(|(_, pte)| pte.mfn());
            refused_table(self.guest, Level::L1, mfn, error)
        };
        match (pins.err(), marks.err()) {
            (Some(refused), _) => Err(table(pinned, refused.error)),
            (None, Some(refused)) => Err(table(marked, refused.error)),
            (None, None) => Ok(()),
        }
    }
}

/// Returns the refusal of one table.
fn refused_table<M: Machine>(
    guest: &Guest<'_, M>,
    level: Level,
    mfn: Option<Mfn>,
    error: hypercall::Error,
) -> PinFailure {
    let pfn = mfn.and_then(|mfn| guest.pfn(mfn).ok());
    match (pfn, mfn) {
        (Some(pfn), Some(mfn)) => PinFailure::Table { level, pfn, mfn, error },
        _ => PinFailure::Call(error),
    }
}

/// Unpins every table of `lowest` and higher levels that is pinned by itself. The root still holds
/// them, and the marks stay. Returns how many there were. On failure all are pinned as before, as
/// far as the undo says.
///
/// # Hypercalls
/// For H such tables and a batch of O extended operations: ceil(H / O).
pub(crate) fn release<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    lowest: Level,
    batch: &mut Batch<'_>,
) -> Result<u64, NotDone> {
    let mut done = 0;
    let op = |link: Place| MmuExtOp::unpin(link.pte.mfn());
    match on_held(guest, roots, lowest, u64::MAX, op, batch, &mut done) {
        Ok(()) => Ok(done),
        Err(error) => Err(Refused { value: take_again(guest, roots, lowest, done, batch), error }),
    }
}

/// Pins the first `count` tables again that [`release`] has unpinned: those that carry the mark.
/// All are read-only.
pub(crate) fn take_again<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    lowest: Level,
    count: u64,
    batch: &mut Batch<'_>,
) -> Result<(), PinFailure> {
    if count == 0 {
        return Ok(());
    }
    let op = |link: Place| MmuExtOp::pin(link.below(), link.pte.mfn());
    let mut done = 0;
    on_held(guest, roots, lowest, count, op, batch, &mut done)
}

/// Submits `op` for the first `limit` tables of `lowest` and higher levels that carry the mark.
/// Adds to `done` how many Xen has done.
fn on_held<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    lowest: Level,
    limit: u64,
    op: impl Fn(Place) -> MmuExtOp,
    batch: &mut Batch<'_>,
    done: &mut u64,
) -> Result<(), PinFailure> {
    let mut left = limit;
    batch.clear();
    Part::user_half(roots.kernel)
        .above(lowest)
        .links(guest, &mut |link| {
            if left == 0 || held(link.pte).is_none() {
                return Ok(());
            }
            left -= 1;
            if batch.ops_room() == 0 {
                submit(guest, batch, done)?;
            }
            Ok::<_, PinFailure>(batch.op(op(link))?)
        })
        .and_then(|()| submit(guest, batch, done))
        .inspect_err(|_| batch.clear())
}

fn submit<M: Machine>(
    guest: &Guest<'_, M>,
    batch: &mut Batch<'_>,
    done: &mut u64,
) -> Result<(), PinFailure> {
    let all = batch.ops_max() - batch.ops_room();
    // SAFETY: the tables belong to the tree (I-4). A pin changes no mapping, and an unpinned table
    // stays a table while the root holds it.
    match unsafe { batch.submit(guest.machine()) } {
        Ok(()) => {
            *done += all as u64;
            Ok(())
        }
        Err(refused) => {
            *done += batch.applied().count() as u64;
            Err(PinFailure::Call(refused.error))
        }
    }
}
