//! Work for the host's instruction counter: what the crates do between two hypercalls, on data of
//! any size, without a machine.
//!
//! The benches of this package (`cargo xtask bench --host`) call these functions under valgrind.
//! Each takes what was made ready for it, so that only the work itself is counted.
#![expect(unsafe_code, reason = "lists so long that only untouched memory can hold them")]

use std::sync::atomic::AtomicU64;

use hypercall::{BatchStorage, Entry, Level, Mfn, MmuUpdate, Pfn, Pte, PteFlags, Slot};
use p2m::{P2m, P2mError};
use pvmmu::cost::{COSTS, Population, Way};
use x86_64::structures::paging::PageTableIndex;

/// A frame list, as a domain builder leaves it.
pub type List = Box<[AtomicU64]>;

/// Look-ups and changes that a function makes.
pub const TIMES: u64 = 1000;

/// The list of a guest with so many pfns, all of whose words are zero: 1 TiB needs 2 GiB of them,
/// which no host has to touch.
#[must_use]
pub fn list(pfns: usize) -> List {
    let list = Box::<[AtomicU64]>::new_zeroed_slice(pfns);
    // SAFETY: all zeroes are atomic words.
    unsafe { list.assume_init() }
}

/// Pfns in no order that a CPU could foresee.
fn pfns(len: u64) -> impl Iterator<Item = Pfn> {
    (0..TIMES).map(move |step| Pfn::new(step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % len))
}

/// Takes a list over. How long it is.
///
/// # Errors
/// [`P2mError`].
pub fn adopt(list: &[AtomicU64]) -> Result<u64, P2mError> {
    P2m::adopt(list).map(|p2m| p2m.len())
}

/// Looks 1000 pfns up.
///
/// # Errors
/// [`P2mError`].
pub fn look_up(list: &[AtomicU64]) -> Result<u64, P2mError> {
    let p2m = P2m::adopt(list)?;
    pfns(p2m.len()).try_fold(0, |sum, pfn| Ok(sum ^ p2m.mfn(pfn)?.raw()))
}

/// Gives 1000 pfns other frames, each twice.
///
/// # Errors
/// [`P2mError`].
pub fn replace(list: &[AtomicU64]) -> Result<(), P2mError> {
    let p2m = P2m::adopt(list)?;
    for mfn in [1, 2] {
        pfns(p2m.len()).try_for_each(|pfn| p2m.replace(pfn, Mfn::new(mfn)).map(drop))?;
    }
    Ok(())
}

/// An update of each of the first entries of a table.
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

/// A table's entries: pages, but for each fourth, which is empty.
#[must_use]
pub fn table(entries: u16) -> Vec<Pte> {
    let entry = |index: u16| match index % 4 {
        0 => Pte::ABSENT,
        _ => Pte::new(Mfn::new(index.into()), PteFlags::USER_RW),
    };
    (0..entries).map(entry).collect()
}

/// How many entries map a page.
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
        .filter(|changed| COSTS.to_change(*changed, before, after(*changed)) == Way::Table)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_what_its_name_says() {
        let list = list(1 << 14);
        assert_eq!(adopt(&list), Ok(1 << 14));
        assert_eq!(look_up(&list), Ok(0));
        assert_eq!(replace(&list), Ok(()));
        assert_eq!(look_up(&list), Ok(0), "an even number of equal frames");
        assert_eq!(fill_batch(&updates(512)), 512);
        assert_eq!(decode(&table(512)), 384);
        assert!((1..512).contains(&choose(512)));
    }
}
