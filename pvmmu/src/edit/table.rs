//! Takes an L1 table out of a live tree, changes it by plain stores, and puts it back if anything
//! is left in it.
//!
//! Two things make that possible. Xen drops the type of a table with its last reference, so its
//! frame can become writable once its entry is gone. And Xen flushes all TLBs when an entry above
//! L1 changes.

use hypercall::{
    BatchError, ENTRIES, Element, Entry, Frame, FrameSource, GuestVa, Level, Machine, MmuExtOp,
    MmuUpdate, Pfn, Pte, PteFlags, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use super::Edit;
use crate::access::Access;
use crate::cost::Population;
use crate::doubt::{Doubt, Moving};
use crate::entries::{EMPTY, Entries, population};
use crate::leaf::{lose, lose_table, release, release_all};
use crate::map_error::MapError;
use crate::marks::{Held, held, not_held};
use crate::obstacles::{Obstacles, Suspect};
use crate::ops::submit_ops;
use crate::pages::{Run, check_table};
use crate::path::{Found, Path, va_in};
use crate::pgd::Roots;
use crate::room::Room;
use crate::tables::{Part, Step};
use crate::tools::Tools;
use p2m::{Guest, WalkError};

/// A table that is linked nowhere, and writable.
#[derive(Clone, Copy)]
struct Unlinked {
    table: Pfn,
    /// The slot of the entry that led to it, and that entry.
    slot: Slot,
    link: Pte,
    /// The slot of its entry in the direct mapping, and that entry.
    direct: Slot,
    pte: Pte,
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Turns `old`, the contents of `table` on the path to `run.va`, into `new`, which differs in
    /// `run`. Nothing is pending. A table that is pinned by itself stays so, unless it ends.
    ///
    /// # Hypercalls
    /// One `mmu_update` of two elements if `new` is empty; the table then goes to the frames.
    /// Otherwise two. One more element each if the table is pinned by itself.
    pub(super) fn replace_table(
        &mut self,
        table: Pfn,
        run: Run,
        after: Population,
        old: &Entries,
        new: &Entries,
    ) -> Result<(), MapError> {
        Room::check(&self.tools.batch)?;
        let guest = self.tools.guest;
        let (slot, link) = self.path.entry(&guest, Level::L2, run.va)?;
        let (direct, pte) = self.direct_map.entry(&guest, table)?;
        let batch = &mut self.tools.batch;
        batch.clear();
        if held(link).is_some() {
            batch.op(MmuExtOp::unpin(link.mfn()))?;
        }
        batch.update(MmuUpdate::set(slot, Pte::ABSENT), link.raw())?;
        let writable = Access::Writable.apply(pte);
        batch.update(MmuUpdate::set(direct, writable), pte.raw())?;
        // SAFETY: the table is part of the user half (I-4), and only its entry led to it.
        if let Err(error) = unsafe { batch.submit(guest.machine()) } {
            let error = self.put_back_link(slot, link, run.va, error);
            self.lose_unlinked(table, link, run, old);
            return Err(error);
        }
        self.path.set(Level::L1, None);
        if after.total() == 0 {
            self.done += u64::from(run.count);
            release_all(&guest, old, &mut self.tools.frames);
            self.note_not_returned(link);
            // SAFETY: I-4: the entry was the table's only owner. It is gone from every TLB, and the
            // frame is writable again.
            self.tools.frames.of_tables().give(unsafe { Frame::claim(table) });
            return Ok(());
        }
        let unlinked = Unlinked { table, slot, link, direct, pte: writable };
        if let Err(error) = self.store_and_link(unlinked, run, old, new) {
            self.lose_unlinked(table, link, run, old);
            return Err(error);
        }
        self.done += u64::from(run.count);
        self.path.set(Level::L1, Some(table));
        for (old, new) in old[run.range()].iter().zip(&new[run.range()]) {
            if old.is_present() && !new.is_present() {
                release(&guest, *old, &mut self.tools.frames);
            }
        }
        Ok(())
    }

    /// Gives up what is not in the tree any more of a table with the entries `old`, after a
    /// refusal. If the undo has worked, that is nothing.
    #[cold]
    fn lose_unlinked(&mut self, table: Pfn, link: Pte, run: Run, old: &Entries) {
        let guest = self.tools.guest;
        self.path.forget();
        // In a tree that cannot be read, nothing counts as gone.
        let Ok(found) = self.path.seek(&guest, run.va) else { return };
        let linked = found == Found::Table(table);
        let mut now = EMPTY;
        let first = PageTableIndex::new(0);
        if linked && guest.machine().read_entries(table, first, &mut now).is_err() {
            return;
        }
        for (old, now) in old.iter().zip(&now) {
            if old.is_present() && (!now.is_present() || now.mfn() != old.mfn()) {
                lose(&guest, *old, &mut self.tools.frames);
            }
        }
        if !linked {
            lose_table(&guest, link, &mut self.tools.frames);
            self.note_not_returned(link);
        }
    }

    /// Counts the table behind `link` as not returned, if it is from the pool.
    fn note_not_returned(&mut self, link: Pte) {
        if let (Some(Held::Pooled(_)), Some(pool)) = (held(link), &mut self.tools.pool) {
            pool.note_not_returned(1);
        }
    }

    /// Takes `table`, which is linked for `va` and has `entries`, out for good.
    pub(crate) fn take_out(
        &mut self,
        table: Pfn,
        va: GuestVa,
        entries: &Entries,
    ) -> Result<(), MapError> {
        self.submit()?;
        self.path.seek(&self.tools.guest, va)?;
        let whole = Run { va, count: ENTRIES };
        let before = self.done;
        let nothing = Population::default();
        self.replace_table(table, whole, nothing, entries, &EMPTY)?;
        self.done = before + u64::from(population(entries).total());
        Ok(())
    }

    /// Moves the L1 table for `from` to `to`: see [`Pgd::move_table`](crate::Pgd::move_table).
    ///
    /// # Errors
    /// As for [`Pgd::move_table`](crate::Pgd::move_table).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 512 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let to = GuestVa::new(0x80_0000)?;
    /// pgd.edit(&mut tools, |edit| edit.move_table(pages.start, to))?;
    /// assert!(pgd.translate(&tools.guest, to)?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn move_table(&mut self, from: GuestVa, to: GuestVa) -> Result<(), MapError> {
        check_table(from)?;
        check_table(to)?;
        Room::check(&self.tools.batch)?;
        self.submit()?;
        let guest = self.tools.guest;
        let Found::Table(_) = self.path.seek(&guest, from)? else {
            return Err(MapError::NotMapped(from));
        };
        self.make_l2_table(to)?;
        self.path.seek(&guest, to)?;
        let (new_slot, absent) = self.path.entry(&guest, Level::L2, to)?;
        if absent.is_present() {
            return Err(MapError::Occupied { va: to, pte: absent });
        }
        self.path.seek(&guest, from)?;
        let (old_slot, link) = self.path.entry(&guest, Level::L2, from)?;
        self.path.forget();
        let batch = &mut self.tools.batch;
        batch.clear();
        batch.update(MmuUpdate::set(new_slot, link), absent.raw())?;
        batch.update(MmuUpdate::set(old_slot, Pte::ABSENT), link.raw())?;
        // SAFETY: the table stays with the address space (I-4), and so do its pages.
        let Err(error) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(()) };
        batch.invert();
        let moving = Moving { level: Level::L2, count: 1, twice: Some(0), from, to };
        self.undo(Doubt { moving: Some(moving), ..Doubt::FLUSH })?;
        Err(MapError::Refused { va: to, error })
    }

    /// Makes sure that there is an L2 table for `va`.
    fn make_l2_table(&mut self, va: GuestVa) -> Result<(), MapError> {
        let guest = self.tools.guest;
        if let Found::Missing(level @ (Level::L3 | Level::L4)) = self.path.seek(&guest, va)? {
            self.graft_from(Level::L2, level, Run { va, count: 0 }, PteFlags::empty())?;
        }
        Ok(())
    }

    /// Undoes what took effect of a refused unlinking: first the entries, and then, by itself, the
    /// table's own pin. So the undo needs no more room than what it undoes.
    fn put_back_link(&mut self, slot: Slot, link: Pte, va: GuestVa, error: BatchError) -> MapError {
        self.path.forget();
        let batch = &mut self.tools.batch;
        let was_unpinned = batch.applied().any(|done| matches!(done, Element::Op(_)));
        batch.invert();
        if let Err(error) = self.undo(Doubt::TABLES) {
            return error;
        }
        match (was_unpinned, held(link)) {
            (true, Some(held)) => match self.pin_again(slot, link, held) {
                Ok(()) => MapError::Refused { va, error },
                Err(error) => error,
            },
            _ => MapError::Refused { va, error },
        }
    }

    /// Pins the table behind `link`, which the tree holds, by itself again. If Xen refuses, removes
    /// the mark: nothing could ever unpin a table with a mark but no pin.
    fn pin_again(&mut self, slot: Slot, link: Pte, held: Held) -> Result<(), MapError> {
        let Tools { guest, batch, pool, .. } = &mut *self.tools;
        let pin = MmuExtOp::pin(held.level(), link.mfn());
        // SAFETY: the table is part of the user half (I-4), and is validated and linked.
        let Err(error) = (unsafe { submit_ops(guest.machine(), &[pin]) }) else { return Ok(()) };
        batch.clear();
        batch.update(MmuUpdate::set(slot, not_held(link)), link.raw())?;
        // SAFETY: the entry keeps its table: only the mark changes.
        if unsafe { batch.submit(guest.machine()) }.is_ok() {
            if let (Held::Pooled(_), Some(pool)) = (held, pool) {
                pool.note_not_returned(1);
            }
        } else {
            Doubt::TABLES.note(self.doubt);
        }
        self.tools.batch.clear();
        Err(MapError::NotUndone { left: 1, error })
    }

    /// Stores the entries of `run` and puts the table back; if that fails, with its old entries.
    fn store_and_link(
        &mut self,
        unlinked: Unlinked,
        run: Run,
        old: &Entries,
        new: &Entries,
    ) -> Result<(), MapError> {
        let Unlinked { table, link, .. } = unlinked;
        if let Err(error) = self.store(table, run, new) {
            return self.link_again(unlinked, error);
        }
        let Err(error) = self.link_table(unlinked)? else { return Ok(()) };
        let base = run.va.raw() >> Level::L2.shift() << Level::L2.shift();
        let suspect = Suspect { level: Level::L1, pfn: table, base };
        // Before the undo makes the table's own direct mapping writable.
        let guest = self.tools.guest;
        let found = Obstacles::of_tables(&guest, self.roots, [suspect].into_iter());
        self.path.forget();
        let batch = &mut self.tools.batch;
        if batch.applied().any(|done| matches!(done, Element::Op(_))) {
            // SAFETY: the table is nobody else's (I-4). The pin has just been made.
            let unpinned = unsafe { submit_ops(guest.machine(), &[MmuExtOp::unpin(link.mfn())]) };
            if let Err(error) = unpinned {
                batch.clear();
                Doubt::TABLES.note(self.doubt);
                return Err(MapError::NotUndone { left: 1, error });
            }
        }
        batch.invert();
        self.undo(Doubt::TABLES)?;
        self.store(table, run, old)?;
        self.link_again(unlinked, link_refused(run.va, found, error))
    }

    /// Puts a table back with its old entries after `error`.
    #[cold]
    fn link_again(&mut self, unlinked: Unlinked, error: MapError) -> Result<(), MapError> {
        match self.link_table(unlinked)? {
            Ok(()) => Err(error),
            Err(again) => {
                self.tools.batch.clear();
                Doubt::TABLES.note(self.doubt);
                Err(MapError::NotUndone { left: 1, error: again.error })
            }
        }
    }

    fn store(&self, table: Pfn, run: Run, entries: &Entries) -> Result<(), MapError> {
        let first = PageTableIndex::new_truncate(run.first());
        let machine = self.tools.guest.machine();
        // SAFETY: the table is linked nowhere, and belongs to the address space (I-4).
        Ok(unsafe { machine.write_entries(table, first, &entries[run.range()]) }?)
    }

    /// Makes a table read-only and links it as it was, with a pin of its own if its link carries
    /// the mark. The outer result says whether Xen could be asked.
    fn link_table(&mut self, unlinked: Unlinked) -> Result<Result<(), BatchError>, MapError> {
        let Unlinked { slot, link, direct, pte, .. } = unlinked;
        let guest = self.tools.guest;
        let batch = &mut self.tools.batch;
        batch.clear();
        batch.update(MmuUpdate::set(direct, Access::ReadOnly.apply(pte)), pte.raw())?;
        batch.update(MmuUpdate::set(slot, link), Pte::ABSENT.raw())?;
        if let Some(held) = held(link) {
            batch.op(MmuExtOp::pin(held.level(), link.mfn()))?;
        }
        // SAFETY: the table belongs to the address space (I-4). Its entries were there, or were
        // asked for.
        Ok(unsafe { batch.submit(guest.machine()) })
    }
}

