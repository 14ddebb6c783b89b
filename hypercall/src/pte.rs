//! Page-table entries, levels, and where an entry is.
//!
//! `Pte` keeps every bit of the word. It can hold nonsense, because a guest can write nonsense and
//! Xen has an answer to it. Code that acts on entries matches on [`Entry`], the decoded form.

use core::fmt;

use bitflags::bitflags;
use x86_64::structures::paging::PageTableIndex;

use crate::frame::{Mfn, PAGE_SHIFT};
use crate::va::GuestVa;

bitflags! {
    /// The flag bits of an entry, by their position in the 64-bit word.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct PteFlags: u64 {
        /// The entry maps something.
        const PRESENT = 1;
        /// Writable.
        const WRITABLE = 1 << 1;
        /// User. Xen sets it on every present entry, because the PV kernel runs in ring 3 too.
        const USER = 1 << 2;
        /// Page-level write-through.
        const PWT = 1 << 3;
        /// Page-level cache disable.
        const PCD = 1 << 4;
        /// Accessed.
        const ACCESSED = 1 << 5;
        /// Dirty.
        const DIRTY = 1 << 6;
        /// PAT in an L1 entry, page size (PSE) in higher ones, where Xen refuses it.
        const PAT_OR_PSE = 1 << 7;
        /// Global. Xen sets it on user mappings, so that they survive a switch between the two
        /// roots.
        const GLOBAL = 1 << 8;
        /// The three low bits left to software.
        const AVAILABLE = 7 << 9;
        /// Xen's mark of a kernel mapping (`_PAGE_GUEST_KERNEL`), bit 52.
        const GUEST_KERNEL = 1 << 52;
        /// Grant mapping (`_PAGE_GNTTAB`), bit 62; meaningful in debug builds of Xen only.
        const GRANT = 1 << 62;
        /// No execute.
        const NO_EXECUTE = 1 << 63;
        /// Every other bit outside the frame number is kept, not dropped.
        const _ = !Pte::ADDRESS_MASK;
    }
}

impl PteFlags {
    /// A writable kernel page that is not executable. It is accessed and dirty already, so that the
    /// CPU never has to write the entry.
    pub const KERNEL_RW: Self = Self::PRESENT
        .union(Self::WRITABLE)
        .union(Self::ACCESSED)
        .union(Self::DIRTY)
        .union(Self::NO_EXECUTE);

    /// A read-only kernel page that is not executable, as page tables are mapped.
    pub const KERNEL_RO: Self = Self::PRESENT.union(Self::ACCESSED).union(Self::NO_EXECUTE);

    /// A writable user page that is not executable. Code is mapped without WRITABLE and NO_EXECUTE.
    pub const USER_RW: Self = Self::KERNEL_RW.union(Self::USER);

    /// An entry of level 2, 3 or 4 that points to a table. It permits everything; the leaves
    /// decide.
    pub const TABLE: Self = Self::PRESENT
        .union(Self::WRITABLE)
        .union(Self::USER)
        .union(Self::ACCESSED)
        .union(Self::DIRTY);

    /// The bits that Xen or the CPU may change in an entry behind the guest's back
    /// (`adjust_guest_l1e`, Xen 4.14 to 4.20). A comparison of a written entry with a read one must
    /// leave them out.
    pub const ADJUSTED_BY_XEN: Self = Self::USER
        .union(Self::GLOBAL)
        .union(Self::GUEST_KERNEL)
        .union(Self::ACCESSED)
        .union(Self::DIRTY);
}

/// A page-table entry with any bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Pte(u64);

impl Pte {
    /// The entry that maps nothing, all bits clear.
    pub const ABSENT: Self = Self(0);

    /// The bits that hold the machine frame: 51..12.
    pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

