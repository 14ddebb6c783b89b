//! Which way is the cheapest: pure arithmetic over what Xen charges, as the bench measures it.
//!
//! A live table can be changed in two ways. *Entry by entry*: each change is an element of one
//! `mmu_update`, and Xen checks each. *As a table*: unlink it, store into it, link it again; then
//! Xen drops every reference that it holds and takes every one that it holds afterwards, which
//! costs less for each entry and more for the table. And a table that is missing can be an *empty
//! one that stays validated*, linked for the price of an entry and filled entry by entry, or one
//! filled by plain stores that Xen validates when it is linked.
//!
//! All figures are executed instructions on Xen 4.17 (docs/performance.md says how they were
//! measured). Instructions are not time; the ratios between the ways are large enough for that not
//! to matter.

/// What Xen charges, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// To change the flags of a live entry, one element of an `mmu_update`.
    pub change: u32,
    /// To fill an empty entry of a live table.
    pub fill: u32,
    /// To clear an entry of a live table.
    pub clear: u32,
    /// To validate a table, with nothing in it.
    pub validate: u32,
    /// And for each entry that maps a page writable.
    pub take_writable: u32,
    /// And for each entry that maps a page read-only.
    pub take_read_only: u32,
    /// To let go of a validated table, with nothing in it.
    pub release: u32,
    /// And for each entry that maps a page writable.
    pub drop_writable: u32,
    /// And for each entry that maps a page read-only.
    pub drop_read_only: u32,
    /// To write an entry by a plain store.
    pub store: u32,
    /// To change a table's frame to read-only, or back, in the direct mapping.
    pub access: u32,
    /// To link a validated table, or to unlink it.
    pub link: u32,
    /// To let go of a table that is linked in another one which ends, while it is pinned by itself.
    pub drop_table: u32,
    /// The trap of a step of its own, with the flush of all TLBs that follows a change above L1.
    pub step: u32,
}

/// Measured on Xen 4.17: `tests/baselines/xen-4.17.json`, from which no constant but `store` and
/// `drop_table` may be away by more than 3 in 100 (a test of the workspace).
pub const COSTS: Costs = Costs {
    change: 639,
    fill: 549,
    clear: 462,
    validate: 9_347,
    take_writable: 187,
    take_read_only: 135,
    release: 8_726,
    drop_writable: 145,
    drop_read_only: 87,
    store: 8,
    access: 639,
    link: 673,
    drop_table: 180,
    step: 858,
};

/// What a table maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Population {
    /// Entries that map a page writable.
    pub writable: u16,
    /// Entries that map a page read-only.
    pub read_only: u16,
}

impl Population {
    /// Returns the number of present entries.
    #[must_use]
    pub const fn total(self) -> u16 {
        self.writable + self.read_only
    }
}

/// How a table is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One request for each entry.
    Entries,
    /// Unlinked, stored into, linked again if anything is left in it.
    Table,
}

impl Costs {
    const fn validate(&self, population: Population) -> u32 {
        self.validate
            + self.take_writable * population.writable as u32
            + self.take_read_only * population.read_only as u32
    }

    const fn release(&self, population: Population) -> u32 {
        self.release
            + self.drop_writable * population.writable as u32
            + self.drop_read_only * population.read_only as u32
    }

    /// Returns the cost of making `before` into `after` by taking the table out of the tree.
    #[must_use]
    pub const fn as_table(&self, changed: u16, before: Population, after: Population) -> u32 {
        let out = self.step + self.link + self.release(before) + self.access;
        if after.total() == 0 {
            // The table leaves the tree, and is not there for the next page that needs one.
            return out + self.access + self.validate;
        }
        out + self.store * changed as u32
            + self.step
            + self.access
            + self.link
            + self.validate(after)
    }

    /// Returns how to give `changed` entries of a table with `before` other flags, so that it has
    /// `after`.
    ///
    /// ```
    /// use pvmmu::cost::{COSTS, Population, Strategy};
    ///
    /// // All of a full table becomes read-only: that is cheaper as a whole.
    /// let before = Population { writable: 512, read_only: 0 };
    /// let after = Population { writable: 0, read_only: 512 };
    /// assert_eq!(COSTS.to_change(512, before, after), Strategy::Table);
    /// ```
    #[must_use]
    pub const fn to_change(&self, changed: u16, before: Population, after: Population) -> Strategy {
        if self.change * (changed as u32) <= self.as_table(changed, before, after) {
            Strategy::Entries
        } else {
            Strategy::Table
        }
    }

    /// Returns how to clear `changed` entries of a table with `before`, so that it has `after`.
    #[must_use]
    pub const fn to_clear(&self, changed: u16, before: Population, after: Population) -> Strategy {
        if self.clear * (changed as u32) <= self.as_table(changed, before, after) {
            Strategy::Entries
        } else {
            Strategy::Table
        }
    }

