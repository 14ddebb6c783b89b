//! Marks of this crate in entries: bits 53 to 58, which Xen and the CPU leave to software.
//!
//! Bits 9 to 11 (`PteFlags::AVAILABLE`) are free for this crate's users. Bits 59 to 62 are not
//! used: with protection keys the CPU reads them, and debug builds of Xen mark grants with bit 62.
//! bit 62.

use hypercall::{Level, Pte, PteFlags};

/// In a leaf: other address spaces map the frame, too, and it is counted.
pub(crate) const SHARED: PteFlags = PteFlags::from_bits_retain(1 << 53);
/// In a leaf: the frame is not the guest's own.
pub(crate) const FOREIGN: PteFlags = PteFlags::from_bits_retain(1 << 54);
/// In an entry of a user root: a copy of the kernel root's.
pub(crate) const MIRRORED: PteFlags = SHARED.union(FOREIGN);
/// In a leaf: the page was writable until it was shared; or, if it is not shared, until it was
/// write-protected for a move or a look at its bits.
pub(crate) const COPY_ON_WRITE: PteFlags = PteFlags::from_bits_retain(1 << 57);
/// In a leaf that fork has written: the entry it was copied from was changed for it.
pub(crate) const FORKED: PteFlags = PteFlags::from_bits_retain(1 << 58);

/// What a leaf keeps when its flags change: the frame, and the marks of its owner.
pub(crate) const KEPT: u64 = Pte::ADDRESS_MASK | SHARED.union(FOREIGN).bits();

const HELD_SHIFT: u32 = 55;
/// In an entry that leads to a table: whether that is pinned by itself, and since when. A leaf has
/// at most the highest of these bits: [`COPY_ON_WRITE`].
const HELD: PteFlags = PteFlags::from_bits_retain(7 << HELD_SHIFT);
/// The value for an L1 table that was pinned where it is linked. The others are levels.
const IN_PLACE: u64 = 4 | Level::L1 as u64;

/// Every mark.
pub(crate) const MARKS: PteFlags =
    SHARED.union(FOREIGN).union(HELD).union(COPY_ON_WRITE).union(FORKED);

/// The flags that callers may set: not Xen's (GLOBAL, GUEST_KERNEL), the grant operations' (GRANT),
/// or this crate's. Cache attributes pass: Xen allows them to a guest with devices, and to no
/// other.
pub(crate) const CALLERS_FLAGS: PteFlags = PteFlags::USER_RW
    .union(PteFlags::AVAILABLE)
    .union(PteFlags::PWT)
    .union(PteFlags::PCD)
    .union(PteFlags::PAT_OR_PSE);

const _: () = assert!(!CALLERS_FLAGS.intersects(MARKS), "marks are not for callers");

/// A table that is pinned by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A table of this level that a pool has handed out.
    Pooled(Level),
    /// An L1 table that was pinned where it is linked.
    InPlace,
}

impl Held {
    /// Returns the table's level.
    pub(crate) const fn level(self) -> Level {
        match self {
            Self::Pooled(level) => level,
            Self::InPlace => Level::L1,
        }
    }
}

/// Returns the flags of an entry that leads to a table which is pinned by itself.
pub(crate) const fn held_table(held: Held) -> PteFlags {
    let value = match held {
        Held::Pooled(level) => level as u64,
        Held::InPlace => IN_PLACE,
    };
    PteFlags::TABLE.union(PteFlags::from_bits_retain(value << HELD_SHIFT))
}

/// Returns whether [`held`] must be asked at all: most tables are not pinned by themselves.
#[inline]
pub(crate) const fn may_be_held(pte: Pte) -> bool {
    pte.raw() & HELD.bits() != 0
}

/// Returns how the table behind a present entry is pinned by itself, if it is.
pub(crate) const fn held(pte: Pte) -> Option<Held> {
    match (pte.raw() & HELD.bits()) >> HELD_SHIFT {
        1 => Some(Held::Pooled(Level::L1)),
        2 => Some(Held::Pooled(Level::L2)),
        3 => Some(Held::Pooled(Level::L3)),
        IN_PLACE => Some(Held::InPlace),
        _ => None,
    }
}

/// Returns the entry without the mark that its table is pinned by itself.
pub(crate) const fn not_held(pte: Pte) -> Pte {
    Pte::from_raw(pte.raw() & !HELD.bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall::Mfn;

    #[test]
    fn a_held_table_is_known_by_its_level_and_no_leaf_is_taken_for_one() {
        let pooled = [Level::L1, Level::L2, Level::L3].map(Held::Pooled);
        for table in pooled.into_iter().chain([Held::InPlace]) {
            let pte = Pte::new(Mfn::new(7), held_table(table));
            assert_eq!(held(pte), Some(table));
            assert_eq!(held(not_held(pte)), None);
            assert_eq!(not_held(pte), Pte::new(Mfn::new(7), PteFlags::TABLE));
        }
        for leaf in [SHARED, FOREIGN, COPY_ON_WRITE, FORKED, MIRRORED] {
            assert_eq!(held(Pte::new(Mfn::new(7), PteFlags::USER_RW | leaf)), None);
        }
    }

    #[test]
    fn marks_keep_away_from_every_bit_that_means_something() {
        let others = PteFlags::USER_RW
            | PteFlags::AVAILABLE
            | PteFlags::ADJUSTED_BY_XEN
            | PteFlags::GRANT
            | PteFlags::PAT_OR_PSE
            | PteFlags::PCD
            | PteFlags::PWT;
        assert!(!MARKS.intersects(others));
        assert_eq!(MARKS.bits() & Pte::ADDRESS_MASK, 0);
        assert_eq!(MARKS.bits() >> 59, 0);
    }
}