    /// Makes an entry for `mfn` with `flags`. Frame bits above 40 do not fit and are cut off.
    ///
    /// ```
    /// use hypercall::{Mfn, Pte, PteFlags};
    ///
    /// let pte = Pte::new(Mfn::new(0x203), PteFlags::USER_RW);
    /// assert!(pte.is_present() && pte.is_writable());
    /// assert_eq!(pte.read_only().mfn(), Mfn::new(0x203));
    /// ```
    #[must_use]
    pub const fn new(mfn: Mfn, flags: PteFlags) -> Self {
        Self((mfn.raw() << PAGE_SHIFT) & Self::ADDRESS_MASK | flags.bits())
    }

    /// Makes the entry with exactly these bits.
    #[must_use]
    pub const fn from_raw(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns all bits.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns the frame bits, whether or not the entry is present.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn::new((self.0 & Self::ADDRESS_MASK) >> PAGE_SHIFT)
    }

    /// Returns all bits except the frame's.
    #[must_use]
    pub const fn flags(self) -> PteFlags {
        PteFlags::from_bits_retain(self.0 & !Self::ADDRESS_MASK)
    }

    /// Returns whether the entry maps something.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.flags().contains(PteFlags::PRESENT)
    }

    /// Returns whether the entry is present and writable.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.flags().contains(PteFlags::PRESENT.union(PteFlags::WRITABLE))
    }

    /// Returns an entry for the same frame with other flags.
    #[must_use]
    pub const fn with_flags(self, flags: PteFlags) -> Self {
        Self(self.0 & Self::ADDRESS_MASK | flags.bits())
    }

    /// Returns the entry with WRITABLE set.
    #[must_use]
    pub const fn writable(self) -> Self {
        Self(self.0 | PteFlags::WRITABLE.bits())
    }

    /// Returns the entry with WRITABLE clear.
    #[must_use]
    pub const fn read_only(self) -> Self {
        Self(self.0 & !PteFlags::WRITABLE.bits())
    }

    /// Returns whether `self` and `other` mean the same to a guest, apart from what Xen and the CPU
    /// adjust.
    ///
    /// ```
    /// use hypercall::{Mfn, Pte, PteFlags};
    ///
    /// let written = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
    /// let read_back = Pte::from_raw(0x8010_0000_0020_3067); // Xen has added bits of its own
    /// assert!(written.same_for_guest(read_back) && written != read_back);
    /// ```
    #[must_use]
    pub const fn same_for_guest(self, other: Self) -> bool {
        let mask = !PteFlags::ADJUSTED_BY_XEN.bits();
        self.0 & mask == other.0 & mask
    }

    /// Returns what the entry means in a table of `level`.
    ///
    /// ```
    /// use hypercall::{Entry, Level, Mfn, Pte, PteFlags};
    ///
    /// let pte = Pte::new(Mfn::new(0x203), PteFlags::TABLE);
    /// assert_eq!(pte.decode(Level::L2), Entry::Table(Mfn::new(0x203)));
    /// assert_eq!(pte.decode(Level::L1), Entry::Leaf(Mfn::new(0x203)));
    /// assert_eq!(Pte::ABSENT.decode(Level::L1), Entry::Absent);
    /// ```
    #[must_use]
    pub const fn decode(self, level: Level) -> Entry {
        if !self.is_present() {
            return Entry::Absent;
        }
        let huge = self.flags().contains(PteFlags::PAT_OR_PSE);
        match level.below() {
            Some(_) if !huge => Entry::Table(self.mfn()),
            _ => Entry::Leaf(self.mfn()),
        }
    }
}

impl fmt::Display for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pte {self}")
    }
}

/// A decoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Not present.
    Absent,
    /// Points to a table of the level below.
    Table(Mfn),
    /// Maps memory: a page in an L1 table, or above it a superpage, which only Xen's dom0 builder
    /// makes.
    Leaf(Mfn),
}

/// Level of a page table, in Xen's numbering: L1 maps pages, L4 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Page table: its entries map 4 KiB pages.
    L1 = 1,
    /// Page directory: each entry spans 2 MiB.
    L2 = 2,
    /// Page directory pointers: each entry spans 1 GiB.
    L3 = 3,
    /// Root (pgd): each entry spans 512 GiB.
    L4 = 4,
}

