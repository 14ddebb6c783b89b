//! The four ways in which an entry of an L1 table gets there. Xen's rules are the same for all.

use hypercall::Level;

use super::{Env, Page};
use crate::Target;
use crate::check::Check;
use crate::errno::FAULT;

/// How an entry is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `mmu_update`.
    Update,
    /// `update_va_mapping`.
    VaMapping,
    /// A store to a page that is then made a table.
    Promotion,
    /// A store to a live table, which Xen emulates.
    Store,
}

/// All of them.
pub(crate) const WAYS: [Way; 4] = [Way::Update, Way::VaMapping, Way::Promotion, Way::Store];

impl Way {
    /// How `errno` shows in this way.
    pub(crate) fn refusal(self, errno: i64) -> i64 {
        if self == Self::Store && errno != 0 { FAULT } else { errno }
    }
}

impl<M: Target> Env<'_, M> {
    /// Writes an entry of an L1 table, reads it back, and takes it away. Returns Xen's answer and
    /// the entry.
    pub(crate) fn by(&mut self, way: Way, value: u64) -> Check<(i64, u64)> {
        match way {
            Way::Update => {
                let bed = self.bed()?;
                let rax = self.set(bed, 9, value);
                let seen = self.get(bed, 9)?;
                want!(self.set(bed, 9, 0), 0);
                Ok((rax, seen))
            }
            Way::Store => {
                let bed = self.bed()?;
                let rax = self.fill(bed, 10, value).map_or(FAULT, |()| 0);
                let seen = self.get(bed, 10)?;
                want!(self.set(bed, 10, 0), 0);
                Ok((rax, seen))
            }
            Way::VaMapping => {
                let window: Page = self.take()?;
                self.hide(window)?;
                let rax = self.va_mapping(self.va(window), value);
                let seen = self.direct(window)?;
                self.rw(window)?;
                Ok((rax, seen))
            }
            Way::Promotion => {
                let table = self.loose(&[(9, value)])?;
                let rax = self.pin(Level::L1, table);
                let seen = self.get(table, 9)?;
                if rax == 0 {
                    want!(self.unpin(table), 0);
                }
                self.rw(table)?;
                self.fill(table, 9, 0)?;
                Ok((rax, seen))
            }
        }
    }
}
