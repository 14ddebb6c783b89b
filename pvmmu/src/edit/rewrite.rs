//! Changing and clearing entries of a live tree.

use hypercall::{ENTRIES, Level, Machine, MmuUpdate, Pfn, Pte, PteFlags, Slot};
use x86_64::structures::paging::PageTableIndex;

use super::{Edit, PART, Presence};
use crate::cost::{COSTS, Population, Way};
use crate::error::MapError;
use crate::frames::FrameSource;
use crate::marks::{COPY_ON_WRITE, FOREIGN, SHARED};
use crate::pages::{Pages, Run, check_flags};
use crate::path::Found;

/// What an entry keeps when its flags change.
const KEPT: PteFlags = SHARED.union(FOREIGN).union(COPY_ON_WRITE);

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, '_, M, F> {
    /// Unmaps `pages`: see [`Pgd::unmap`](crate::Pgd::unmap).
    ///
    /// # Errors
    /// As for [`Pgd::unmap`](crate::Pgd::unmap).
    pub fn unmap(&mut self, pages: Pages) -> Result<(), MapError> {
        self.rewrite(pages, |_| Pte::ABSENT)
    }

    /// Gives `pages` new flags: see [`Pgd::protect`](crate::Pgd::protect). A page that is shared keeps what it is for
    /// that, so it must not be made writable.
    ///
    /// # Errors
    /// As for [`Pgd::protect`](crate::Pgd::protect).
    pub fn protect(&mut self, pages: Pages, flags: PteFlags) -> Result<(), MapError> {
        check_flags(flags)?;
        let (flags, kept) = (flags.bits(), hypercall::ADDRESS_MASK | KEPT.bits());
        self.rewrite(pages, |pte| Pte::from_raw(pte.raw() & kept | flags))
    }

    /// Puts what `change` makes of every entry of `pages`, which all must be present, in its place.
    pub(crate) fn rewrite(
        &mut self,
        pages: Pages,
        change: impl Fn(Pte) -> Pte,
    ) -> Result<(), MapError> {
        for run in pages.runs(ENTRIES)? {
            self.ascend_to(run.va)?;
            let Found::Table(table) = self.path.seek(&self.tools.context, run.va)? else {
                return Err(MapError::NotMapped(run.va));
            };
            if u32::from(run.count) >= COSTS.smallest_table()
                && self.rewrite_table(table, run, &change)?
            {
                continue;
            }
            self.rewrite_entries(table, run, &change)?;
            self.passed(run.va, run.count);
        }
        Ok(())
    }

    /// Entry by entry.
    fn rewrite_entries(
        &mut self,
        table: Pfn,
        run: Run,
        change: &impl Fn(Pte) -> Pte,
    ) -> Result<(), MapError> {
        let context = self.tools.context;
        let mfn = context.mfn(table)?;
        let mut buffer = [Pte::ABSENT; PART as usize];
        for part in run.parts(PART) {
            let mut first = PageTableIndex::new_truncate(part.first());
            let mut old = &mut buffer[..usize::from(part.count)];
            context.machine.read_entries(table, first, old)?;
            check_present(part, old)?;
            while !old.is_empty() {
                if self.tools.batch.room() == 0 {
                    self.submit()?;
                }
                let start = Slot { table: mfn, index: first }.machine_address();
                let changes =
                    (start..).step_by(size_of::<Pte>()).zip(&*old).map(|(target, old)| {
                        (MmuUpdate::from_raw(target, change(*old).raw()), old.raw())
                    });
                let taken = self.tools.batch.extend(changes)?;
                self.flush.add(part.va, part.count.into());
                old = &mut old[taken..];
                let taken = u16::try_from(taken).unwrap_or(ENTRIES);
                first = PageTableIndex::new_truncate((u16::from(first) + taken) % ENTRIES);
            }
        }
        Ok(())
    }

    /// The whole table, if that is cheaper and allowed; false if not.
    fn rewrite_table(
        &mut self,
        table: Pfn,
        run: Run,
        change: &impl Fn(Pte) -> Pte,
    ) -> Result<bool, MapError> {
        let mut old = [Pte::ABSENT; ENTRIES as usize];
        self.tools.context.machine.read_entries(table, PageTableIndex::new(0), &mut old)?;
        check_present(run, &old[run.range()])?;
        let mut new = old;
        new[run.range()].iter_mut().for_each(|pte| *pte = change(*pte));
        let (before, after) = (population(&old), population(&new));
        let clears = after.total() < before.total();
        let way = if clears {
            COSTS.to_clear(run.count, before, after)
        } else {
            COSTS.to_change(run.count, before, after)
        };
        let allowed = after.total() == 0 || self.tools.presence == Presence::MayVanish;
        if way == Way::Entries || !allowed {
            return Ok(false);
        }
        self.submit()?;
        self.replace_table(table, run, (&old, &new))?;
        Ok(true)
    }
}

fn check_present(run: Run, entries: &[Pte]) -> Result<(), MapError> {
    match entries.iter().position(|pte| !pte.is_present()) {
        None => Ok(()),
        Some(at) => {
            let pages = Pages { start: run.va, count: run.count.into() };
            Err(MapError::NotMapped(pages.at(at as u64)?))
        }
    }
}

/// How many entries of an L1 table map pages.
pub(crate) fn population(entries: &[Pte; ENTRIES as usize]) -> Population {
    let (mut present, mut writable) = (0u64, 0u64);
    for pte in entries {
        let is_present = pte.raw() & PteFlags::PRESENT.bits();
        present += is_present;
        writable += (pte.raw() >> 1) & is_present;
    }
    let count = |number| u16::try_from(number).unwrap_or(ENTRIES);
    Population { writable: count(writable), read_only: count(present - writable) }
}

const _: () = assert!(PteFlags::WRITABLE.bits() == 2 && PteFlags::PRESENT.bits() == 1);
const _: () = assert!(Level::L1 as u8 == 1);
