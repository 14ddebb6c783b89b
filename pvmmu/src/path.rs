//! The path from a root to an L1 table, remembered from one page to the next.

use hypercall::{Entry, FrameAccess, GuestVa, Level, MmuUpdate, Pfn, Pte, Slot};

use p2m::{Guest, WalkError};

/// The tables on the path to the last address. Neighbouring pages share them, so a run of pages
/// costs one walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// The last address.
    va: u64,
    /// Tables of levels 1 to 4 on the path; those below the last known one are `None`.
    tables: [Option<Pfn>; 4],
}

/// Where a path ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// At this L1 table.
    Table(Pfn),
    /// At an absent entry of a table of this level.
    Missing(Level),
    /// At a superpage, which only the dom0 builder makes.
    Superpage,
}

const fn at(level: Level) -> usize {
    level as usize - 1
}

/// Returns the first address that `update`'s entry spans, if that is the entry for `va` in a table
/// of `level`.
pub(crate) fn va_in(level: Level, va: u64, update: MmuUpdate) -> Option<GuestVa> {
    let span = 1u64 << (level.shift() + 9);
    let index = (update.target() & 0xfff) / size_of::<Pte>() as u64;
    GuestVa::new((va & !(span - 1)) + (index << level.shift())).ok()
}

impl Path {
    /// Creates a path that knows only the root.
    pub(crate) const fn new(root: Pfn) -> Self {
        Self { va: 0, tables: [None, None, None, Some(root)] }
    }

    /// Returns the table of `level` on the path, if it is known.
    pub(crate) const fn table(&self, level: Level) -> Option<Pfn> {
        self.tables[at(level)]
    }

    /// Records that the table of `level` on the path is now `pfn`, or is gone.
    pub(crate) const fn set(&mut self, level: Level, pfn: Option<Pfn>) {
        self.tables[at(level)] = pfn;
    }

    /// Forgets all but the root.
    pub(crate) const fn forget(&mut self) {
        self.tables = [None, None, None, self.tables[at(Level::L4)]];
    }

    /// Goes to the L1 table of `va`. Reads only tables that are not on the path yet.
    pub(crate) fn seek<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        va: GuestVa,
    ) -> Result<Found, WalkError> {
        let changed = self.va ^ va.raw();
        self.va = va.raw();
        for level in [Level::L3, Level::L2, Level::L1] {
            // The entry of the level above leads to a table.
            if changed >> (level.shift() + 9) != 0 {
                self.set(level, None);
            }
        }
        for level in [Level::L4, Level::L3, Level::L2] {
            let (Some(table), Some(below)) = (self.table(level), level.below()) else { break };
            if self.table(below).is_some() {
                continue;
            }
            match guest.machine().read_entry(table, level.index_of(va))?.decode(level) {
                Entry::Table(mfn) => {
                    let pfn = guest.pfn(mfn)?;
                    self.set(below, Some(pfn));
                }
                Entry::Absent => return Ok(Found::Missing(level)),
                Entry::Leaf(_) => return Ok(Found::Superpage),
            }
        }
        Ok(self.table(Level::L1).map_or(Found::Missing(Level::L4), Found::Table))
    }

    /// Returns the first address that `update`'s entry spans, if that is in `table` and `table` is
    /// on the path.
    pub(crate) fn va_of(&self, table: Pfn, update: MmuUpdate) -> Option<GuestVa> {
        let mut levels = [Level::L1, Level::L2, Level::L3, Level::L4].into_iter();
        let level = levels.find(|level| self.table(*level) == Some(table))?;
        va_in(level, self.va, update)
    }

    /// Returns the slot of `level` for the last address, and the entry in it.
    pub(crate) fn entry<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        level: Level,
        va: GuestVa,
    ) -> Result<(Slot, Pte), WalkError> {
        let table = self.table(level).ok_or(WalkError::NotMapped(va))?;
        let index = level.index_of(va);
        Ok((guest.slot(table, index)?, guest.machine().read_entry(table, index)?))
    }
}
