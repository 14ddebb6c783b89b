//! Maps pages in a live tree.

use hypercall::{
    DomId, Frame, FrameSource, GuestVa, Level, Machine, Mfn, MmuUpdate, Pfn, Pte, PteFlags, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use super::{Edit, PART};
use crate::cost::{COSTS, Strategy};
use crate::entries::{SEEN, any_shared, keeping_seen};
use crate::map_error::MapError;
use crate::marks::{FOREIGN, Held, MIRRORED, held_table};
use crate::pages::{Pages, Run, check_page, offered};
use crate::path::Found;
use crate::tools::Tools;
use p2m::{P2mError, WalkError};

/// The source of frames for new mappings.
enum Origin {
    /// From the frames of the tools.
    Frames,
    /// Another domain's frames from this one on.
    Foreign(Mfn, DomId),
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Maps a frame at each page of `pages`: see [`Pgd::map_pages`](crate::Pgd::map_pages).
    ///
    /// # Errors
    /// As for [`Pgd::map_pages`](crate::Pgd::map_pages).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let heap = Pages { start: GuestVa::new(0x40_1000)?, count: 8 };
    /// let stack = Pages { start: GuestVa::new(0x7f_f000_0000)?, count: 8 };
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.map_pages(heap, PteFlags::USER_RW)?;
    ///     edit.map_pages(stack, PteFlags::USER_RW)
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_pages(&mut self, pages: Pages, flags: PteFlags) -> Result<(), MapError> {
        self.whole(|edit| edit.map_from(pages, flags, &mut Origin::Frames))
    }

    /// Maps `pages` to frames of `domain` from `first` on, one after the other. They are not the
    /// guest's own: when they are unmapped,
    /// [`ForeignFrames::give_foreign`](crate::ForeignFrames::give_foreign) hears of it.
    ///
    /// # Errors
    /// As for [`map_pages`](Self::map_pages), except that empty tables may have been added;
    /// [`MapError::Own`] for a frame of the guest's that has a pfn; [`MapError::NotForeign`] for
    /// [`DomId::SELF`], with which Xen would accept anything of the guest's, such as its shared
    /// page. Xen refuses frames of a domain that this one has no power over, frames that the domain
    /// does not have, and this domain's own number.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut tools = TestGuest::dom0().tools();
    /// let pgd = Pgd::new(&mut tools)?;
    /// let mut pgd = pgd.pin(&tools.guest, &mut tools.batch)?;
    /// let (pages, vga) = (Pages { start: GuestVa::new(0x40_0000)?, count: 8 }, Mfn::new(0xb8));
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.map_foreign(pages, PteFlags::USER_RW, vga, DomId::IO)
    /// })?;
    /// let page = pgd.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert_eq!(page.frame, Mapped::Foreign(vga));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_foreign(
        &mut self,
        pages: Pages,
        flags: PteFlags,
        first: Mfn,
        domain: DomId,
    ) -> Result<(), MapError> {
        if domain == DomId::SELF {
            let known = self.tools.guest.pfn(first);
            return Err(known.map_or(MapError::NotForeign(first), MapError::Own));
        }
        self.whole(|edit| edit.map_from(pages, flags, &mut Origin::Foreign(first, domain)))
    }

    fn map_from(
        &mut self,
        pages: Pages,
        flags: PteFlags,
        origin: &mut Origin,
    ) -> Result<(), MapError> {
        let flags = offered(&self.tools.guest, flags, pages.start)?;
        for run in pages.runs(hypercall::ENTRIES)? {
            self.ascend_to(run.va)?;
            let guest = self.tools.guest;
            let table = match self.path.seek(&guest, run.va)? {
                Found::Table(table) => table,
                Found::Superpage => return Err(WalkError::NotMapped(run.va).into()),
                Found::Missing(level) => {
                    let pooled = self.tools.has_tables_below(level);
                    let fill_first = !pooled || COSTS.to_map(run.count) == Strategy::Table;
                    if fill_first && matches!(origin, Origin::Frames) {
                        self.graft(level, run, flags)?;
                        continue;
                    }
                    if !pooled {
                        // An empty chain: Xen takes foreign frames only one by one.
                        self.graft(level, Run { va: run.va, count: 0 }, flags)?;
                    } else {
                        self.link_empty(level, run.va)?;
                    }
                    self.path.table(Level::L1).ok_or(MapError::NotMapped(run.va))?
                }
            };
            self.fill(table, run, flags, &mut *origin)?;
            self.passed(run.va, run.count);
        }
        Ok(())
    }

    /// Links empty tables from the pool, from below the missing entry of `level` down to an L1
    /// table.
    pub(super) fn link_empty(&mut self, mut level: Level, va: GuestVa) -> Result<(), MapError> {
        while let Some(below) = level.below() {
            let pool = self.tools.pool.as_deref_mut().ok_or(MapError::OutOfFrames)?;
            let table = pool.take(below).ok_or(MapError::OutOfFrames)?;
            if let Err(error) = self.link(level, va, &table) {
                self.return_unused(below, table);
                return Err(error);
            }
            // INVARIANT: I-4: the token has gone into the batch.
            self.path.set(below, Some(table.pfn()));
            level = below;
        }
        Ok(())
    }

    /// Gives a table that was linked nowhere back to the pool.
    #[cold]
    fn return_unused(&mut self, level: Level, table: Frame) {
        let Tools { pool, frames, .. } = &mut *self.tools;
        if let Some(pool) = pool {
            pool.return_unused(level, table, frames.of_tables());
        }
    }

    fn link(&mut self, level: Level, va: GuestVa, table: &Frame) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let below = level.below().ok_or(MapError::NotMapped(va))?;
        let mfn = guest.mfn(table.pfn())?;
        let (slot, old) = self.path.entry(&guest, level, va)?;
        let user = self.roots.user.filter(|_| level == Level::L4);
        let copy = user.map(|user| guest.mfn(user)).transpose()?;
        // Both in one batch: room for the copy is made first.
        self.make_room_for_two()?;
        // The kernel root's first: what a user root leads to belongs to the tree at any time.
        let new = Pte::new(mfn, held_table(Held::Pooled(below)));
        self.push(MmuUpdate::set(slot, new), old.raw())?;
        self.is_linking = true;
        if let Some(user) = copy {
            let (slot, new) = mirror(user, slot, mfn);
            self.push(MmuUpdate::set(slot, new), old.raw())?;
        }
        Ok(())
    }

    /// Fills the entries of `run`, which must all be free.
    fn fill(
        &mut self,
        table: Pfn,
        run: Run,
        flags: PteFlags,
        origin: &mut Origin,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let mfn = guest.mfn(table)?;
        let mut buffer = [Pte::ABSENT; PART as usize];
        for part in run.parts(PART) {
            let pages = Pages { start: part.va, count: part.count.into() };
            let old = &mut buffer[..usize::from(part.count)];
            guest.machine().read_entries(table, PageTableIndex::new_truncate(part.first()), old)?;
            if let Some(at) = old.iter().position(|pte| pte.is_present()) {
                return Err(MapError::Occupied { va: pages.at(at as u64)?, pte: old[at] });
            }
            for (index, old) in (part.first()..).zip(old) {
                let slot = Slot { table: mfn, index: PageTableIndex::new_truncate(index) };
                self.fill_one(slot, *old, flags, &mut *origin)?;
            }
        }
        Ok(())
    }

    fn fill_one(
        &mut self,
        slot: Slot,
        old: Pte,
        flags: PteFlags,
        origin: &mut Origin,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let set = |mfn| MmuUpdate::set(slot, Pte::new(mfn, flags));
        if let Origin::Foreign(mfn, domain) = origin {
            if let Ok(own) = guest.pfn(*mfn) {
                return Err(MapError::Own(own));
            }
            let update = MmuUpdate::set(slot, Pte::new(*mfn, flags | FOREIGN));
            *mfn = mfn.checked_add(1).ok_or(P2mError::NoFrame(*mfn))?;
            return self.push_for(update, old.raw(), *domain);
        }
        let frame = self.tools.frames.take().ok_or(MapError::OutOfFrames)?;
        let pushed = match guest.mfn(frame.pfn()) {
            Ok(mfn) => self.push(set(mfn), old.raw()),
            Err(error) => Err(error.into()),
        };
        if pushed.is_err() {
            self.tools.frames.give(frame);
        }
        // INVARIANT: I-4: the token has gone into the batch, unless that failed.
        pushed
    }

    /// Maps `frame` in place of the present frame: see [`Pgd::replace`](crate::Pgd::replace).
    ///
    /// # Errors
    /// As for [`Pgd::replace`](crate::Pgd::replace).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(page);
    /// let frame = tools.frames.take().ok_or("no memory")?;
    /// pgd.edit(&mut tools, |edit| edit.replace(page.start, PteFlags::USER_RW, frame))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn replace(&mut self, va: GuestVa, flags: PteFlags, frame: Frame) -> Result<(), MapError> {
        let planned = self.plan_replace(va, flags, &frame);
        let pushed = planned.and_then(|(update, old)| self.push(update, old.raw()));
        match pushed {
            Ok(()) => {
                self.flush.add(va, 1);
                self.passed(va, 1);
                Ok(())
            }
            Err(error) => {
                self.tools.frames.give(frame);
                Err(error)
            }
        }
    }

    pub(super) fn plan_replace(
        &mut self,
        va: GuestVa,
        flags: PteFlags,
        frame: &Frame,
    ) -> Result<(MmuUpdate, Pte), MapError> {
        let flags = offered(&self.tools.guest, flags, va)?;
        check_page(va)?;
        self.ascend_to(va)?;
        let guest = self.tools.guest;
        let Found::Table(_) = self.path.seek(&guest, va)? else {
            return Err(MapError::NotMapped(va));
        };
        let (slot, old) = self.path.entry(&guest, Level::L1, va)?;
        if !old.is_present() {
            return Err(MapError::NotMapped(va));
        }
        if self.tools.frames.is_counted_elsewhere() && any_shared(&[old]) {
            return Err(MapError::OtherShares);
        }
        let new = Pte::new(guest.mfn(frame.pfn())?, flags | old.flags() & SEEN);
        Ok((keeping_seen(slot, new), old))
    }
}

/// Returns the slot and value of the user root's copy of an entry for the table `mfn`.
pub(super) fn mirror(user: Mfn, slot: Slot, mfn: Mfn) -> (Slot, Pte) {
    (Slot { table: user, ..slot }, Pte::new(mfn, PteFlags::TABLE | MIRRORED))
}