/// Returns the error for a table that Xen refused.
pub(super) fn link_refused(
    va: GuestVa,
    found: Option<(Suspect, Obstacles)>,
    error: BatchError,
) -> MapError {
    match found {
        None => MapError::Refused { va, error },
        Some((Suspect { level, pfn, .. }, obstacles)) => {
            MapError::LinkRefused { va, level, table: pfn, error, obstacles }
        }
    }
}

/// Returns the first address that `update`'s entry spans, if it is one of the tree's. `path` knows
/// the table that was read last. If a batch changes several tables, and an earlier one is refused,
/// the tables above are read.
pub(super) fn va_of<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    path: &Path,
    update: MmuUpdate,
) -> Option<GuestVa> {
    let table = guest.pfn(update.frame()).ok()?;
    if roots.user == Some(table) {
        return va_in(Level::L4, 0, update);
    }
    let mut found = path.va_of(table, update);
    if found.is_none() {
        let tables = Part::user_half(roots.kernel).above(Level::L1);
        // What cannot be read is not found.
        let _ = tables.entries(guest, &mut |place| {
            if place.pte.decode(place.level) == Entry::Table(update.frame()) {
                found = va_in(place.below(), place.va.raw(), update);
                return Ok(Step::Out);
            }
            Ok::<_, WalkError>(place.into_known(guest))
        });
    }
    found
}
