//! Batches, entries of tables, and the choice between the ways to change them.

use hypercall::{BatchStorage, Entry, Level, Mfn, MmuUpdate, Pte, PteFlags, Slot};
use pvmmu::cost::{COSTS, Population, Strategy};
use x86_64::structures::paging::PageTableIndex;

/// Returns an update of each of the first entries of a table.
#[must_use]
pub fn updates(count: u16) -> Vec<(MmuUpdate, u64)> {
    let update = |index| {
        let slot = Slot { table: Mfn::new(7), index: PageTableIndex::new_truncate(index) };
        let pte = Pte::new(Mfn::new(index.into()), PteFlags::USER_RW);
        (MmuUpdate::set(slot, pte), pte.read_only().raw())
    };
    (0..count).map(update).collect()
}

/// Collects updates in a batch, and inverts it. How many are in it then: none, as none was sent.
#[must_use]
pub fn fill_batch(updates: &[(MmuUpdate, u64)]) -> usize {
    let mut storage = BatchStorage::<512, 8>::new();
    let mut batch = storage.batch();
    let full = updates.iter().find_map(|(update, old)| batch.update(*update, *old).err());
    debug_assert!(full.is_none(), "512 updates have room");
    let filled = batch.updates();
    batch.invert();
    filled
}

/// Returns a table's entries: pages, but for each fourth, which is empty.
#[must_use]
pub fn table(entries: u16) -> Vec<Pte> {
    let entry = |index: u16| match index % 4 {
        0 => Pte::ABSENT,
        _ => Pte::new(Mfn::new(index.into()), PteFlags::USER_RW),
    };
    (0..entries).map(entry).collect()
}

/// Returns how many entries map a page.
#[must_use]
pub fn decode(table: &[Pte]) -> usize {
    table.iter().filter(|pte| matches!(pte.decode(Level::L1), Entry::Leaf(_))).count()
}

/// For how many counts of pages a table is better taken out than changed in place.
#[must_use]
pub fn choose(pages: u16) -> usize {
    let before = Population { writable: pages, read_only: 0 };
    let after = |changed| Population { writable: pages - changed, read_only: changed };
    (0..=pages)
        .filter(|changed| COSTS.to_change(*changed, before, after(*changed)) == Strategy::Table)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_what_its_name_says() {
        assert_eq!(fill_batch(&updates(512)), 512);
        assert_eq!(decode(&table(512)), 384);
        assert!((1..512).contains(&choose(512)));
    }
}
