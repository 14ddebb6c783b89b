//! The two words of `page_info` that decide everything: what a frame is used as, and how often.
//!
//! A frame has a type and counts the uses as that type; while the count is not zero, no use as
//! another type is granted. That is the whole safety system of PV. The model keeps the parts as
//! fields and packs them into Xen's words only to show them, so one implementation serves both
//! layouts.

use bitflags::bitflags;
use core::fmt;
use hypercall::Level;

use crate::release::{Layout, Release};

/// What a frame is used as (`PGT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PageType {
    /// Nothing yet (`PGT_none`).
    #[default]
    None,
    /// Page table of level 1.
    L1,
    /// Page table of level 2.
    L2,
    /// Page table of level 3.
    L3,
    /// Page table of level 4, a root.
    L4,
    /// Segment descriptors: part of a GDT or LDT (`PGT_seg_desc_page`).
    SegDesc,
    /// Memory that someone may write (`PGT_writable_page`).
    Writable,
}

impl PageType {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::None, Self::L1, Self::L2, Self::L3, Self::L4, Self::SegDesc, Self::Writable];

    /// Returns a word for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::L4 => "L4",
            Self::SegDesc => "descriptors",
            Self::Writable => "writable",
        }
    }
}

impl PageType {
    /// Returns the type of tables of `level`.
    #[must_use]
    pub const fn table(level: Level) -> Self {
        match level {
            Level::L1 => Self::L1,
            Level::L2 => Self::L2,
            Level::L3 => Self::L3,
            Level::L4 => Self::L4,
        }
    }

    /// Returns the level, if the type is that of a table.
    #[must_use]
    pub const fn level(self) -> Option<Level> {
        match self {
            Self::L1 => Some(Level::L1),
            Self::L2 => Some(Level::L2),
            Self::L3 => Some(Level::L3),
            Self::L4 => Some(Level::L4),
            Self::None | Self::SegDesc | Self::Writable => None,
        }
    }

    /// Returns the bare type value in `layout`.
    #[must_use]
    pub const fn word(self, layout: Layout) -> u64 {
        let number = match (self, layout) {
            (Self::None, _) => 0,
            (Self::L1, _) => 1,
            (Self::L2, _) => 2,
            (Self::L3, _) => 3,
            (Self::L4, _) => 4,
            (Self::SegDesc, _) => 5,
            (Self::Writable, _) => 7,
        };
        match layout {
            Layout::Legacy4bit => number << 60,
            Layout::Modern3bit => number << 61,
        }
    }
}

bitflags! {
    /// The flags of a type.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct TypeFlags: u8 {
        /// A pin holds one use (`PGT_pinned`).
        const PINNED = 1;
        /// The contents were found good for the type (`PGT_validated`).
        const VALIDATED = 2;
        /// Validation, or its undoing, has stopped half-way (`PGT_partial`).
        const PARTIAL = 4;
        /// An entry is being edited (`PGT_locked`).
        const LOCKED = 8;
        /// Mapped write-combining on a CPU that does not snoop itself (`PGT_non_coherent`).
        const NON_COHERENT = 16;
    }
}

/// The type of a frame and its uses (`type_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct TypeInfo {
    /// The type.
    pub kind: PageType,
    /// Its flags.
    pub flags: TypeFlags,
    /// Uses as that type.
    pub count: u32,
}

impl TypeInfo {
    /// Returns a type in good use.
    #[must_use]
    pub const fn validated(kind: PageType, count: u32) -> Self {
        Self { kind, flags: TypeFlags::VALIDATED, count }
    }

    /// As [`validated`](Self::validated), pinned.
    #[must_use]
    pub const fn pinned(kind: PageType, count: u32) -> Self {
        Self { kind, flags: TypeFlags::VALIDATED.union(TypeFlags::PINNED), count }
    }

    /// Returns whether the contents were found good.
    #[must_use]
    pub const fn is_validated(self) -> bool {
        self.flags.contains(TypeFlags::VALIDATED)
    }

