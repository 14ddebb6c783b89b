//! Changes and clears entries of a live tree.

use hypercall::{
    ENTRIES, FrameSource, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte, PteFlags, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use super::{Edit, PART};
use crate::cost::{COSTS, Population, Strategy};
use crate::entries::{
    Change, Clear, EMPTY, Entries, Flags, any_foreign, any_shared, check_present, keeping_seen,
    population, with_table_flags,
};
use crate::flush::Flush;
use crate::map_error::MapError;
use crate::marks::FOREIGN;
use crate::pages::{Pages, Run, check_page, offered};
use crate::path::Found;
use crate::room::Room;
use crate::tools::Presence;

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Unmaps `pages`: see [`Pgd::unmap`](crate::Pgd::unmap).
    ///
    /// # Errors
    /// As for [`Pgd::unmap`](crate::Pgd::unmap).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let (first, last) = (pages.at(0)?, pages.at(7)?);
    /// // Both go to Xen together.
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.unmap(Pages::one(first))?;
    ///     edit.unmap(Pages::one(last))
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unmap(&mut self, pages: Pages) -> Result<(), MapError> {
        self.rewrite(pages, &Clear)
    }

    /// Gives `pages` new flags: see [`Pgd::protect`](crate::Pgd::protect).
    /// [`clear_reading_ad`](Self::clear_reading_ad) clears accessed and dirty bits.
    ///
    /// # Errors
    /// As for [`Pgd::protect`](crate::Pgd::protect).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let read_only = PteFlags::USER_RW - PteFlags::WRITABLE;
    /// pgd.edit(&mut tools, |edit| edit.protect(pages, read_only))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn protect(&mut self, pages: Pages, flags: PteFlags) -> Result<(), MapError> {
        let flags = offered(&self.tools.guest, flags, pages.start)?;
        self.rewrite(pages, &Flags::of(flags))
    }

    /// Replaces every entry of `pages`, which must all be present, by what `change` makes of it.
    pub(crate) fn rewrite<C: Change>(&mut self, pages: Pages, change: &C) -> Result<(), MapError> {
        self.whole(|edit| edit.rewrite_runs(pages, change))
    }

    fn rewrite_runs<C: Change>(&mut self, pages: Pages, change: &C) -> Result<(), MapError> {
        for run in pages.runs(ENTRIES)? {
            self.ascend_to(run.va)?;
            let Found::Table(table) = self.path.seek(&self.tools.guest, run.va)? else {
                return Err(MapError::NotMapped(run.va));
            };
            if self.may_be_table::<C>(run) && self.rewrite_table(table, run, change)? {
                continue;
            }
            self.rewrite_entries(table, run, change)?;
            self.passed(run.va, run.count);
        }
        Ok(())
    }

    /// Refuses to end shares that the tools do not count.
    #[inline]
    fn check_counted<C: Change>(&self, old: &[Pte]) -> Result<(), MapError> {
        let is_elsewhere = C::CLEARS && self.tools.frames.is_counted_elsewhere();
        if is_elsewhere && any_shared(old) { Err(MapError::OtherShares) } else { Ok(()) }
    }

    /// Returns whether it may be worth reading the whole table.
    fn may_be_table<C: Change>(&self, run: Run) -> bool {
        if C::ENTRY_BY_ENTRY {
            false
        } else if C::CLEARS {
            COSTS.may_clear_as_table(run.count)
        } else {
            self.tools.presence == Presence::MayVanish && COSTS.may_change_as_table(run.count)
        }
    }

    /// Changes entry by entry.
    fn rewrite_entries<C: Change>(
        &mut self,
        table: Pfn,
        run: Run,
        change: &C,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let mfn = guest.mfn(table)?;
        let mut buffer = [Pte::ABSENT; PART as usize];
        for part in run.parts(PART) {
            let mut first = PageTableIndex::new_truncate(part.first());
            let mut old = &mut buffer[..usize::from(part.count)];
            guest.machine().read_entries(table, first, old)?;
            check_present(part, old)?;
            self.check_counted::<C>(old)?;
            while let Some(next) = old.first().copied() {
                if self.tools.batch.room() == 0 {
                    self.submit()?;
                }
                let is_own = |pte: &&Pte| !pte.flags().contains(FOREIGN);
                let own = old.iter().take_while(is_own).count();
                let start = Slot { table: mfn, index: first }.machine_address();
                let to_new = |target: u64, old: Pte| {
                    let new = change.of(old);
                    MmuUpdate::from_raw(target | C::command(new), new.raw())
                };
                let changes = (0..)
                    .zip(&old[..own])
                    .map(|(at, old): (u64, &Pte)| (to_new(start + at * 8, *old), old.raw()));
                let taken = if own == 0 {
                    let update = to_new(start, next);
                    self.push_page(update, next)?;
                    1
                } else {
                    self.tools.batch.extend(changes)?
                };
                self.flush.add(part.va, part.count.into());
                self.flags_only += if C::CLEARS { 0 } else { taken };
                old = &mut old[taken..];
                let taken = u16::try_from(taken).unwrap_or(ENTRIES);
                first = PageTableIndex::new_truncate((u16::from(first) + taken) % ENTRIES);
            }
        }
        Ok(())
    }

    /// Changes the whole table, if that is cheaper and allowed. Returns false if not.
    fn rewrite_table<C: Change>(
        &mut self,
        table: Pfn,
        run: Run,
        change: &C,
    ) -> Result<bool, MapError> {
        let mut old = EMPTY;
        self.tools.guest.machine().read_entries(table, PageTableIndex::new(0), &mut old)?;
        if any_foreign(&old) {
            return Ok(false);
        }
        let before = population(&old);
        if before.total() < ENTRIES {
            check_present(run, &old[run.range()])?;
        }
        self.check_counted::<C>(&old[run.range()])?;
        let mut new = EMPTY;
        if !(C::CLEARS && before.total() == run.count) {
            new = old;
            new[run.range()].iter_mut().for_each(|pte| *pte = change.of(*pte));
        }
        let after = if C::CLEARS && before.total() == run.count {
            Population::default()
        } else {
            population(&new)
        };
        let way = if C::CLEARS {
            COSTS.to_clear(run.count, before, after)
        } else {
            COSTS.to_change(run.count, before, after)
        };
        let allowed = after.total() == 0 || self.tools.presence == Presence::MayVanish;
        if way == Strategy::Entries || !allowed {
            return Ok(false);
        }
        self.submit()?;
        self.replace_table(table, run, after, &old, &new)?;
        Ok(true)
    }
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Turns `old`, the L1 table for `va`, into `new`, which has the same frames, in the cheaper
    /// way that is allowed. Submits what is pending before it takes a table out.
    pub(crate) fn change_entries(
        &mut self,
        table: Pfn,
        va: GuestVa,
        old: &Entries,
        new: &Entries,
    ) -> Result<(), MapError> {
        self.ascend_to(va)?;
        let guest = self.tools.guest;
        let changed = old.iter().zip(new).filter(|(old, new)| old != new).count();
        let changed = u16::try_from(changed).unwrap_or(ENTRIES);
        let (before, after) = (population(old), population(new));
        if COSTS.to_change(changed, before, after) == Strategy::Table
            && !any_foreign(old)
            && self.tools.presence == Presence::MayVanish
        {
            self.submit()?;
            self.path.seek(&guest, va)?;
            let whole = Run { va, count: ENTRIES };
            let done = self.done;
            self.replace_table(table, whole, after, old, new)?;
            self.done = done + u64::from(changed);
            return Ok(());
        }
        let mfn = guest.mfn(table)?;
        for (index, (old, new)) in (0u16..).zip(old.iter().zip(new)) {
            if old != new {
                let slot = Slot { table: mfn, index: PageTableIndex::new_truncate(index) };
                self.push(keeping_seen(slot, *new), old.raw())?;
                self.flags_only += 1;
                self.flush = Flush::ALL;
            }
        }
        self.passed(va, ENTRIES);
        Ok(())
    }
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Makes everything behind the entry of `level` for `va` writable and executable, or not: see
    /// [`Pgd::set_table_flags`](crate::Pgd::set_table_flags).
    ///
    /// # Errors
    /// As for [`Pgd::set_table_flags`](crate::Pgd::set_table_flags).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.set_table_flags(Level::L2, pages.start, PteFlags::TABLE | PteFlags::NO_EXECUTE)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_table_flags(
        &mut self,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        check_page(va)?;
        Room::check(&self.tools.batch)?;
        self.submit()?;
        self.whole(|edit| edit.change_table(level, va, flags))
    }

    fn change_table(&mut self, level: Level, va: GuestVa, flags: PteFlags) -> Result<(), MapError> {
        self.make_room_for_two()?;
        let guest = self.tools.guest;
        let flags = guest.machine().offered(flags);
        self.path.seek(&guest, va)?;
        let (slot, old) = self.path.entry(&guest, level, va)?;
        let new = with_table_flags(level, va, old, flags)?;
        // Both in one batch: room for the copy is made first.
        if let (Level::L4, Some(user)) = (level, self.roots.user) {
            let old = guest.machine().read_entry(user, slot.index)?;
            let slot = Slot { table: guest.mfn(user)?, ..slot };
            let new = with_table_flags(level, va, old, flags)?;
            self.push(MmuUpdate::set(slot, new), old.raw())?;
            self.flags_only += 1;
        }
        self.push(MmuUpdate::set(slot, new), old.raw())?;
        self.flags_only += 1;
        self.flush = Flush::ALL;
        self.submit()
    }
}
