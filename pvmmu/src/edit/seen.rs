//! The accessed and dirty bits that the CPU sets in entries while they change.
//!
//! Another vCPU may set either between the read of an entry and its change. Where the entry keeps
//! its place, Xen adds those that are set there to the new one (`MMU_PT_UPDATE_PRESERVE_AD`). That
//! is asked for only where a bit is not set already. No request returns the old entry. So where the
//! bits move to another entry, or are cleared, write access is removed first, up to the last TLB.
//! After that no CPU sets a dirty bit, and it can be read. An accessed bit that is set still is
//! lost.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half, which belongs to the address space (I-4)"
)]

use hypercall::commands::mmu;
use hypercall::{
    BatchError, FrameSource, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte, PteFlags, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use super::{Edit, PART};
use crate::doubt::{Doubt, Moving, unprotected};
use crate::entries::{Change, SEEN, check_present};
use crate::flush::Flush;
use crate::map_error::MapError;
use crate::marks::{COPY_ON_WRITE, FOREIGN};
use crate::pages::{Pages, Run};
use crate::path::{Found, va_in};
use crate::room::Room;
use crate::tools::{Presence, Tools};
use p2m::{Guest, WalkError};

/// Clears entries except for the bits that the CPU has set.
struct ClearKeeping;

impl Change for ClearKeeping {
    const CLEARS: bool = true;
    // What the CPU has set is in entries that Xen writes.
    const ENTRY_BY_ENTRY: bool = true;

    fn of(&self, _: Pte) -> Pte {
        Pte::ABSENT
    }

    fn command(_: Pte) -> u64 {
        mmu::PRESERVE_AD
    }
}

/// A move of pages, within one L1 table at both places.
#[derive(Clone, Copy)]
pub(super) struct Shift {
    pub(super) source: Pfn,
    pub(super) from: GuestVa,
    pub(super) target: Pfn,
    pub(super) to: GuestVa,
}

impl Shift {
    /// Returns the page whose entry `update` was to change.
    fn va_of<M: Machine>(self, guest: &Guest<'_, M>, update: MmuUpdate) -> Option<GuestVa> {
        let table = guest.pfn(update.frame()).ok()?;
        let places = [(self.source, self.from), (self.target, self.to)];
        let (_, va) = places.into_iter().find(|(known, _)| *known == table)?;
        va_in(Level::L1, va.raw(), update)
    }

    /// Returns what to note for `count` pages if the undo is refused.
    pub(super) fn moving(self, count: usize) -> Moving {
        let Self { from, to, .. } = self;
        let count = u16::try_from(count).unwrap_or(PART);
        Moving { level: Level::L1, count, twice: None, from, to }
    }
}

/// Returns whether a CPU may write a page with this entry, and set its dirty bit later.
pub(super) const fn may_become_dirty(pte: Pte) -> bool {
    let flags = pte.flags();
    pte.is_writable() && !flags.contains(PteFlags::DIRTY) && !flags.contains(FOREIGN)
}

/// Returns the slots in `table` from that of `va` on.
pub(super) fn slots<M: Machine>(
    guest: &Guest<'_, M>,
    table: Pfn,
    va: GuestVa,
) -> Result<impl Iterator<Item = Slot> + use<M>, WalkError> {
    let (table, first) = (guest.mfn(table)?, u16::from(Level::L1.index_of(va)));
    Ok((first..).map(move |index| Slot { table, index: PageTableIndex::new_truncate(index) }))
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Unmaps `pages` and reports whether each was accessed and written, up to the last moment. Xen
    /// keeps both bits in the entry that it clears, where they are read. An entry that cannot be
    /// read then counts as both.
    ///
    /// # Errors
    /// As for [`Pgd::unmap`](crate::Pgd::unmap).
    ///
    /// # Hypercalls
    /// As for [`Pgd::edit`](crate::Pgd::edit), one element a page. The two bits stay in the absent
    /// entries.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let mut written = 0;
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.unmap_reading_ad(pages, &mut |_, flags| {
    ///         written += u32::from(flags.contains(PteFlags::DIRTY));
    ///     })
    /// })?;
    /// assert_eq!(written, 8); // entries that were made with the bit set, as here, keep it
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unmap_reading_ad(
        &mut self,
        pages: Pages,
        report: &mut dyn FnMut(GuestVa, PteFlags),
    ) -> Result<(), MapError> {
        for part in pages.runs(PART)? {
            let pages = Pages { start: part.va, count: part.count.into() };
            self.rewrite(pages, &ClearKeeping)?;
            self.submit()?;
            // What cannot be read may have been written.
            let mut left = [Pte::ABSENT.with_flags(SEEN); PART as usize];
            let left = &mut left[..usize::from(part.count)];
            let _ = self.read_run(part, left);
            for (at, pte) in (0..).zip(left) {
                report(pages.at(at)?, pte.flags() & SEEN);
            }
        }
        Ok(())
    }

    /// Reads the entries of `run`, pages of one table.
    fn read_run(&mut self, run: Run, into: &mut [Pte]) -> Result<(), WalkError> {
        let guest = self.tools.guest;
        let Found::Table(table) = self.path.seek(&guest, run.va)? else {
            return Err(WalkError::NotMapped(run.va));
        };
        let first = PageTableIndex::new_truncate(run.first());
        Ok(guest.machine().read_entries(table, first, into)?)
    }

    /// Clears the accessed and dirty bits of `pages`, and reports what was set in each up to the
    /// last moment. A page that is written afterwards is marked again, and no earlier write is
    /// missed. An accessed bit that is set meanwhile is lost.
    ///
    /// Clean, writable pages lose write access for a moment: see [`Presence::Steady`].
    ///
    /// # Errors
    /// As for [`Pgd::unmap`](crate::Pgd::unmap). The pages that follow are neither reported nor
    /// cleared.
    ///
    /// # Hypercalls
    /// For n pages and a batch of B updates: at most 2 ceil(n / min(B, 64)) multicalls of an
    /// `mmu_update` and the flush, and one more for each border of a table. Half of that if no page
    /// is accessed, clean and writable.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let mut written = [0, 0];
    /// for count in &mut written {
    ///     pgd.edit(&mut tools, |edit| {
    ///         edit.clear_reading_ad(pages, &mut |_, flags| {
    ///             *count += u32::from(flags.contains(PteFlags::DIRTY));
    ///         })
    ///     })?;
    /// }
    /// assert_eq!(written, [8, 0]); // they were made with the bit set
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_reading_ad(
        &mut self,
        pages: Pages,
        report: &mut dyn FnMut(GuestVa, PteFlags),
    ) -> Result<(), MapError> {
        Room::check(&self.tools.batch)?;
        let most =
            u16::try_from(self.tools.batch.updates_max()).map_or(PART, |room| room.min(PART));
        for part in pages.runs(most)? {
            self.submit()?;
            let guest = self.tools.guest;
            let Found::Table(source) = self.path.seek(&guest, part.va)? else {
                return Err(MapError::NotMapped(part.va));
            };
            let first = PageTableIndex::new_truncate(part.first());
            let mut entries = [Pte::ABSENT; PART as usize];
            let entries = &mut entries[..usize::from(part.count)];
            guest.machine().read_entries(source, first, entries)?;
            check_present(part, entries)?;
            let shift = Shift { source, from: part.va, target: source, to: part.va };
            self.clear_seen(shift, entries)?;
            self.done += u64::from(part.count);
            let pages = Pages { start: part.va, count: part.count.into() };
            for (at, pte) in (0..).zip(entries) {
                report(pages.at(at)?, pte.flags() & SEEN);
            }
        }
        Ok(())
    }

    /// Clears what the CPU has set in `entries`, and leaves it there for the caller.
    fn clear_seen(&mut self, shift: Shift, entries: &mut [Pte]) -> Result<(), MapError> {
        let (mut before, guest) = ([Pte::ABSENT; PART as usize], self.tools.guest);
        let before = &mut before[..entries.len()];
        before.copy_from_slice(entries);
        let is_used = self.tools.presence == Presence::Steady;
        let unseen = |pte: &Pte| may_become_dirty(*pte) && pte.flags().contains(PteFlags::ACCESSED);
        let is_protected = is_used && before.iter().any(unseen);
        if is_protected {
            self.write_protect(shift, before)?;
            let first = Level::L1.index_of(shift.from);
            if let Err(error) = guest.machine().read_entries(shift.source, first, entries) {
                return Err(self.let_write(shift, before, error.into()));
            }
        }
        let cleared = |pte: Pte| {
            let pte = unprotected(pte).unwrap_or(pte);
            pte.with_flags(pte.flags().difference(SEEN))
        };
        // One that is clean and untouched stays: it may be written just now.
        let changed = self.change_moving(shift, entries, |pte, _| {
            let changes = pte.flags().intersects(SEEN) || unprotected(pte).is_some();
            changes.then(|| (mmu::NORMAL, cleared(pte)))
        });
        changed.map_err(|error| match error {
            MapError::NotUndone { .. } => error,
            error if is_protected => self.let_write(shift, before, error),
            error => error,
        })
    }

    /// Takes write access from those of `entries` that may become dirty, up to the last
    /// translation, and marks them.
    pub(super) fn write_protect(&mut self, shift: Shift, entries: &[Pte]) -> Result<(), MapError> {
        let mark = |pte: Pte| pte.with_flags(pte.flags() | COPY_ON_WRITE).read_only();
        self.change_moving(shift, entries, |pte, _| {
            may_become_dirty(pte).then(|| (mmu::PRESERVE_AD, mark(pte)))
        })
    }

    /// Gives write access back to what has not moved because of `error`. If that fails, too, the
    /// next change does it first. Returns the error to report.
    #[cold]
    pub(super) fn let_write(&mut self, shift: Shift, entries: &[Pte], error: MapError) -> MapError {
        let Err(again) = self.try_let_write(shift, entries) else { return error };
        let moving = Some(shift.moving(entries.len()));
        Doubt { moving, ..Doubt::FLUSH }.note(self.doubt);
        let protected = entries.iter().filter(|pte| may_become_dirty(**pte)).count();
        let left = u32::try_from(protected).unwrap_or(u32::MAX);
        match again {
            MapError::Refused { error, .. } | MapError::RefusedCall(error) => {
                MapError::NotUndone { left, error: error.error }
            }
            // It is noted already, or Xen was not asked.
            again => again,
        }
    }

    /// Gives write access back to what has not moved, with the bits that the CPU set at the new
    /// place.
    fn try_let_write(&mut self, shift: Shift, entries: &[Pte]) -> Result<(), MapError> {
        let mut there = [Pte::ABSENT; PART as usize];
        let there = &mut there[..entries.len()];
        let machine = self.tools.guest.machine();
        machine.read_entries(shift.target, Level::L1.index_of(shift.to), there)?;
        self.change_moving(shift, entries, |pte, at| {
            let left = there[at];
            let seen = if left.is_present() { PteFlags::empty() } else { left.flags() & SEEN };
            let writable = pte.with_flags(pte.flags() | seen);
            may_become_dirty(pte).then_some((mmu::PRESERVE_AD, writable))
        })
    }

    /// Changes the flags of entries at their old place in one request, each by the command that
    /// `change` names.
    fn change_moving(
        &mut self,
        shift: Shift,
        entries: &[Pte],
        change: impl Fn(Pte, usize) -> Option<(u64, Pte)>,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let Tools { batch, reach, .. } = &mut *self.tools;
        batch.clear();
        let slots = slots(&guest, shift.source, shift.from)?;
        for (at, (slot, pte)) in slots.zip(entries).enumerate() {
            if let Some((command, new)) = change(*pte, at) {
                let update = MmuUpdate::from_raw(slot.machine_address() | command, new.raw());
                batch.update(update, pte.raw())?;
            }
        }
        let mut flush = Flush::NONE;
        flush.add(shift.from, entries.len() as u64);
        flush.push(batch, *reach)?;
        // SAFETY: the pages stay with the address space (I-4), and keep their frames.
        let Err(error) = (unsafe { batch.submit(guest.machine()) }) else {
            batch.clear();
            return Ok(());
        };
        self.take_back_moving(shift, entries.len(), error)
    }

    /// Undoes what took effect of a refused batch of [`change_moving`](Self::change_moving) or
    /// [`exchange`](Self::exchange).
    pub(super) fn take_back_moving(
        &mut self,
        shift: Shift,
        count: usize,
        error: BatchError,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let refused = self.tools.batch.refused_update();
        self.tools.batch.invert();
        let moving = Some(shift.moving(count));
        self.path.forget();
        // No frame came in or goes out: nothing of the batch must be settled.
        self.undo(Doubt { moving, ..Doubt::FLUSH })?;
        Err(match refused.and_then(|update| shift.va_of(&guest, update)) {
            Some(va) => MapError::Refused { va, error },
            None => MapError::RefusedCall(error),
        })
    }
}
