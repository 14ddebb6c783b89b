//! What a domain looks like when it starts: the builders' work as a function of the page.
//!
//! Sections 6.2 and 6.3 of the specification: `xl create` (tools/libs/guest, xg_dom_core.c and
//! xg_dom_x86.c) and `dom0_construct_pv` (arch/x86/pv/dom0_build.c).

use hypercall::{Level, Mfn, PAGE_SHIFT};

use super::Start;
use super::mapping::Mapping;
use crate::cpu_features::NoExecute;
use crate::page::{ALL_ENTRIES, Contents, Page, WORDS};
use crate::scatter::Scatter;
use crate::types::{CountInfo, PageType, TypeInfo};
use crate::xen_slots::xen_slot;

/// A table entry of the builder's after Xen has adjusted it.
const TABLE_ENTRY: u64 = 0x67;
/// A page entry, writable and kernel's.
const PAGE_RW: u64 = 0x0010_0000_0000_0027;
/// A page entry, read-only: the frame is a table.
const PAGE_RO: u64 = 0x0010_0000_0000_0025;

/// A domain as its builder leaves it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The domain.
    pub(crate) owner: u16,
    /// Whether the CPU has NX.
    pub(crate) no_execute: NoExecute,
    /// Frames behind pages `0..pages`.
    pub(crate) frames: Scatter,
    /// Pages of RAM.
    pub(crate) pages: u64,
    /// The first address, where page 0 is.
    pub(crate) virt_base: u64,
    /// The mapping the guest starts with.
    pub(crate) boot: Mapping,
    /// The mapping of the P2M list, if it lies outside.
    pub(crate) p2m: Option<Mapping>,
    /// Where the pieces are.
    pub(crate) pieces: Pieces,
    /// Whether the builder has been at work at all.
    pub(crate) start: Start,
}

/// Where the builder puts its pieces: first pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces {
    /// The P2M list.
    pub(crate) p2m_list: u64,
    /// Pages of the list.
    pub(crate) p2m_pages: u64,
    /// `start_info`.
    pub(crate) start_info: u64,
    /// Rings of xenstore and console; a domU has them behind `start_info`.
    pub(crate) rings: Option<u64>,
    /// The boot stack.
    pub(crate) stack: u64,
}

impl Plan {
    /// The frame behind page `pfn`, which is below `pages`.
    pub(crate) const fn mfn(&self, pfn: u64) -> Mfn {
        Mfn::new(self.frames.frame(pfn))
    }

    /// The root table.
    pub(crate) fn root(&self) -> Mfn {
        self.mfn(self.boot.table_page(Level::L4, 0))
    }

    /// Where the guest sees page `pfn` of its boot mapping.
    pub(crate) const fn address(&self, pfn: u64) -> u64 {
        self.virt_base.wrapping_add(pfn << PAGE_SHIFT)
    }

    fn mapping_of_table(&self, pfn: u64) -> Option<&Mapping> {
        if self.boot.has_table(pfn) {
            return Some(&self.boot);
        }
        self.p2m.as_ref().filter(|mapping| mapping.has_table(pfn))
    }

    /// Every frame that is a table.
    pub(crate) fn table_frames(&self) -> impl Iterator<Item = Mfn> + '_ {
        let built = self.start == Start::Built;
        let mappings = [built.then_some(&self.boot), self.p2m.as_ref().filter(|_| built)];
        let tables = mappings
            .into_iter()
            .flatten()
            .flat_map(|mapping| mapping.tables..mapping.tables + mapping.table_count());
        tables.map(|pfn| self.mfn(pfn))
    }

    /// What Xen knows of a frame at the start.
    pub(crate) fn page(&self, mfn: u64, page: &mut Page) {
        let pfn = self.frames.page(mfn);
        page.owner = self.owner;
        page.m2p = pfn;
        page.contents = Contents::Planned;
        if self.start == Start::Blank {
            page.count = CountInfo::allocated(1);
            page.contents = Contents::Filled(0);
            return;
        }
        let in_boot = self.boot.maps(pfn);
        if let Some((mapping, (level, _))) =
            self.mapping_of_table(pfn).and_then(|m| m.table_at(pfn).map(|at| (m, at)))
        {
            let kind = PageType::table(level);
            let root = level == Level::L4;
            page.validated = ALL_ENTRIES;
            page.kind = if root { TypeInfo::pinned(kind, 2) } else { TypeInfo::validated(kind, 1) };
            // Its owner, whoever points to it (for the root: pin and cr3), and its read-only
            // mapping.
            let mapped = u32::from(in_boot && mapping.tables == self.boot.tables);
            page.count = CountInfo::allocated(2 + u32::from(root) + mapped);
        } else if in_boot || self.p2m.is_some_and(|mapping| mapping.maps(pfn)) {
            page.kind = TypeInfo::validated(PageType::Writable, 1);
            page.count = CountInfo::allocated(2);
        } else {
            page.count = CountInfo::allocated(1);
        }
    }

    /// Word `index` of a frame that is no table as the builder left it, but for what it wrote into
    /// `start_info`.
    pub(crate) fn word(&self, mfn: u64, index: u64) -> u64 {
        let pfn = self.frames.page(mfn);
        let pieces = &self.pieces;
        let listed = pfn >= pieces.p2m_list && pfn - pieces.p2m_list < pieces.p2m_pages;
        if self.start == Start::Blank || !listed {
            return 0;
        }
        let entry = (pfn - pieces.p2m_list) * 512 + index;
        if entry < self.pages { self.mfn(entry).raw() } else { 0 }
    }

    /// The words of a frame that the builder made a table; `None` for any other.
    pub(crate) fn table(&self, mfn: u64) -> Option<Box<[u64; WORDS]>> {
        if self.start == Start::Blank {
            return None;
        }
        let pfn = self.frames.page(mfn);
        let mapping = self.mapping_of_table(pfn)?;
        let (level, k) = mapping.table_at(pfn)?;
        let mut words = Box::new([0; WORDS]);
        for (index, word) in (0..).zip(words.iter_mut()) {
            let xens = xen_slot(index, Mfn::new(mfn), self.no_execute);
            *word = match xens.filter(|_| level == Level::L4) {
                Some(word) => word,
                None => self.entry(mapping, level, k, index),
            };
        }
        Some(words)
    }

    /// Entry `index` of table `k` of a level.
    fn entry(&self, mapping: &Mapping, level: Level, k: u64, index: u64) -> u64 {
        let target = mapping.target(level, k, index).or_else(|| match (level, &self.p2m) {
            (Level::L4, Some(p2m)) => p2m.target(Level::L4, 0, index),
            _ => None,
        });
        let Some(target) = target else { return 0 };
        let flags = match level {
            Level::L1 if self.boot.has_table(target) => PAGE_RO,
            Level::L1 => PAGE_RW,
            _ => TABLE_ENTRY,
        };
        self.mfn(target).raw() << PAGE_SHIFT | flags
    }
}
