//! The way from a root to an L1 table, remembered from one page to the next.

use hypercall::{Entry, FrameAccess, GuestVa, Level, MmuUpdate, Pfn, Pte, Slot};

use p2m::{Guest, WalkError};

/// The tables that the last address went through. Neighbouring pages share them, so that a run of
/// pages costs one walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// The last address.
    va: u64,
    /// Tables of levels 1 to 4 on the way to it; those below the last known one are `None`.
    tables: [Option<Pfn>; 4],
}

/// Where a path ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// At this L1 table.
    Table(Pfn),
    /// At an entry of a table of this level that is absent.
    Missing(Level),
    /// At a superpage, which only the dom0 builder makes.
    Superpage,
}

const fn at(level: Level) -> usize {
    level as usize - 1
}

/// The first address that the entry which `update` changes spans, if that entry is in the table of
/// `level` for the address `va`.
pub(crate) fn va_in(level: Level, va: u64, update: MmuUpdate) -> Option<GuestVa> {
    let span = 1u64 << (level.shift() + 9);
    let index = (update.target() & 0xfff) / size_of::<Pte>() as u64;
    GuestVa::new((va & !(span - 1)) + (index << level.shift())).ok()
}

impl Path {
    /// A path that knows only the root.
    pub(crate) const fn new(root: Pfn) -> Self {
        Self { va: 0, tables: [None, None, None, Some(root)] }
    }

    /// The table of `level` on the path, if it is known.
    pub(crate) const fn table(&self, level: Level) -> Option<Pfn> {
        self.tables[at(level)]
    }

    /// Notes that the table of `level` on the path is `pfn` from now on, or is gone.
    pub(crate) const fn set(&mut self, level: Level, pfn: Option<Pfn>) {
        self.tables[at(level)] = pfn;
    }

    /// Forgets all but the root.
    pub(crate) const fn forget(&mut self) {
        self.tables = [None, None, None, self.tables[at(Level::L4)]];
    }

    /// Goes to the L1 table of `va`, reading only what the last address did not go through.
    pub(crate) fn seek<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        va: GuestVa,
    ) -> Result<Found, WalkError> {
        let changed = self.va ^ va.raw();
        self.va = va.raw();
        for level in [Level::L3, Level::L2, Level::L1] {
            // A table is reached through the entry of the level above it.
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

    /// The first address that the entry which `update` changes spans, if that entry is in `table`
    /// and `table` is on the path.
    pub(crate) fn va_of(&self, table: Pfn, update: MmuUpdate) -> Option<GuestVa> {
        let mut levels = [Level::L1, Level::L2, Level::L3, Level::L4].into_iter();
        let level = levels.find(|level| self.table(*level) == Some(table))?;
        va_in(level, self.va, update)
    }

    /// The place of the entry of level `level` for the last address, and the entry.
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
