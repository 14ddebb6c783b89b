//! New values of entries, and counts of entries. Nothing here asks Xen.

use hypercall::commands::mmu;
use hypercall::{ENTRIES, Entry, GuestVa, Level, MmuUpdate, Pte, PteFlags, Slot};

use crate::cost::Population;
use crate::map_error::MapError;
use crate::marks::{COPY_ON_WRITE, FOREIGN, KEPT, SHARED};
use crate::pages::{Pages, Run};

/// All entries of a table.
pub(crate) type Entries = [Pte; ENTRIES as usize];

/// Returns a table without entries.
pub(crate) const EMPTY: Entries = [Pte::ABSENT; ENTRIES as usize];

/// The bits that the CPU sets.
pub(crate) const SEEN: PteFlags = PteFlags::ACCESSED.union(PteFlags::DIRTY);

/// Returns the command that writes `new`, which has the bits that were read. The CPU may have set
/// others meanwhile.
#[inline]
pub(crate) const fn command_for(new: Pte) -> u64 {
    if new.flags().contains(SEEN) { mmu::NORMAL } else { mmu::PRESERVE_AD }
}

/// Returns the same as an update.
#[inline]
pub(crate) fn keeping_seen(slot: Slot, new: Pte) -> MmuUpdate {
    MmuUpdate::from_raw(slot.machine_address() | command_for(new), new.raw())
}

/// A change of entries.
pub(crate) trait Change {
    /// Whether the entries are empty afterwards.
    const CLEARS: bool;
    /// Whether Xen must write each entry.
    const ENTRY_BY_ENTRY: bool = false;

    /// Returns the new entry.
    fn of(&self, pte: Pte) -> Pte;

    /// Returns the command of the `mmu_update` that writes it.
    fn command(_: Pte) -> u64 {
        mmu::NORMAL
    }
}

/// Clears entries.
pub(crate) struct Clear;

impl Change for Clear {
    const CLEARS: bool = true;

    fn of(&self, _: Pte) -> Pte {
        Pte::ABSENT
    }
}

/// Gives entries other flags. Accessed and dirty bits stay as the CPU sets them.
pub(crate) struct Flags(u64);

impl Flags {
    /// Creates the change to `flags`, whose two bits do not matter.
    pub(crate) const fn of(flags: PteFlags) -> Self {
        Self(flags.difference(SEEN).bits())
    }
}

impl Change for Flags {
    const CLEARS: bool = false;

    #[inline]
    fn of(&self, pte: Pte) -> Pte {
        let new = Pte::from_raw(pte.raw() & (KEPT | SEEN.bits()) | self.0);
        flags_of_shared(new, pte)
    }

    #[inline]
    fn command(new: Pte) -> u64 {
        command_for(new)
    }
}

/// Returns `new` if the frame of `old` is not shared, and otherwise what a shared frame gets.
#[inline]
pub(crate) fn flags_of_shared(new: Pte, old: Pte) -> Pte {
    if old.flags().contains(SHARED) { shared(new) } else { new }
}

/// Returns an entry for a shared page: never writable, but marked if it should be, for the first
/// write to it.
#[cold]
fn shared(wanted: Pte) -> Pte {
    let flags = wanted.flags().difference(COPY_ON_WRITE);
    let note = if wanted.is_writable() { COPY_ON_WRITE } else { PteFlags::empty() };
    wanted.with_flags(flags.union(note)).read_only()
}

/// The flags of an upper entry that a caller can choose.
pub(crate) const TABLE_FLAGS: PteFlags = PteFlags::WRITABLE.union(PteFlags::NO_EXECUTE);

/// Returns the entry of `level` for `va` with those of `flags` that an upper entry can have.
pub(crate) fn with_table_flags(
    level: Level,
    va: GuestVa,
    pte: Pte,
    flags: PteFlags,
) -> Result<Pte, MapError> {
    let chosen = TABLE_FLAGS;
    match pte.decode(level) {
        _ if !flags.contains(PteFlags::PRESENT) => Err(MapError::Flags { va, flags }),
        Entry::Table(_) => Ok(pte.with_flags(pte.flags() & !chosen | flags & chosen)),
        _ => Err(MapError::NotMapped(va)),
    }
}

/// Checks that all entries of a run are present.
pub(crate) fn check_present(run: Run, entries: &[Pte]) -> Result<(), MapError> {
    // All at once first: the position matters only if one is absent.
    let all = entries.iter().fold(u64::MAX, |all, pte| all & pte.raw());
    if Pte::from_raw(all).is_present() {
        return Ok(());
    }
    let at = entries.iter().position(|pte| !pte.is_present()).unwrap_or(0);
    let pages = Pages { start: run.va, count: run.count.into() };
    Err(MapError::NotMapped(pages.at(at as u64)?))
}

/// Returns whether the table maps a frame that is not the guest's own. Xen does not take such a
/// table back, because it checks a table's entries as the guest's own.
pub(crate) fn any_foreign(entries: &Entries) -> bool {
    let any = entries.iter().fold(0, |any, pte| any | pte.raw());
    any & FOREIGN.bits() != 0
}

/// Returns whether any of these pages is shared.
pub(crate) fn any_shared(entries: &[Pte]) -> bool {
    entries.iter().any(|pte| pte.flags().contains(SHARED))
}

const BOTH: u64 = PteFlags::PRESENT.bits() | PteFlags::WRITABLE.bits();

/// Returns how many entries of an L1 table map pages. Tables are full or nearly empty, so empty
/// groups are cheap.
pub(crate) fn population(entries: &[Pte; ENTRIES as usize]) -> Population {
    let (mut present, mut writable) = (0u64, 0u64);
    for eight in entries.as_chunks::<8>().0 {
        let any = eight.iter().fold(0, |any, pte| any | pte.raw());
        if any & PteFlags::PRESENT.bits() == 0 {
            continue;
        }
        let all = eight.iter().fold(u64::MAX, |all, pte| all & pte.raw());
        if all & BOTH == any & BOTH {
            // All alike.
            present += 8;
            writable += (any & PteFlags::WRITABLE.bits()) * 4;
            continue;
        }
        for pte in eight {
            let is_present = pte.raw() & PteFlags::PRESENT.bits();
            present += is_present;
            writable += (pte.raw() >> 1) & is_present;
        }
    }
    let count = |number| u16::try_from(number).unwrap_or(ENTRIES);
    Population { writable: count(writable), read_only: count(present - writable) }
}

const _: () = assert!(PteFlags::WRITABLE.bits() == 2 && PteFlags::PRESENT.bits() == 1);
const _: () = assert!(Level::L1 as u8 == 1);
