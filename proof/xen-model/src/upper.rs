//! Entries of L2, L3 and L4 tables: links to tables, and linear page tables.
//!
//! Sections 2.6, 3.4, 3.6 and 3.7 of the specification.

use hypercall::{Errno, Level, Mfn};

use crate::domain::{Holds, Parked};
use crate::l1e::{ACCESSED, DIRTY, PRESENT, Place, RW, USER, flags24, frame_of, is_harmless};
use crate::log::HashX;
use crate::state::{Answer, State};
use crate::types::PageType;
use crate::xen_slots;

/// Flags that no link may have (`BASE_DISALLOW_MASK`): PWT, PCD, PSE, GLOBAL.
const REFUSED: u64 = 0x198;

/// Returns what Xen makes of a present link before it stores it (`adjust_guest_l2e` to
/// `adjust_guest_l4e`).
pub(crate) const fn adjust_link(level: Level, entry: u64) -> u64 {
    match level {
        _ if entry & PRESENT == 0 => entry,
        Level::L4 => entry | USER | ACCESSED,
        _ => entry | USER,
    }
}

impl State {
    /// Returns the flags of a link that it may not have.
    fn bad_link_flags(&self, entry: u64) -> u64 {
        flags24(entry & (REFUSED | self.no_execute.refused()))
    }

    /// Takes what a present entry of the table `container` of `level` holds: the table below,
    /// validated, or one of the same level, read-only (`get_page_from_l2e` to `get_page_from_l4e`).
    pub(crate) fn get_page_from_link(
        &mut self,
        level: Level,
        entry: u64,
        container: Mfn,
        domain: u16,
    ) -> Answer {
        self.refuse_flags(level, self.bad_link_flags(entry))?;
        let mfn = frame_of(entry);
        let Some(below) = level.below() else { return Err(Errno::EINVAL) };
        match self.get_page_and_type(mfn, PageType::table(below), domain) {
            Err(Errno::EINVAL) => {
                if self.get_linear_table(level, entry, container, domain) {
                    Ok(())
                } else {
                    Err(Errno::EINVAL)
                }
            }
            answer => answer,
        }
    }

    /// Tries an entry as a link to a table of its own level (`get_l2_linear_pagetable` to `_l4_`).
    fn get_linear_table(&mut self, level: Level, entry: u64, container: Mfn, domain: u16) -> bool {
        if entry & RW != 0 {
            self.say(format_args!("Attempt to create linear p.t. with write perms"));
            return false;
        }
        let mfn = frame_of(entry);
        if mfn == container {
            return true;
        }
        if self.frames.page(container).owner != domain || !self.get_page_from_mfn(mfn, domain) {
            return false;
        }
        let holder = self.frames.page(container).linear;
        let target = self.frames.page(mfn);
        let usable = target.kind.kind == PageType::table(level)
            && target.kind.is_validated()
            && target.kind.count > 0;
        if !usable || holder < 0 || target.linear > 0 {
            self.put_page(mfn);
            return false;
        }
        target.kind.count += 1;
        target.linear -= 1;
        self.frames.page(container).linear += 1;
        true
    }

    /// Drops what an entry of `container` holds (`put_page_from_l2e` to `put_page_from_l4e`).
    pub(crate) fn put_page_from_link(&mut self, entry: u64, container: Mfn) -> Answer {
        match held_by_link(entry, container) {
            Some(mfn) => self.put_page_and_type(mfn, Some(container)),
            None => Ok(()),
        }
    }

    /// Changes an entry of a live table of L2, L3 or L4 (`mod_l2_entry` to `mod_l4_entry`).
    pub(crate) fn mod_link(&mut self, level: Level, place: Place, new: u64, owner: u16) -> Answer {
        let Place { table, index, keeps_accessed } = place;
        if level == Level::L4 && xen_slots::is_xens(index) {
            let slot = HashX(index as u64);
            self.say(format_args!("L4 update in Xen-private area, slot {slot}"));
            return Err(Errno::EINVAL);
        }
        let old = self.frames.word(table, index);
        let keep = if keeps_accessed { old & (ACCESSED | DIRTY) } else { 0 };
        if new & PRESENT != 0 {
            self.refuse_flags(level, self.bad_link_flags(new))?;
            if is_harmless(old, new) {
                self.frames.words(table)[index] = adjust_link(level, new) | keep;
                return Ok(());
            }
            self.get_page_from_link(level, new, table, owner)?;
        }
        self.frames.words(table)[index] = adjust_link(level, new) | keep;
        if let Some(mfn) = held_by_link(old, table) {
            self.park(Parked { table: mfn, container: Some(table), holds: Holds::Both });
        }
        Ok(())
    }
}

/// Returns the table that a link holds references to: none if it is not present or leads to its own
/// table. The builder's superpages for dom0's P2M list hold none either.
pub(crate) fn held_by_link(entry: u64, container: Mfn) -> Option<Mfn> {
    let superpage = entry & 0x80 != 0;
    (entry & PRESENT != 0 && !superpage && frame_of(entry) != container).then_some(frame_of(entry))
}