impl Level {
    /// All levels from the root down.
    pub const TOP_DOWN: [Self; 4] = [Self::L4, Self::L3, Self::L2, Self::L1];

    /// Returns the level of the tables that entries of this level point to.
    #[must_use]
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// Returns log2 of the bytes that one entry of this level spans.
    #[must_use]
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (self as u32 - 1)
    }

    /// Returns the index of the entry that `va` goes through in a table of this level.
    ///
    /// ```
    /// use hypercall::{GuestVa, Level};
    ///
    /// let va = GuestVa::new(0x40_3000)?;
    /// assert_eq!(u16::from(Level::L1.index_of(va)), 3);
    /// assert_eq!(u16::from(Level::L2.index_of(va)), 2);
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    #[must_use]
    pub const fn index_of(self, va: GuestVa) -> PageTableIndex {
        PageTableIndex::new_truncate(((va.raw() >> self.shift()) & 0x1ff) as u16)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", *self as u8)
    }
}

/// Where an entry is: a table and an index in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The frame that is the table.
    pub table: Mfn,
    /// Which of its 512 entries.
    pub index: PageTableIndex,
}

impl Slot {
    /// Returns the machine address of the entry, as `mmu_update` wants it.
    #[must_use]
    pub fn machine_address(self) -> u64 {
        (self.table.raw() << PAGE_SHIFT) | (u64::from(self.index) * 8)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mfn {} slot {:#x}", self.table, u16::from(self.index))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_is_one_bit_and_counts_only_when_present() {
        let pte = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
        assert!(pte.is_writable() && pte.writable() == pte);
        let read_only = pte.read_only();
        assert!(!read_only.is_writable() && read_only.writable() == pte);
        assert_eq!(read_only.raw(), pte.raw() - PteFlags::WRITABLE.bits());
        assert!(!Pte::from_raw(PteFlags::WRITABLE.bits()).is_writable());
        let slot = Slot { table: Mfn::new(0x203), index: PageTableIndex::new(7) };
        assert_eq!(format!("{slot} {slot:?}"), "mfn 00203 slot 0x7 mfn 00203 slot 0x7");
    }

    #[test]
    fn an_entry_keeps_every_bit() {
        for bits in [0, u64::MAX, 0x0010_0000_0020_3067, 0x0dea_dbee_f1fe, Pte::ADDRESS_MASK] {
            let pte = Pte::from_raw(bits);
            assert_eq!(Pte::new(pte.mfn(), pte.flags()).raw(), bits);
        }
    }

    #[test]
    fn decoding_follows_presence_level_and_page_size() {
        let table = Pte::new(Mfn::new(7), PteFlags::TABLE);
        assert_eq!(table.decode(Level::L2), Entry::Table(Mfn::new(7)));
        assert_eq!(table.decode(Level::L1), Entry::Leaf(Mfn::new(7)));
        let huge = table.with_flags(PteFlags::TABLE | PteFlags::PAT_OR_PSE);
        assert_eq!(huge.decode(Level::L3), Entry::Leaf(Mfn::new(7)));
        assert_eq!(Pte::from_raw(0xfff_f000).decode(Level::L4), Entry::Absent);
    }

    #[test]
    fn comparison_leaves_out_exactly_what_xen_adjusts() {
        let written = Pte::from_raw(0x20_3063);
        assert!(written.same_for_guest(Pte::from_raw(0x0010_0000_0020_3067)));
        assert!(!written.same_for_guest(written.read_only()));
        assert!(!written.same_for_guest(Pte::from_raw(0x20_4063)));
    }

    #[test]
    fn indices_split_an_address() {
        let va = GuestVa::new(0xffff_ffff_8012_3456).expect("kernel");
        let indices = Level::TOP_DOWN.map(|level| u16::from(level.index_of(va)));
        assert_eq!(indices, [511, 510, 0, 0x123]);
    }

    #[test]
    fn a_slot_is_a_machine_address() {
        let slot = Slot { table: Mfn::new(0x203), index: PageTableIndex::new(511) };
        assert_eq!(slot.machine_address(), 0x20_3ff8);
    }
}
