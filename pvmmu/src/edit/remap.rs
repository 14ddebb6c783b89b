//! Moves pages of a live tree to other addresses, with their frames and flags.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half, which belongs to the address space (I-4)"
)]

use hypercall::{
    DomId, ENTRIES, FrameSource, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte, PteFlags,
};
use x86_64::structures::paging::PageTableIndex;

use super::seen::{Shift, may_become_dirty, slots};
use super::{Edit, PART};
use crate::doubt::{Doubt, Moving, unprotected};
use crate::entries::{EMPTY, check_present};
use crate::flush::Flush;
use crate::map_error::MapError;
use crate::marks::FOREIGN;
use crate::pages::{Pages, Run};
use crate::path::Found;
use crate::room::Room;
use crate::tools::{Presence, Tools};
use p2m::WalkError;

/// Bytes that an L1 table spans.
const TABLE: u64 = 1 << Level::L2.shift();

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Moves `pages`, which must all be mapped, to the addresses from `to` on, where nothing may be
    /// mapped: see [`Pgd::remap`](crate::Pgd::remap).
    ///
    /// # Errors
    /// As for [`Pgd::remap`](crate::Pgd::remap).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let to = GuestVa::new(0x80_0000)?;
    /// pgd.edit(&mut tools, |edit| edit.remap(pages, to))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remap(&mut self, pages: Pages, to: GuestVa) -> Result<(), MapError> {
        pages.check_apart(to)?;
        self.submit()?;
        self.whole(|edit| edit.remap_all(pages, to))
    }

    fn remap_all(&mut self, pages: Pages, to: GuestVa) -> Result<(), MapError> {
        let mut at = 0;
        while at < pages.count {
            let (from, to) = (pages.at(at)?, Pages { start: to, ..pages }.at(at)?);
            let left = pages.count - at;
            at += if self.is_whole_table(from, to, left)? {
                self.move_table(from, to)?;
                self.done += u64::from(ENTRIES);
                u64::from(ENTRIES)
            } else {
                self.remap_some(from, to, left)?
            };
        }
        Ok(())
    }

    /// Returns whether a whole table can move: both places begin one, every page of it is mapped
    /// and moves, and there is none at the new place.
    fn is_whole_table(&mut self, from: GuestVa, to: GuestVa, left: u64) -> Result<bool, WalkError> {
        let aligned = from.raw().is_multiple_of(TABLE) && to.raw().is_multiple_of(TABLE);
        if !aligned || left < u64::from(ENTRIES) {
            return Ok(false);
        }
        let guest = self.tools.guest;
        if !matches!(self.path.seek(&guest, to)?, Found::Missing(_)) {
            return Ok(false);
        }
        let Found::Table(table) = self.path.seek(&guest, from)? else { return Ok(false) };
        let mut entries = EMPTY;
        guest.machine().read_entries(table, PageTableIndex::new(0), &mut entries)?;
        Ok(entries.iter().all(|pte| pte.is_present()))
    }

    /// Moves the first of `left` pages in one batch, as many as it has room for in one table at
    /// both places. Returns how many. Maps each at its new place before it leaves the old one.
    fn remap_some(&mut self, from: GuestVa, to: GuestVa, left: u64) -> Result<u64, MapError> {
        let guest = self.tools.guest;
        Room::check(&self.tools.batch)?;
        let room = self.tools.batch.updates_max() / 2;
        let rest = |va| ENTRIES - u16::from(Level::L1.index_of(va));
        let most = rest(from).min(rest(to)).min(PART).min(u16::try_from(room).unwrap_or(PART));
        let count = u16::try_from(left).map_or(most, |left| left.min(most));

        let Found::Table(source) = self.path.seek(&guest, from)? else {
            return Err(MapError::NotMapped(from));
        };
        let mut entries = [Pte::ABSENT; PART as usize];
        let entries = &mut entries[..usize::from(count)];
        guest.machine().read_entries(source, Level::L1.index_of(from), entries)?;
        check_present(Run { va: from, count }, entries)?;
        // One request is in the name of one domain.
        let domain = self.domain_of(entries[0]);
        let alike = entries.iter().take_while(|pte| self.domain_of(**pte) == domain).count();
        let entries = &entries[..alike];
        let target = self.make_l1_table(to)?;
        let mut there = [Pte::ABSENT; PART as usize];
        let there = &mut there[..alike];
        guest.machine().read_entries(target, Level::L1.index_of(to), there)?;
        if let Some(at) = there.iter().position(|pte| pte.is_present()) {
            let va = Pages { start: to, count: alike as u64 }.at(at as u64)?;
            return Err(MapError::Occupied { va, pte: there[at] });
        }
        let shift = Shift { source, from, target, to };
        self.shift(shift, entries, there)?;
        self.done += alike as u64;
        Ok(alike as u64)
    }

    /// Moves `entries` to the place of `there`. While others may use the pages, those that they
    /// could write unnoticed are write-protected first. Then the bits that the CPU has set move
    /// with them.
    fn shift(&mut self, shift: Shift, entries: &[Pte], there: &[Pte]) -> Result<(), MapError> {
        let is_seen = self.tools.presence == Presence::MayVanish;
        if is_seen || !entries.iter().any(|pte| may_become_dirty(*pte)) {
            return self.exchange(shift, entries, there);
        }
        self.write_protect(shift, entries)?;
        let mut now = [Pte::ABSENT; PART as usize];
        let now = &mut now[..entries.len()];
        let machine = self.tools.guest.machine();
        let exchanged = machine
            .read_entries(shift.source, Level::L1.index_of(shift.from), now)
            .map_err(MapError::from)
            .and_then(|()| self.exchange(shift, now, there));
        exchanged.map_err(|error| match error {
            // The rest of it is repaired later.
            MapError::NotUndone { .. } => error,
            error => self.let_write(shift, entries, error),
        })
    }

    /// Returns the domain in whose name the entry of a page changes.
    fn domain_of(&self, pte: Pte) -> DomId {
        if pte.flags().contains(FOREIGN) {
            self.tools.frames.domain_of(pte.mfn())
        } else {
            DomId::SELF
        }
    }

    /// Puts `entries` in the place of `there`, and removes them from their own.
    fn exchange(&mut self, shift: Shift, entries: &[Pte], there: &[Pte]) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let owner = entries.first().map_or(DomId::SELF, |pte| self.domain_of(*pte));
        let Tools { batch, reach, .. } = &mut *self.tools;
        batch.clear();
        let places =
            slots(&guest, shift.source, shift.from)?.zip(slots(&guest, shift.target, shift.to)?);
        let mut flush = Flush::NONE;
        flush.add(shift.from, entries.len() as u64);
        for ((old, new), (pte, there)) in places.zip(entries.iter().zip(there)) {
            let arrives = match unprotected(*pte) {
                // After an undo, the bits that the CPU set stay behind.
                Some(writable) => MmuUpdate::set_preserving_ad(new, writable),
                None => MmuUpdate::set(new, *pte),
            };
            batch.update_for(arrives, there.raw(), owner)?;
            batch.update_for(MmuUpdate::set(old, Pte::ABSENT), pte.raw(), owner)?;
        }
        flush.push(batch, *reach)?;
        // SAFETY: the pages stay with the address space (I-4). Each has two entries for a moment,
        // and one after the request, whether that is refused or not. If the undo is refused, the
        // one that has two is noted.
        let Err(error) = (unsafe { batch.submit(guest.machine()) }) else {
            batch.clear();
            return Ok(());
        };
        let undone = self.take_back_moving(shift, entries.len(), error);
        if let Err(MapError::NotUndone { left, .. }) = undone
            && !left.is_multiple_of(2)
        {
            // Each page has two updates, its arrival first. The last one left in effect is an
            // arrival.
            let twice = u16::try_from(left / 2).ok();
            let moving = Some(Moving { twice, ..shift.moving(entries.len()) });
            Doubt { moving, ..Doubt::FLUSH }.note(self.doubt);
        }
        undone
    }

    /// Returns the L1 table for `va`, an empty one if it was missing. Nothing is pending
    /// afterwards.
    pub(crate) fn make_l1_table(&mut self, va: GuestVa) -> Result<Pfn, MapError> {
        let guest = self.tools.guest;
        match self.path.seek(&guest, va)? {
            Found::Table(table) => return Ok(table),
            Found::Superpage => return Err(WalkError::NotMapped(va).into()),
            Found::Missing(level) if self.tools.has_tables_below(level) => {
                self.link_empty(level, va)?;
                self.submit()?;
            }
            Found::Missing(level) => {
                self.graft(level, Run { va, count: 0 }, PteFlags::empty())?;
            }
        }
        match self.path.seek(&guest, va)? {
            Found::Table(table) => Ok(table),
            _ => Err(MapError::NotMapped(va)),
        }
    }
}
