//! Reading the tables of a tree.

use core::fmt;

use hypercall::{ENTRIES, Entry, FrameAccess, Level, Machine, Pfn, Pte, XEN_SLOTS};
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

/// An entry that leads to a table.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// Level of the table that it leads to.
    pub(crate) level: Level,
    /// The table that it is in.
    pub(crate) table: Pfn,
    pub(crate) index: PageTableIndex,
    pub(crate) pte: Pte,
}

/// Calls `f` for every entry below `table` that leads to a table from `lowest` up, lower ones
/// first.
pub(crate) fn each_table<M: Machine, E: From<WalkError>>(
    guest: &Guest<'_, M>,
    level: Level,
    table: Pfn,
    lowest: Level,
    f: &mut impl FnMut(Link) -> Result<(), E>,
) -> Result<(), E> {
    let Some(below) = level.below().filter(|below| *below >= lowest) else { return Ok(()) };
    let mut present = Present::of(level, table);
    while let Some((index, pte)) = present.next(guest)? {
        let Entry::Table(mfn) = pte.decode(level) else { continue };
        if below > Level::L1 {
            let pfn = guest.pfn(mfn).map_err(WalkError::from)?;
            each_table(guest, below, pfn, lowest, f)?;
        }
        f(Link { level: below, table, index, pte })?;
    }
    Ok(())
}

/// Where an entry stands and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first address that it spans.
    pub va: u64,
    /// Level of the table that it is in.
    pub level: Level,
    /// That table.
    pub table: Pfn,
    /// The entry.
    pub pte: Pte,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { va, level, table, pte } = self;
        write!(f, "{level} entry {pte} for {va:#018x} in pfn {table}")
    }
}

/// The canonical address with these lower 48 bits.
pub(crate) const fn sign_extended(address: u64) -> u64 {
    if address >> 47 & 1 == 0 { address } else { address | 0xffff << 48 }
}

/// Whether the table behind an entry is read, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descend {
    Yes,
    No,
}

/// A table, the slots of it that are read, and the first address that it spans.
pub(crate) type Part = (Level, Pfn, core::ops::Range<u16>, u64);

/// Calls `f` for every present entry of a part of a tree, upper ones first, but for Xen's own.
pub(crate) fn each_entry<M: FrameAccess>(
    guest: &Guest<'_, M>,
    (level, table, mut slots, base): Part,
    f: &mut impl FnMut(Place) -> Descend,
) -> Result<(), WalkError> {
    while let Some((index, pte)) = guest.machine().next_present(table, slots.clone())? {
        let slot = u16::from(index);
        slots.start = slot + 1;
        if level == Level::L4 && XEN_SLOTS.contains(&slot) {
            continue;
        }
        let va = sign_extended(base + (u64::from(slot) << level.shift()));
        let descend = f(Place { va, level, table, pte });
        if let (Descend::Yes, Entry::Table(child), Some(below)) =
            (descend, pte.decode(level), level.below())
            && let Ok(child) = guest.pfn(child)
        {
            each_entry(guest, (below, child, 0..ENTRIES, va), f)?;
        }
    }
    Ok(())
}
