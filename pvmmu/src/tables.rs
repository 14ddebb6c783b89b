//! Reads the tables of a tree.

use core::fmt;

use hypercall::{ENTRIES, Entry, FrameAccess, GuestVa, Level, Pfn, Pte};
use x86_64::structures::paging::PageTableIndex;

use p2m::{Guest, WalkError};

/// The slots of a root that are an address space's own.
pub(crate) const USER_SLOTS: core::ops::Range<u16> = 0..256;

/// Returns the slots of a table of `level` that an address space may own.
pub(crate) const fn own_slots(level: Level) -> core::ops::Range<u16> {
    match level {
        Level::L4 => USER_SLOTS,
        _ => 0..ENTRIES,
    }
}

/// The present entries of a table, in order.
#[derive(Debug)]
pub(crate) struct Present {
    table: Pfn,
    slots: core::ops::Range<u16>,
}

impl Present {
    /// Returns all present entries among the own slots of a table of `level`.
    pub(crate) const fn of(level: Level, table: Pfn) -> Self {
        Self { table, slots: own_slots(level) }
    }

    /// Returns the next one, with its present value.
    pub(crate) fn next<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
    ) -> Result<Option<(PageTableIndex, Pte)>, WalkError> {
        let next = guest.machine().next_present(self.table, self.slots.clone())?;
        self.slots.start = next.map_or(self.slots.end, |(index, _)| u16::from(index) + 1);
        Ok(next)
    }
}

/// The entries of a table in parts, without the parts in which none is present: for loops over each
/// entry of tables that may be full.
#[derive(Debug)]
pub(crate) struct Parts<const N: usize>(Present);

impl<const N: usize> Parts<N> {
    /// Returns the own slots of a table of `level`.
    pub(crate) const fn of(level: Level, table: Pfn) -> Self {
        const { assert!(N.is_power_of_two() && N <= ENTRIES as usize) };
        Self(Present::of(level, table))
    }

    /// Reads the next part, and returns where it begins.
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

/// An entry and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first address that it spans.
    pub va: GuestVa,
    /// The level of its table.
    pub level: Level,
    /// Its table.
    pub table: Pfn,
    /// The entry.
    pub pte: Pte,
}

impl Place {
    /// Returns the entry's index in the table.
    pub(crate) const fn index(self) -> PageTableIndex {
        self.level.index_of(self.va)
    }

    /// Returns the level of the table that it leads to.
    pub(crate) fn below(self) -> Level {
        self.level.below().unwrap_or(Level::L1)
    }

    /// Goes into the table that it leads to, unless the frame map does not know that.
    pub(crate) fn into_known<M: FrameAccess>(self, guest: &Guest<'_, M>) -> Step {
        if guest.pfn(self.pte.mfn()).is_ok() { Step::Into } else { Step::Over }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { va, level, table, pte } = self;
        write!(f, "{level} entry {pte} for {va} in pfn {table}")
    }
}

/// How a walk goes on after an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Into the table that it leads to, if it leads to one.
    Into,
    /// Past it.
    Over,
    /// Not at all.
    Out,
}

/// The order of entries in a walk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Each entry before those below it.
    UpperFirst,
    /// Only entries that lead to tables, each after those below it.
    LowerFirst,
}

/// A part of a tree: a table, and some of the addresses that it spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) level: Level,
    pub(crate) table: Pfn,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Tables below this level are not read.
    pub(crate) lowest: Level,
}

impl Part {
    /// Returns all that the tree under `root` maps, except Xen's own.
    pub(crate) const fn whole(root: Pfn) -> Self {
        Self { level: Level::L4, table: root, first: 0, last: u64::MAX, lowest: Level::L1 }
    }

    /// Returns the part of it that an address space owns.
    pub(crate) const fn user_half(root: Pfn) -> Self {
        Self { last: (1 << 47) - 1, ..Self::whole(root) }
    }

