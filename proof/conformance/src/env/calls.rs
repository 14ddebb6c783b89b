//! Calls in a list.

use alloc::vec::Vec;

use super::{Env, number};
use crate::Target;

/// A call in a multicall.
pub(crate) struct Entry {
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 5],
}

/// Words of a multicall entry: number, result, six arguments.
pub(crate) const ENTRY_WORDS: usize = 8;

/// A result that no call gives.
const NO_RESULT: u64 = 0x7777;

/// Returns the words of entries.
pub(crate) fn words(entries: &[Entry]) -> Vec<u64> {
    let one = |entry: &Entry| {
        let [a, b, c, d, e] = entry.arguments;
        [u64::from(entry.number), NO_RESULT, a, b, c, d, e, 0]
    };
    entries.iter().flat_map(one).collect()
}

impl<M: Target> Env<'_, M> {
    /// Returns a multicall: its answer, and the entries as Xen leaves them.
    pub(crate) fn multicall(&self, entries: &[Entry]) -> (i64, Vec<u64>) {
        let list = self.put(1, 0, &words(entries));
        let rax = self.multicall_at(list, entries.len() as u64);
        (rax, self.got(1, 0, entries.len() * ENTRY_WORDS))
    }

    /// Returns a multicall with a list anywhere.
    pub(crate) fn multicall_at(&self, list: u64, count: u64) -> i64 {
        self.call(number::MULTICALL, [list, count, 0, 0, 0])
    }

    /// Returns an `mmu_update` of one element as an entry of a multicall; `place` tells several
    /// apart.
    pub(crate) fn update_entry(&self, place: usize, target: u64, value: u64) -> Entry {
        let element = self.put(0, 2048 + place * 16, &[target, value]);
        Entry { number: number::MMU_UPDATE, arguments: [element, 1, 0, super::SELF, 0] }
    }
}
