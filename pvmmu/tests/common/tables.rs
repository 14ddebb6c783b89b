//! The tables of a tree, as its entries and the model's Xen see them.

use hypercall::{ENTRIES, Entry, FrameAccess, Level, Mfn, Pfn, Pte};
use pvmmu::TablePool;
use x86_64::structures::paging::PageTableIndex;
use xen_model::{Model, TypeFlags};

use super::TestGuest;

/// A table below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub level: Level,
    pub mfn: Mfn,
    /// Whether Xen holds it by a pin of its own.
    pub is_pinned: bool,
    /// What its entry says of that: 0 for nothing, the level if it is out of a pool, 5 if it was
    /// pinned where it is.
    pub mark: u64,
}

/// Bits 55 to 57 of an entry above L1: see `pvmmu/src/marks.rs`.
const fn mark(pte: Pte) -> u64 {
    pte.raw() >> 55 & 7
}

/// Every table below the user half of `root`, lower ones first.
pub fn tables(test: &TestGuest, root: Pfn) -> Vec<Seen> {
    let mut seen = Vec::new();
    below(test, Level::L4, root, &mut seen);
    seen
}

fn below(test: &TestGuest, level: Level, table: Pfn, seen: &mut Vec<Seen>) {
    let Some(next) = level.below() else { return };
    let p2m = test.p2m();
    let mut slots = if level == Level::L4 { 0..256 } else { 0..512 };
    while let Some((index, pte)) =
        test.model.next_present(table, slots.clone()).expect("a readable table")
    {
        slots.start = u16::from(index) + 1;
        let Entry::Table(mfn) = pte.decode(level) else { continue };
        below(test, next, p2m.pfn(&test.model, mfn).expect("the test's"), seen);
        let is_pinned = pinned(&test.model, mfn);
        seen.push(Seen { level: next, mfn, is_pinned, mark: mark(pte) });
    }
}

fn pinned(model: &Model, mfn: Mfn) -> bool {
    model.frame(mfn).is_some_and(|frame| frame.kind.flags.contains(TypeFlags::PINNED))
}

/// Checks that the tables of a tree that Xen holds by themselves are those that carry the mark, and
/// that no entry of theirs names a frame that it does not map.
pub fn check_marks(test: &TestGuest, root: Pfn) {
    for table in tables(test, root) {
        let pfn = test.p2m().pfn(&test.model, table.mfn).expect("the test's");
        let mut entries = [Pte::ABSENT; ENTRIES as usize];
        test.model.read_entries(pfn, PageTableIndex::new(0), &mut entries).expect("readable");
        let names = |pte: &&Pte| !pte.is_present() && pte.mfn() != Mfn::new(0);
        assert_eq!(entries.iter().find(names), None, "an absent entry names a frame: {table:?}");
        assert_eq!(table.is_pinned, table.mark != 0, "mark and pin differ: {table:?}");
        let is_known = [0, table.level as u64, 4 | Level::L1 as u64].contains(&table.mark);
        assert!(is_known, "a mark of no table: {table:?}");
    }
}

/// Tables out of a pool in the tree.
pub fn pooled(test: &TestGuest, root: Pfn) -> u64 {
    let all = tables(test, root);
    all.iter().filter(|table| (1..4).contains(&table.mark)).count() as u64
}

/// Checks that a pool's counts add up, if `out` of its tables are in address spaces.
pub fn check_counts(tables: &TablePool<'_>, out: u64) {
    let counts = tables.counts();
    let inside: usize =
        [Level::L1, Level::L2, Level::L3].map(|level| tables.len(level)).iter().sum();
    assert_eq!((counts.out(), counts.inside()), (out, inside as u64), "{counts:?}");
}