    /// Returns whether `pages` of a missing table are better mapped through an empty one that is
    /// validated already ([`Strategy::Entries`]) or through one that is filled first
    /// ([`Strategy::Table`]). What is mapped is unmapped one day, so both count.
    ///
    /// ```
    /// use pvmmu::cost::{COSTS, Strategy};
    ///
    /// assert_eq!(COSTS.to_map(1), Strategy::Entries);
    /// assert_eq!(COSTS.to_map(512), Strategy::Table);
    /// ```
    #[must_use]
    pub const fn to_map(&self, pages: u16) -> Strategy {
        let full = Population { writable: pages, read_only: 0 };
        let entries = (self.fill + self.clear) * pages as u32 + 2 * self.link;
        let table = self.validate(full)
            + self.release(full)
            + 2 * (self.step + self.link + self.access)
            + self.store * pages as u32;
        if entries <= table { Strategy::Entries } else { Strategy::Table }
    }

    /// Returns how to end an upper table with `tables` tables in it that are to stay validated:
    /// unlink each and keep it validated too, or let Xen drop it with all its references.
    #[must_use]
    pub const fn to_end_upper(&self, tables: u16) -> Strategy {
        let table =
            self.release + self.drop_table * tables as u32 + 2 * self.access + self.validate;
        if self.link * (tables as u32 + 1) <= table { Strategy::Entries } else { Strategy::Table }
    }

    /// Returns whether clearing `changed` entries could be cheaper by taking a table out, whatever
    /// else is in it.
    #[must_use]
    pub const fn may_clear_as_table(&self, changed: u16) -> bool {
        let least = Population { writable: 0, read_only: changed };
        let nothing = Population { writable: 0, read_only: 0 };
        matches!(self.to_clear(changed, least, nothing), Strategy::Table)
    }

    /// Returns whether changing `changed` entries could be cheaper by taking a table out, whatever
    /// else is in it.
    #[must_use]
    pub const fn may_change_as_table(&self, changed: u16) -> bool {
        let least = Population { writable: 0, read_only: changed };
        matches!(self.to_change(changed, least, least), Strategy::Table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn writable(count: u16) -> Population {
        Population { writable: count, read_only: 0 }
    }

    const fn read_only(count: u16) -> Population {
        Population { writable: 0, read_only: count }
    }

    /// The first count of entries for which `way` is the table's.
    fn crossing(way: impl Fn(u16) -> Strategy) -> Option<u16> {
        let first = (0..=512).find(|count| way(*count) == Strategy::Table)?;
        assert!((first..=512).all(|count| way(count) == Strategy::Table), "the ways cross once");
        Some(first)
    }

    #[test]
    fn few_pages_are_mapped_through_a_table_that_is_validated_already() {
        assert_eq!(crossing(|pages| COSTS.to_map(pages)), Some(32));
    }

    #[test]
    fn a_full_table_is_cleared_by_taking_it_out() {
        assert_eq!(crossing(|n| COSTS.to_clear(n, writable(n), writable(0))), Some(66));
        assert_eq!(crossing(|n| COSTS.to_clear(n, read_only(n), read_only(0))), Some(56));
    }

    #[test]
    fn clearing_a_part_of_a_full_table_goes_entry_by_entry_up_to_three_fifths() {
        let part = |n| COSTS.to_clear(n, writable(512), writable(512 - n));
        assert_eq!(crossing(part), Some(301));
    }

    #[test]
    fn a_table_of_which_most_entries_change_is_changed_as_a_whole() {
        let protect =
            |n| COSTS.to_change(n, writable(512), Population { writable: 512 - n, read_only: n });
        assert_eq!(crossing(protect), Some(282));
        let unprotect =
            |n| COSTS.to_change(n, read_only(512), Population { writable: n, read_only: 512 - n });
        assert_eq!(crossing(unprotect), Some(236));
        assert_eq!(crossing(|n| COSTS.to_change(n, writable(n), read_only(n))), Some(64));
    }

    #[test]
    fn an_upper_table_with_many_tables_in_it_is_dropped_as_a_whole() {
        assert_eq!(crossing(|tables| COSTS.to_end_upper(tables)), Some(38));
    }

    #[test]
    fn a_table_that_is_not_looked_at_is_never_the_one_to_take_out() {
        for n in 0..=512 {
            for others in [0, 1, 100] {
                let (before, after) = (writable(n + others), writable(others));
                let clears = COSTS.to_clear(n, before, after) == Strategy::Table;
                assert!(!clears || COSTS.may_clear_as_table(n), "{n} of {others} more");
                let after = Population { writable: others, read_only: n };
                let changes = COSTS.to_change(n, before, after) == Strategy::Table;
                assert!(!changes || COSTS.may_change_as_table(n), "{n} of {others} more");
            }
        }
    }
}
