//! Reads page tables, live or loose.

use core::fmt;

use hypercall::{AccessError, Entry, FrameAccess, GuestVa, Level, Pfn, Pte, Slot};

use crate::error::P2mError;
use crate::guest::Guest;

/// Why page tables could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A table's frame cannot be reached.
    Access(AccessError),
    /// An entry leads to a frame that the frame map does not confirm.
    P2m(P2mError),
    /// The address has no L1 entry.
    NotMapped(GuestVa),
}

impl From<AccessError> for WalkError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl From<P2mError> for WalkError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(error) => error.fmt(f),
            Self::P2m(error) => error.fmt(f),
            Self::NotMapped(va) => write!(f, "{va} has no L1 entry"),
        }
    }
}

impl core::error::Error for WalkError {}

/// An entry on the way from the root to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The level of its table.
    pub level: Level,
    /// The table.
    pub table: Pfn,
    /// The machine address of the entry.
    pub slot: Slot,
    /// The entry.
    pub pte: Pte,
}

/// The entries of an address, from the root down to the leaf or to the first absent one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Option<TableEntry>; 4],
}

impl Walk {
    /// Returns the entries, root first.
    pub fn steps(&self) -> impl Iterator<Item = TableEntry> + '_ {
        self.steps.iter().flatten().copied()
    }

    /// Returns the entry in the table of `level`, if the walk got there.
    #[must_use]
    pub fn at(&self, level: Level) -> Option<TableEntry> {
        self.steps().find(|step| step.level == level)
    }

    /// Returns the last entry.
    #[must_use]
    pub fn last(&self) -> Option<TableEntry> {
        self.steps().last()
    }

    /// Returns the L1 slot and its entry, present or not, if there is an L1 table.
    #[must_use]
    pub fn leaf(&self) -> Option<(Slot, Pte)> {
        self.at(Level::L1).map(|step| (step.slot, step.pte))
    }
}

/// Writes a line for each entry: level, place, value.
impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.steps() {
            writeln!(
                f,
                "  {} pfn {} mfn {} slot {:>3}: {}",
                step.level,
                step.table,
                step.slot.table,
                u16::from(step.slot.index),
                step.pte
            )?;
        }
        Ok(())
    }
}

/// Walks the tree under `root` to the entry for `va`. Reads the tables as they are now, without the
/// requests that are pending in a batch. An absent entry ends the walk without an error. So does a
/// superpage, which only the dom0 builder makes.
///
/// # Errors
/// [`WalkError`] if a table cannot be read, or an entry leads to a frame that is not the guest's.
///
///
/// ```
/// # use hypercall::{FrameAccess as _, FrameSource as _, Level};
/// # use pv_tests::guest::TestGuest;
/// # use p2m::walk;
/// let TestGuest { guest, mut frames, .. } = TestGuest::new();
/// let pfn = frames.take().ok_or("no memory")?.pfn();
/// let va = guest.machine().direct_map(pfn)?;
/// let found = walk(&guest, guest.kernel_root(), va)?;
/// assert_eq!(found.steps().count(), 4);
/// let (slot, entry) = found.leaf().ok_or("there is a table")?;
/// assert!(entry.is_present());
/// assert_eq!(found.at(Level::L1).map(|step| step.slot), Some(slot));
/// println!("{found}"); // a line for each table on the way
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn walk<M: FrameAccess>(
    guest: &Guest<'_, M>,
    root: Pfn,
    va: GuestVa,
) -> Result<Walk, WalkError> {
    let mut steps = [None; 4];
    let mut table = root;
    for (place, level) in steps.iter_mut().zip(Level::TOP_DOWN) {
        let index = level.index_of(va);
        let pte = guest.machine().read_entry(table, index)?;
        *place = Some(TableEntry { level, table, slot: guest.slot(table, index)?, pte });
        match pte.decode(level) {
            Entry::Table(mfn) => table = guest.pfn(mfn)?,
            Entry::Absent | Entry::Leaf(_) => break,
        }
    }
    Ok(Walk { steps })
}
