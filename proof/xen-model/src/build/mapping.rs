//! A mapping that a domain builder makes, and its page tables, as formulas.
//!
//! Builders map one run of pages to one run of addresses, with 4 KiB pages and as few tables as can
//! be. Which tables there are, where they lie and what each entry holds follows from five numbers.

use hypercall::{Level, PAGE_SHIFT};

/// In which order a builder lays out its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableOrder {
    /// Root, then all L3, all L2, all L1, as the toolstack does (`setup_pgtables_pv`,
    /// xg_dom_x86.c).
    TopDown,
    /// Root, then each L1 followed by the L2 and L3 that it is the first of, as for dom0
    /// (`dom0_construct_pv`).
    AsNeeded,
}

/// A run of pages at a run of addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    /// First address, 48 bits.
    pub(crate) start: u64,
    /// First page mapped.
    pub(crate) first: u64,
    /// Pages mapped.
    pub(crate) pages: u64,
    /// Where the tables are: the first page.
    pub(crate) tables: u64,
    /// Whether the first table is a root.
    pub(crate) roots: u64,
    /// Their order.
    pub(crate) order: TableOrder,
}

const TABLE_LEVELS: [Level; 3] = [Level::L3, Level::L2, Level::L1];

/// log2 of the bytes that a table of `level` spans.
const fn span(level: Level) -> u32 {
    level.shift() + 9
}

impl Mapping {
    /// Number of the first table of `level`, counted through the whole address space.
    const fn first_of(&self, level: Level) -> u64 {
        self.start >> span(level)
    }

    /// Tables of `level` below the root.
    pub(crate) const fn count(&self, level: Level) -> u64 {
        let last = self.start + (self.pages << PAGE_SHIFT) - 1;
        (last >> span(level)) - self.first_of(level) + 1
    }

    /// All tables.
    pub(crate) fn table_count(&self) -> u64 {
        self.roots + TABLE_LEVELS.iter().map(|level| self.count(*level)).sum::<u64>()
    }

    /// Returns whether `pfn` is one of the tables.
    pub(crate) fn has_table(&self, pfn: u64) -> bool {
        pfn >= self.tables && pfn - self.tables < self.table_count()
    }

    /// Returns whether `pfn` is mapped.
    pub(crate) const fn maps(&self, pfn: u64) -> bool {
        pfn >= self.first && pfn - self.first < self.pages
    }

    /// Returns the page that is table `k` of `level`.
    pub(crate) fn table_page(&self, level: Level, k: u64) -> u64 {
        let place = match (self.order, level) {
            (_, Level::L4) => 0,
            (TableOrder::TopDown, _) => {
                let above = TABLE_LEVELS.iter().take_while(|other| **other != level);
                self.roots + above.map(|other| self.count(*other)).sum::<u64>() + k
            }
            (TableOrder::AsNeeded, Level::L1) => self.place_as_needed(k),
            (TableOrder::AsNeeded, Level::L2) => self.place_as_needed(self.first_l1(level, k)) + 1,
            (TableOrder::AsNeeded, Level::L3) => self.place_as_needed(self.first_l1(level, k)) + 2,
        };
        self.tables + place
    }

    /// Returns the first L1 under table `k` of `level`.
    fn first_l1(&self, level: Level, k: u64) -> u64 {
        let first = (self.first_of(level) + k) << (span(level) - span(Level::L1));
        first.saturating_sub(self.first_of(Level::L1))
    }

    /// Place of L1 `k` if tables are made as they are needed.
    fn place_as_needed(&self, k: u64) -> u64 {
        if k == 0 {
            return self.roots;
        }
        let before = self.first_of(Level::L1) + k - 1;
        let opened =
            |level: Level| (before >> (span(level) - span(Level::L1))) - (self.first_of(level)) + 1;
        self.roots + k + opened(Level::L2) + opened(Level::L3)
    }

    /// Returns which table a page is.
    pub(crate) fn table_at(&self, pfn: u64) -> Option<(Level, u64)> {
        if !self.has_table(pfn) {
            return None;
        }
        let place = pfn - self.tables;
        if place < self.roots {
            return Some((Level::L4, 0));
        }
        match self.order {
            TableOrder::TopDown => {
                let mut k = place - self.roots;
                for level in TABLE_LEVELS {
                    if k < self.count(level) {
                        return Some((level, k));
                    }
                    k -= self.count(level);
                }
                None
            }
            TableOrder::AsNeeded => {
                let (mut low, mut high) = (0, self.count(Level::L1));
                while high - low > 1 {
                    let middle = low.midpoint(high);
                    if self.place_as_needed(middle) <= place { low = middle } else { high = middle }
                }
                let l1 = self.first_of(Level::L1) + low;
                let number =
                    |level: Level| (l1 >> (span(level) - span(Level::L1))) - self.first_of(level);
                Some(match place - self.place_as_needed(low) {
                    0 => (Level::L1, low),
                    1 => (Level::L2, number(Level::L2)),
                    _ => (Level::L3, number(Level::L3)),
                })
            }
        }
    }

    /// Returns the page that entry `index` of table `k` of `level` leads to.
    pub(crate) fn target(&self, level: Level, k: u64, index: u64) -> Option<u64> {
        let number = match level {
            Level::L4 => index,
            _ => (self.first_of(level) + k) * 512 + index,
        };
        match level.below() {
            Some(below) => {
                let next = number.checked_sub(self.first_of(below))?;
                (next < self.count(below)).then(|| self.table_page(below, next))
            }
            None => {
                let page = number.checked_sub(self.start >> PAGE_SHIFT)?;
                (page < self.pages).then_some(self.first + page)
            }
        }
    }
}