    /// Returns whether the frame is a table that is in use as one.
    #[must_use]
    pub const fn live_level(self) -> Option<Level> {
        if self.is_validated() && self.count > 0 { self.kind.level() } else { None }
    }

    /// Xen's word in `layout`.
    #[must_use]
    pub const fn word(self, layout: Layout) -> u64 {
        let (locked, non_coherent) = match layout {
            Layout::Legacy4bit => (55, 54),
            Layout::Modern3bit => (60, 55),
        };
        let mut word = self.kind.word(layout) | self.count as u64;
        let bits = [
            (TypeFlags::PINNED, 59),
            (TypeFlags::VALIDATED, 58),
            (TypeFlags::PARTIAL, 56),
            (TypeFlags::LOCKED, locked),
            (TypeFlags::NON_COHERENT, non_coherent),
        ];
        let mut k = 0;
        while k < bits.len() {
            if self.flags.contains(bits[k].0) {
                word |= 1 << bits[k].1;
            }
            k += 1;
        }
        word
    }
}

bitflags! {
    /// The flags of a frame's references.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct CountFlags: u8 {
        /// Allocated to its owner, which holds one reference (`PGC_allocated`).
        const ALLOCATED = 1;
        /// Out of Xen's own heap (`PGC_xen_heap`).
        const XEN_HEAP = 2;
        /// In Xen's free lists (`PGC_state_free`).
        const FREE = 4;
    }
}

/// The references to a frame (`count_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CountInfo {
    /// Flags.
    pub flags: CountFlags,
    /// References.
    pub refs: u32,
}

impl CountInfo {
    /// Returns a frame that belongs to a domain and has `refs` references in all.
    #[must_use]
    pub const fn allocated(refs: u32) -> Self {
        Self { flags: CountFlags::ALLOCATED, refs }
    }

    /// Xen's word in `release`.
    #[must_use]
    pub fn word(self, release: Release) -> u64 {
        let state = if release.before(Release::V4_14) { 55 } else { 58 };
        let mut word = u64::from(self.refs);
        let bits = [
            (CountFlags::ALLOCATED, 1 << 63),
            (CountFlags::XEN_HEAP, 1 << 62),
            (CountFlags::FREE, 3 << state),
        ];
        for (flag, bit) in bits {
            if self.flags.contains(flag) {
                word |= bit;
            }
        }
        word
    }
}

impl fmt::Display for PageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::L4 => "L4",
            Self::SegDesc => "seg-desc",
            Self::Writable => "writable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_look_as_xen_prints_them() {
        let (old, new) = (Layout::Legacy4bit, Layout::Modern3bit);
        let writable = TypeInfo::validated(PageType::Writable, 1);
        assert_eq!(writable.word(new), 0xe400_0000_0000_0001);
        assert_eq!(writable.word(old), 0x7400_0000_0000_0001);
        let root = TypeInfo::pinned(PageType::L4, 2);
        assert_eq!(root.word(new), 0x8c00_0000_0000_0002);
        assert_eq!(root.word(old), 0x4c00_0000_0000_0002);
        let mut edited = TypeInfo::validated(PageType::L1, 2);
        edited.flags |= TypeFlags::LOCKED;
        assert_eq!(edited.word(new), 0x3400_0000_0000_0002);
        assert_eq!(edited.word(old), 0x1480_0000_0000_0002);
        assert_eq!(PageType::SegDesc.word(new), 0xa000_0000_0000_0000);
    }

    #[test]
    fn reference_words_follow_the_release() {
        assert_eq!(CountInfo::allocated(2).word(Release::V4_17), 0x8000_0000_0000_0002);
        let free = CountInfo { flags: CountFlags::FREE, refs: 0 };
        assert_eq!(free.word(Release::V4_17), 0x0c00_0000_0000_0000);
        assert_eq!(free.word(Release::V4_9), 0x0180_0000_0000_0000);
    }
}