    /// Returns one table, which spans the addresses from `base` on, without those below it.
    pub(crate) const fn one_table(level: Level, table: Pfn, base: u64) -> Self {
        let last = base | (((ENTRIES as u64) << level.shift()) - 1);
        Self { level, table, first: base, last, lowest: level }
    }

    /// Returns the same part without tables of `level` and below: entries that lead to tables of
    /// `level` and up.
    pub(crate) const fn above(self, level: Level) -> Self {
        let lowest = match level {
            Level::L1 => Level::L2,
            Level::L2 => Level::L3,
            Level::L3 | Level::L4 => Level::L4,
        };
        Self { lowest, ..self }
    }

    /// Calls `f` for every present entry, each before those below it, in order of address.
    pub(crate) fn entries<M: FrameAccess, E: From<WalkError>>(
        self,
        guest: &Guest<'_, M>,
        f: &mut impl FnMut(Place) -> Result<Step, E>,
    ) -> Result<(), E> {
        self.descend(guest, Order::UpperFirst, f).map(drop)
    }

    /// Calls `f` for every entry that leads to a table, each after those below it.
    pub(crate) fn links<M: FrameAccess, E: From<WalkError>>(
        self,
        guest: &Guest<'_, M>,
        f: &mut impl FnMut(Place) -> Result<(), E>,
    ) -> Result<(), E> {
        let f = &mut |place| f(place).map(|()| Step::Over);
        self.descend(guest, Order::LowerFirst, f).map(drop)
    }

    /// Walks the tables of a tree, only reading. Returns whether it has come to the end.
    fn descend<M: FrameAccess, E: From<WalkError>>(
        self,
        guest: &Guest<'_, M>,
        order: Order,
        f: &mut impl FnMut(Place) -> Result<Step, E>,
    ) -> Result<bool, E> {
        let Self { level, table, .. } = self;
        let mut slots = self.slots();
        let next = |slots| guest.machine().next_present(table, slots).map_err(WalkError::from);
        while let Some((index, pte)) = next(slots.clone())? {
            slots.start = u16::from(index) + 1;
            let Some(place) = self.place(index, pte) else { continue };
            let step = if order == Order::UpperFirst { f(place)? } else { Step::Into };
            let (Step::Into, Entry::Table(mfn)) = (step, pte.decode(level)) else {
                if step == Step::Out {
                    return Ok(false);
                }
                continue;
            };
            if let Some(below) = level.below().filter(|below| *below >= self.lowest) {
                let table = guest.pfn(mfn).map_err(WalkError::from)?;
                let first = place.va.raw();
                let last = self.last.min(first | ((1 << level.shift()) - 1));
                let first = self.first.max(first);
                let child = Self { level: below, table, first, last, ..self };
                if !child.descend(guest, order, f)? {
                    return Ok(false);
                }
            }
            if order == Order::LowerFirst && f(place)? == Step::Out {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the slots of its table.
    #[expect(clippy::cast_possible_truncation, reason = "a table has fewer entries")]
    const fn slots(self) -> core::ops::Range<u16> {
        let (shift, entries) = (self.level.shift(), ENTRIES as u64);
        let (first, last) = (self.first >> shift, self.last >> shift);
        (first % entries) as u16..(last % entries) as u16 + 1
    }

    /// Returns an entry of its table, unless that is Xen's own.
    pub(crate) fn place(self, index: PageTableIndex, pte: Pte) -> Option<Place> {
        let Self { level, table, .. } = self;
        let base = self.first & !((1 << (level.shift() + 9)) - 1);
        let va = GuestVa::new(sign_extended(base + (u64::from(index) << level.shift()))).ok()?;
        Some(Place { va, level, table, pte })
    }
}

/// Returns the canonical address with these lower 48 bits.
const fn sign_extended(address: u64) -> u64 {
    if address >> 47 & 1 == 0 { address } else { address | 0xffff << 48 }
}
