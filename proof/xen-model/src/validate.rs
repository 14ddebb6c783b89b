//! Promotion and demotion: a frame becomes a table, with all that its entries hold, and ceases to
//! be one.
//!
//! Sections 3.5 and 2.3 of the specification. An interrupted walk leaves its progress in the frame;
//! a table above L1 that is refused after its first entry is set aside and taken apart before the
//! hypercall ends.

use hypercall::{Errno, Level, Mfn};

use crate::page::WORDS;

use crate::domain::{Holds, Parked};
use crate::l1e::{Owners, PRESENT};
use crate::log::HashX;
use crate::page::ALL_ENTRIES as ALL;
use crate::release::Release;
use crate::state::{Answer, State};
use crate::upper::adjust_link;
use crate::xen_slots;

impl State {
    /// Validates a table (`promote_l1_table` to `promote_l4_table`; `alloc_l1_table` and so on
    /// before 4.14).
    pub(crate) fn promote(&mut self, table: Mfn, level: Level) -> Answer {
        match level {
            Level::L1 => self.promote_l1(table),
            _ => self.promote_upper(table, level),
        }
    }

    fn promote_l1(&mut self, table: Mfn) -> Answer {
        let owners = Owners::own(self.frames.page(table).owner);
        for index in 0..WORDS {
            let entry = self.frames.word(table, index);
            if entry & PRESENT == 0 {
                continue;
            }
            match self.get_page_from_l1e(entry, owners) {
                Ok(inverted) => {
                    let adjusted = self.adjust_l1e(entry ^ inverted);
                    if adjusted != entry {
                        self.frames.words(table)[index] = adjusted;
                    }
                }
                Err(errno) => {
                    self.explain_promotion(errno, Level::L1, index);
                    for done in (0..index).rev() {
                        self.put_page_from_l1e(self.frames.word(table, done), owners.table);
                    }
                    return Err(errno);
                }
            }
        }
        self.frames.page(table).validated = ALL;
        Ok(())
    }

    fn promote_upper(&mut self, table: Mfn, level: Level) -> Answer {
        let owner = self.frames.page(table).owner;
        let start = self.frames.page(table).validated;
        for at in start..ALL {
            let index = usize::from(at);
            if level == Level::L4 && xen_slots::is_xens(index) {
                continue;
            }
            let entry = self.frames.word(table, index);
            if entry & PRESENT == 0 {
                continue;
            }
            if at > start && self.preempt_check() {
                self.frames.page(table).validated = at;
                return Err(Errno::ERESTART);
            }
            match self.get_page_from_link(level, entry, table, owner) {
                Ok(()) => {
                    let adjusted = adjust_link(level, entry);
                    if adjusted != entry {
                        self.frames.words(table)[index] = adjusted;
                    }
                }
                Err(Errno::ERESTART) => {
                    self.frames.page(table).validated = at;
                    return Err(Errno::ERESTART);
                }
                Err(errno) => {
                    self.explain_promotion(errno, level, index);
                    if at > 0 {
                        self.frames.page(table).validated = at;
                        self.park(Parked { table, container: None, holds: Holds::Partial });
                    }
                    return Err(errno);
                }
            }
        }
        self.frames.page(table).validated = ALL;
        if level == Level::L4 {
            self.init_xen_slots(table);
        }
        Ok(())
    }

    /// Writes Xen's part of a new L4 (`init_xen_l4_slots`).
    fn init_xen_slots(&mut self, table: Mfn) {
        let owner = self.frames.page(table).owner;
        let (strict, no_execute) = (self.has_strict_m2p(owner), self.no_execute);
        let words = self.frames.words(table);
        for (index, word) in words.iter_mut().enumerate() {
            *word = xen_slots::xen_slot(index as u64, table, no_execute).unwrap_or(*word);
        }
        if !strict {
            words[xen_slots::M2P_SLOT] = 0;
        }
    }

    #[cold]
    fn explain_promotion(&mut self, errno: Errno, level: Level, index: usize) {
        let (number, slot, level) = (errno.raw(), HashX(index as u64), level as u8);
        match self.release {
            Release::V4_4 | Release::V4_6 => {
                self.say(format_args!("Failure in alloc_l{level}_table: entry {index}"));
            }
            Release::V4_9 => {
                self.say(format_args!("Failure in alloc_l{level}_table: slot {slot}"));
            }
            Release::V4_14 | Release::V4_17 | Release::V4_20 => {
                self.say(format_args!("Failure -{number} in promote_l{level}_table: slot {slot}"));
            }
        }
    }

    /// Drops all that a table's entries hold (`demote_l1_table` to `demote_l4_table`). The entries
    /// stay as they are.
    pub(crate) fn demote(&mut self, table: Mfn) -> Answer {
        let page = self.frames.page(table);
        let (owner, kind) = (page.owner, page.kind.kind);
        match kind.level() {
            Some(Level::L1) => {
                for index in 0..WORDS {
                    self.put_page_from_l1e(self.frames.word(table, index), owner);
                }
                Ok(())
            }
            Some(level) => self.demote_upper(table, level),
            None => Ok(()),
        }
    }

    fn demote_upper(&mut self, table: Mfn, level: Level) -> Answer {
        let start = self.frames.page(table).validated;
        for at in (0..start).rev() {
            let index = usize::from(at);
            if level == Level::L4 && xen_slots::is_xens(index) {
                continue;
            }
            let entry = self.frames.word(table, index);
            if entry & PRESENT == 0 {
                continue;
            }
            let interrupted = at + 1 < start && self.preempt_check();
            if interrupted || self.put_page_from_link(entry, table).is_err() {
                self.frames.page(table).validated = at + 1;
                return Err(Errno::ERESTART);
            }
        }
        self.frames.page(table).validated = 0;
        Ok(())
    }
}
