//! Which tables a tree has.

use hypercall::{ENTRIES, Entry, FrameAccess, Level, Pfn, Pte};
use x86_64::structures::paging::PageTableIndex;

use p2m::{Guest, WalkError};

/// Slots of a root that are an address space's own.
pub(crate) const USER_SLOTS: core::ops::Range<u16> = 0..256;

/// Slots of a table of `level` that an address space may own.
pub(crate) const fn own_slots(level: Level) -> core::ops::Range<u16> {
    match level {
        Level::L4 => USER_SLOTS,
        _ => 0..ENTRIES,
    }
}

/// The present entries of a table, one after the other.
#[derive(Debug)]
pub(crate) struct Present {
    table: Pfn,
    slots: core::ops::Range<u16>,
}

impl Present {
    /// All present entries among the own slots of a table of `level`.
    pub(crate) const fn of(level: Level, table: Pfn) -> Self {
        Self { table, slots: own_slots(level) }
    }

    /// The next one, as it stands now.
    pub(crate) fn next<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
    ) -> Result<Option<(PageTableIndex, Pte)>, WalkError> {
        let next = guest.machine().next_present(self.table, self.slots.clone())?;
        self.slots.start = next.map_or(self.slots.end, |(index, _)| u16::from(index) + 1);
        Ok(next)
    }
}

/// The entries of a table, so many at a time, without the parts in which none is present: for loops
/// that look at each entry of tables that may be full.
#[derive(Debug)]
pub(crate) struct Parts<const N: usize>(Present);

impl<const N: usize> Parts<N> {
    /// The own slots of a table of `level`.
    pub(crate) const fn of(level: Level, table: Pfn) -> Self {
        const { assert!(N.is_power_of_two() && N <= ENTRIES as usize) };
        Self(Present::of(level, table))
    }

    /// Reads the next part, and says where it begins.
    pub(crate) fn next<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        into: &mut [Pte; N],
    ) -> Result<Option<PageTableIndex>, WalkError> {
        let Some((index, _)) = self.0.next(guest)? else { return Ok(None) };
        #[expect(clippy::cast_possible_truncation, reason = "a part of a table")]
        let length = N as u16;
        let first = u16::from(index) / length * length;
        self.0.slots.start = first + length;
        let first = PageTableIndex::new_truncate(first);
        guest.machine().read_entries(self.0.table, first, into)?;
        Ok(Some(first))
    }
}

/// A table of a tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) level: Level,
    pub(crate) pfn: Pfn,
}

/// Calls `f` for every table of the tree under `root`, lower ones first, the root last, until `f`
/// answers false. Tables of the kernel half belong to others and are left out.
pub(crate) fn visit<M: FrameAccess, E: From<WalkError>>(
    guest: &Guest<'_, M>,
    root: Pfn,
    f: &mut impl FnMut(Table) -> Result<bool, E>,
) -> Result<bool, E> {
    visit_below(guest, Table { level: Level::L4, pfn: root }, f)
}

fn visit_below<M: FrameAccess, E: From<WalkError>>(
    guest: &Guest<'_, M>,
    table: Table,
    f: &mut impl FnMut(Table) -> Result<bool, E>,
) -> Result<bool, E> {
    if let Some(level) = table.level.below() {
        let mut present = Present::of(table.level, table.pfn);
        while let Some((_, pte)) = present.next(guest)? {
            let Entry::Table(mfn) = pte.decode(table.level) else { continue };
            let pfn = guest.pfn(mfn).map_err(WalkError::from)?;
            let child = Table { level, pfn };
            // Most tables are L1 tables, with nothing below them.
            let goes_on = if level == Level::L1 { f(child) } else { visit_below(guest, child, f) };
            if !goes_on? {
                return Ok(false);
            }
        }
    }
    f(table)
}
