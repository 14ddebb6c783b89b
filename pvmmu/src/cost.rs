//! The cheapest way to change tables: pure arithmetic over Xen's costs, as the bench measures them.
//!
//! A live table can change in two ways. *Entry by entry*: each change is an element of one
//! `mmu_update`, and Xen checks each. *As a table*: unlink it, store into it, link it again. Xen
//! then drops all its references and takes all the new ones, which costs less for each entry and
//! more for the table. A missing table has two ways, too: link an *empty one that stays validated*
//! and fill it entry by entry, or fill a loose one by plain stores and have Xen validate it.
//!
//! All figures are executed instructions on Xen 4.17 (docs/performance.md says how they were
//! measured). Instructions are not time, but the ways differ enough for that not to matter.

/// Xen's costs, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Changing the flags of a live entry, one element of an `mmu_update`.
    pub change: u32,
    /// Filling an empty entry of a live table.
    pub fill: u32,
    /// Clearing an entry of a live table.
    pub clear: u32,
    /// Validating an empty table.
    pub validate: u32,
    /// In addition, for each entry that maps a page writable.
    pub take_writable: u32,
    /// In addition, for each entry that maps a page read-only.
    pub take_read_only: u32,
    /// Releasing a validated, empty table.
    pub release: u32,
    /// In addition, for each entry that maps a page writable.
    pub drop_writable: u32,
    /// In addition, for each entry that maps a page read-only.
    pub drop_read_only: u32,
    /// Writing an entry by a plain store.
    pub store: u32,
    /// Making a table's frame read-only, or writable, in the direct mapping.
    pub access: u32,
    /// Linking a validated table, or unlinking it.
    pub link: u32,
    /// Dropping a table that is pinned by itself, when the table that links it ends.
    pub drop_table: u32,
    /// The trap of a separate step, with the flush of all TLBs that follows a change above L1.
    pub step: u32,
}

/// The costs on Xen 4.17, as in `tests/baselines/xen-4.17.json`. A workspace test holds each of
/// them to within 3 % of it, except `store` and `drop_table`.
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
    step: 826,
};

/// The entries of a table.
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

/// How to change a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One request for each entry.
    Entries,
    /// Unlink it, store into it, and link it again if anything is left in it.
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

    /// Returns the cost of turning `before` into `after` by taking the table out of the tree.
    #[must_use]
    pub const fn as_table(&self, changed: u16, before: Population, after: Population) -> u32 {
        let out = self.step + self.link + self.release(before) + self.access;
        if after.total() == 0 {
            // The table leaves the tree, and the next page there needs another one.
            return out + self.access + self.validate;
        }
        out + self.store * changed as u32
            + self.step
            + self.access
            + self.link
            + self.validate(after)
    }

    /// Returns how to change the flags of `changed` entries of a table from `before` to `after`.
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

    /// Returns how to clear `changed` entries of a table, from `before` to `after`.
    #[must_use]
    pub const fn to_clear(&self, changed: u16, before: Population, after: Population) -> Strategy {
        if self.clear * (changed as u32) <= self.as_table(changed, before, after) {
            Strategy::Entries
        } else {
            Strategy::Table
        }
    }

    /// Returns how to map `pages` in a missing table: through an empty one that is validated
    /// already ([`Strategy::Entries`]), or through one that is filled first ([`Strategy::Table`]).
    /// The cost of the later unmapping counts, too.
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

    /// Returns how to end an upper table that links `tables` tables which are to stay validated:
    /// unlink each and keep it validated, too, or let Xen drop it with all its references.
    #[must_use]
    pub const fn to_end_upper(&self, tables: u16) -> Strategy {
        let table =
            self.release + self.drop_table * tables as u32 + 2 * self.access + self.validate;
        if self.link * (tables as u32 + 1) <= table { Strategy::Entries } else { Strategy::Table }
    }

    /// Returns whether taking a table out could be cheaper for clearing `changed` entries, whatever
    /// else is in it.
    #[must_use]
    pub const fn may_clear_as_table(&self, changed: u16) -> bool {
        let least = Population { writable: 0, read_only: changed };
        let nothing = Population { writable: 0, read_only: 0 };
        matches!(self.to_clear(changed, least, nothing), Strategy::Table)
    }

    /// Returns whether taking a table out could be cheaper for changing `changed` entries, whatever
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
        assert_eq!(crossing(unprotect), Some(235));
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
