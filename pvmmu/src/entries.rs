//! What entries become, and how many a table has: nothing is asked of Xen here.

use hypercall::commands::mmu;
use hypercall::{ENTRIES, Entry, GuestVa, Level, MmuUpdate, Pte, PteFlags, Slot};

use crate::cost::Population;
use crate::map_error::MapError;
use crate::marks::{COPY_ON_WRITE, FOREIGN, KEPT, SHARED};
use crate::pages::{Pages, Run};

/// All entries of a table.
pub(crate) type Entries = [Pte; ENTRIES as usize];

/// No entry at all.
pub(crate) const EMPTY: Entries = [Pte::ABSENT; ENTRIES as usize];

/// The bits that the CPU sets.
pub(crate) const SEEN: PteFlags = PteFlags::ACCESSED.union(PteFlags::DIRTY);

/// The command that writes `new`, which has those of its bits that were read, over an entry in
/// which the CPU may have set the others.
#[inline]
pub(crate) const fn command_for(new: Pte) -> u64 {
    if new.flags().contains(SEEN) { mmu::NORMAL } else { mmu::PRESERVE_AD }
}

/// The same as an update.
#[inline]
pub(crate) fn keeping_seen(slot: Slot, new: Pte) -> MmuUpdate {
    MmuUpdate::from_raw(slot.machine_address() | command_for(new), new.raw())
}

/// What becomes of entries.
pub(crate) trait Change {
    /// Whether the entries map nothing afterwards.
    const CLEARS: bool;
    /// Whether Xen must write each entry.
    const ENTRY_BY_ENTRY: bool = false;

    /// The new entry.
    fn of(&self, pte: Pte) -> Pte;

    /// The command of the `mmu_update` that writes it.
    fn command(_: Pte) -> u64 {
        mmu::NORMAL
    }
}

/// Nothing in their place.
pub(crate) struct Clear;

impl Change for Clear {
    const CLEARS: bool = true;

    fn of(&self, _: Pte) -> Pte {
        Pte::ABSENT
    }
}

/// Other flags for the same frames. Accessed and dirty bits stay as the CPU sets them.
pub(crate) struct Flags(u64);

impl Flags {
    /// These, whatever they say of the two bits.
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

/// `new` if the frame of `old` is nobody else's; what a shared one gets otherwise.
#[inline]
pub(crate) fn flags_of_shared(new: Pte, old: Pte) -> Pte {
    if old.flags().contains(SHARED) { shared(new) } else { new }
}

/// A shared page is never writable: that it should be is noted for the first write to it.
#[cold]
fn shared(wanted: Pte) -> Pte {
    let flags = wanted.flags().difference(COPY_ON_WRITE);
    let note = if wanted.is_writable() { COPY_ON_WRITE } else { PteFlags::empty() };
    wanted.with_flags(flags.union(note)).read_only()
}

/// The flags of an upper entry that a caller chooses.
pub(crate) const TABLE_FLAGS: PteFlags = PteFlags::WRITABLE.union(PteFlags::NO_EXECUTE);

/// The entry of `level` for `va` with those of `flags` that mean something in an upper one.
pub(crate) fn with_table_flags(
    level: Level,
    va: GuestVa,
    pte: Pte,
    flags: PteFlags,
) -> Result<Pte, MapError> {
    let chosen = TABLE_FLAGS;
    match pte.decode(level) {
        _ if !flags.contains(PteFlags::PRESENT) => Err(MapError::Flags(flags.bits())),
        Entry::Table(_) => Ok(pte.with_flags(pte.flags() & !chosen | flags & chosen)),
        _ => Err(MapError::NotMapped(va)),
    }
}

/// Checks that all entries of a run are present.
pub(crate) fn check_present(run: Run, entries: &[Pte]) -> Result<(), MapError> {
    // All at once first: the position matters only if there is one.
    let all = entries.iter().fold(u64::MAX, |all, pte| all & pte.raw());
    if Pte::from_raw(all).is_present() {
        return Ok(());
    }
    let at = entries.iter().position(|pte| !pte.is_present()).unwrap_or(0);
    let pages = Pages { start: run.va, count: run.count.into() };
    Err(MapError::NotMapped(pages.at(at as u64)?))
}

/// Whether the table maps a frame that is not the guest's own: Xen does not take such a table back,
/// since it checks the entries of a table as the guest's own.
pub(crate) fn any_foreign(entries: &Entries) -> bool {
    let any = entries.iter().fold(0, |any, pte| any | pte.raw());
    any & FOREIGN.bits() != 0
}

/// Whether any of these pages is shared.
pub(crate) fn any_shared(entries: &[Pte]) -> bool {
    entries.iter().any(|pte| pte.flags().contains(SHARED))
}

const BOTH: u64 = PteFlags::PRESENT.bits() | PteFlags::WRITABLE.bits();

/// How many entries of an L1 table map pages. Tables are full or nearly empty: groups with nothing
/// in them cost little.
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
