//! Stores to live L1 tables, which Xen carries out for the guest.
//!
//! Section 5 of the specification: `fixup_page_fault` (arch/x86/traps.c), `ptwr_do_page_fault` and
//! `ptwr_emulated_update` (arch/x86/pv/ro-page-fault.c).

use hypercall::{Level, Mfn};

use crate::access::{Access, PageFault};
use crate::domain::ASSIST_WRITABLE_TABLES;
use crate::l1e::{Owners, PRESENT, RW, frame_of};
use crate::log::File;
use crate::release::Release;
use crate::state::State;
use crate::tlb::Mode;

/// What an instruction does to memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store<'b> {
    /// Stores bytes.
    Plain(&'b [u8]),
    /// Stores a value of so many bytes if the present one is `expected`.
    CompareExchange { expected: u128, new: u128, bytes: usize },
}

impl Store<'_> {
    const fn bytes(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::CompareExchange { bytes, .. } => *bytes,
        }
    }
}

/// The entry that a store hits.
#[derive(Debug, Clone, Copy)]
struct Hit {
    table: Mfn,
    index: usize,
    /// Offset of the first byte in the entry.
    offset: usize,
}

impl State {
    /// Executes a store of the guest's, by emulation if need be. Answers the value that a
    /// compare-and-exchange saw.
    pub(crate) fn execute(
        &mut self,
        va: u64,
        store: Store<'_>,
        mode: Mode,
    ) -> Result<u128, PageFault> {
        let last = va.wrapping_add(store.bytes().max(1) as u64 - 1);
        let faults = self
            .translate(va, Access::Write, mode)
            .and_then(|_| self.translate(last, Access::Write, mode));
        match faults {
            Ok(_) => self.execute_plainly(va, store, mode),
            Err(fault) => {
                let protection = fault.code & 1 != 0;
                if protection && mode == Mode::Kernel && self.may_emulate() {
                    self.emulate(va, store, fault).ok_or(fault)
                } else {
                    Err(fault)
                }
            }
        }
    }

    fn may_emulate(&self) -> bool {
        self.domain().is_privileged() || self.domain().has_assist(ASSIST_WRITABLE_TABLES)
    }

    fn execute_plainly(
        &mut self,
        va: u64,
        store: Store<'_>,
        mode: Mode,
    ) -> Result<u128, PageFault> {
        match store {
            Store::Plain(bytes) => self.store(va, bytes, mode).map(|()| 0),
            Store::CompareExchange { expected, new, bytes } => {
                let mut seen = [0; 16];
                let bytes = bytes.min(16);
                self.load(va, &mut seen[..bytes], mode)?;
                let seen = u128::from_le_bytes(seen);
                if seen == expected {
                    self.store(va, &new.to_le_bytes()[..bytes], mode)?;
                }
                Ok(seen)
            }
        }
    }

    /// `ptwr_do_page_fault`. `None`: the guest gets the fault.
    fn emulate(&mut self, va: u64, store: Store<'_>, fault: PageFault) -> Option<u128> {
        if !crate::xen_slots::address_ok(fault.va) {
            return None;
        }
        let root = self.vcpu().kernel_root?;
        let l1 = self.find_l1(root, fault.va)?;
        let mapping = self.frames.word(l1, Self::index_of(Level::L1, fault.va));
        let table = frame_of(mapping);
        if mapping & PRESENT == 0 || mapping & RW != 0 {
            return None;
        }
        let caller = self.caller();
        if !self.get_page_from_mfn(table, caller) {
            return None;
        }
        self.put_page(table);
        if !self.lock_l1(table, caller) {
            return None;
        }
        let answer = self.emulate_on(table, va, store, fault);
        self.unlock_l1(table);
        answer
    }

    fn emulate_on(
        &mut self,
        table: Mfn,
        va: u64,
        store: Store<'_>,
        fault: PageFault,
    ) -> Option<u128> {
        let bytes = store.bytes();
        if !matches!(bytes, 1 | 2 | 4 | 8) {
            let what = match store {
                Store::Plain(_) => "write",
                Store::CompareExchange { .. } => "cmpxchg",
            };
            self.say_ptwr(format_args!("bad {what} size (addr={va:x}, bytes={bytes})"));
            return None;
        }
        let same_page = va >> 12 == fault.va >> 12;
        if !same_page || !va.is_multiple_of(bytes as u64) {
            let cr2 = fault.va;
            self.say_ptwr(format_args!("bad access (cr2={cr2:x}, addr={va:x}, bytes={bytes})"));
            return None;
        }
        let at = (va & 0xfff) as usize;
        let hit = Hit { table, index: at / 8, offset: at % 8 };
        match store {
            Store::Plain(value) => {
                let mut word = [0; 8];
                word[..bytes].copy_from_slice(value);
                self.emulate_update(hit, bytes, u64::from_le_bytes(word), None).map(u128::from)
            }
            Store::CompareExchange { expected, new, .. } => {
                let [new, expected] = [new, expected].map(low_word);
                self.emulate_update(hit, bytes, new, Some(expected)).map(u128::from)
            }
        }
    }

    /// Validates and stores an entry (`ptwr_emulated_update`). Answers the bytes that were there
    /// before.
    fn emulate_update(
        &mut self,
        hit: Hit,
        bytes: usize,
        value: u64,
        expected: Option<u64>,
    ) -> Option<u64> {
        let Hit { table, index, offset } = hit;
        let old = self.frames.word(table, index);
        let mask = if bytes == 8 { u64::MAX } else { ((1 << (bytes * 8)) - 1) << (offset * 8) };
        let seen = (old & mask) >> (offset * 8);
        if expected.is_some_and(|expected| expected != seen) {
            // The instruction emulator compares first, and asks for a write only on a match: a new
            // value that would be refused is not even looked at (docs/findings.md, 1).
            return Some(seen);
        }
        let shifted = value << (offset * 8) & mask;
        let mut new = old & !mask | shifted;
        let owners = Owners::own(self.caller());
        if new & PRESENT != 0 {
            match self.get_page_from_l1e(new, owners) {
                Ok(inverted) => new ^= inverted,
                Err(_) => {
                    self.say_ptwr(format_args!("could not get_page_from_l1e()"));
                    return None;
                }
            }
        }
        new = self.adjust_l1e(new);
        self.frames.words(table)[index] = new;
        self.put_page_from_l1e(old, owners.table);
        Some(seen)
    }

    #[cold]
    fn say_ptwr(&mut self, text: core::fmt::Arguments<'_>) {
        if self.release.before(Release::V4_9) {
            self.say(format_args!("ptwr_emulate: {text}"));
        } else {
            self.say_in(File::RoPageFault, text);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most eight bytes are of interest")]
pub(crate) const fn low_word(value: u128) -> u64 {
    value as u64
}
