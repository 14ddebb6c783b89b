//! How often each operation met each answer.

use alloc::collections::BTreeMap;
use core::fmt;

/// Counts of answers by operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    counts: BTreeMap<(&'static str, u32), u64>,
}

/// Updates of pinned tables, by level.
pub(crate) const UPDATES: [&str; 4] = ["update L1", "update L2", "update L3", "update L4"];
/// Stores to pinned tables, by level: emulated for L1, faults for the others.
pub(crate) const STORES: [&str; 4] = ["store L1", "store L2", "store L3", "store L4"];
/// Compare-and-exchange on pinned tables, by level.
pub(crate) const EXCHANGES: [&str; 4] = ["cas L1", "cas L2", "cas L3", "cas L4"];

/// Returns the names of `mmuext_op` commands.
pub(crate) const fn ext_name(command: u8) -> &'static str {
    match command {
        0 => "pin L1",
        1 => "pin L2",
        2 => "pin L3",
        3 => "pin L4",
        4 => "unpin",
        5 => "new_baseptr",
        6 | 10 => "tlb_flush",
        7 | 11 => "invlpg",
        12 | 18 => "flush_cache",
        15 => "new_user_baseptr",
        16 => "clear_page",
        17 => "copy_page",
        19 | 20 => "mark_super",
        _ => "ext unknown",
    }
}

/// The operations that are not in the lists above.
const OTHERS: [&str; 14] = [
    "clean up",
    "update data",
    "update keep-ad",
    "update m2p",
    "update bad-command",
    "update direct",
    "update other",
    "va_mapping",
    "va_mapping bad",
    "multicall",
    "store data",
    "cas data",
    "exchange",
    "balloon",
];

/// Every operation that the generator makes, so that one that never happened is named.
fn operations() -> impl Iterator<Item = &'static str> {
    let ext = (0..=20).filter(|command| !matches!(command, 8..=11 | 13 | 14 | 18 | 20));
    let ext = ext.map(ext_name).chain([ext_name(u8::MAX)]);
    UPDATES.into_iter().chain(STORES).chain(EXCHANGES).chain(OTHERS).chain(ext)
}

impl Coverage {
    pub(crate) fn count(&mut self, operation: &'static str, errno: u32) {
        *self.counts.entry((operation, errno)).or_default() += 1;
    }

    /// Operations that never happened.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> + '_ {
        let happened = |name: &&str| self.counts.keys().any(|(operation, _)| operation == name);
        operations().filter(move |name| !happened(name))
    }

    /// Returns the rows: operation, errno (0 for success), how often.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u32, u64)> + '_ {
        self.counts.iter().map(|((operation, errno), count)| (*operation, *errno, *count))
    }
}

/// A line for each operation and answer.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (operation, errno, count) in self.rows() {
            writeln!(f, "C {operation:<20} {errno:>4} {count:>9}")?;
        }
        for operation in self.missing() {
            writeln!(f, "C {operation:<20}    -         0")?;
        }
        Ok(())
    }
}
