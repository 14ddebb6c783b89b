//! A model of a vCPU's TLB.
//!
//! It keeps every translation the guest has used until something that Xen or the architecture
//! promises to flush it does so, and no shorter: a guest that uses a translation which has gone
//! stale in the tables would fail on some machine on some day, so the model reports it at once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use hypercall::Mfn;

/// Translations kept; beyond it old ones fall out, as on a machine.
const ENTRIES_MAX: usize = 1536;

/// In which mode of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The guest's kernel.
    Kernel,
    /// The guest's user mode, in the tables of the user root.
    User,
}

/// A translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) frame: Mfn,
    pub(crate) writable: Writable,
    pub(crate) scope: Scope,
}

/// Whether every entry on the way allows writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writable {
    Yes,
    No,
}

/// What it takes to flush a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Any flush.
    Local,
    /// It outlives a switch between the guest's kernel and its user mode.
    Global,
}

/// The translations a vCPU holds, by page of the address.
#[derive(Debug, Default)]
pub(crate) struct Tlb {
    entries: HashMap<u64, Translation, BuildHasherDefault<PageHasher>>,
    /// The mode of the last access.
    mode: Option<Mode>,
}

/// Spreads page numbers by one multiplication: nobody chooses them to make the map slow.
#[derive(Debug, Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Tlb {
    /// The vCPU runs in `mode` now. For another one Xen loads the other root, and keeps what is
    /// global (`toggle_guest_pt`).
    pub(crate) fn enter(&mut self, mode: Mode) {
        if self.mode.replace(mode).is_some_and(|before| before != mode) {
            self.flush_local();
        }
    }

    pub(crate) fn get(&self, page: u64) -> Option<Translation> {
        self.entries.get(&page).copied()
    }

    pub(crate) fn insert(&mut self, page: u64, translation: Translation) {
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&page) {
            self.entries.clear();
        }
        self.entries.insert(page, translation);
    }

    /// Everything, global translations too.
    pub(crate) fn flush(&mut self) {
        self.entries.clear();
    }

    /// What a load of cr3 flushes while global translations are enabled.
    pub(crate) fn flush_local(&mut self) {
        self.entries.retain(|_, translation| translation.scope == Scope::Global);
    }

    /// One page.
    pub(crate) fn flush_page(&mut self, page: u64) {
        self.entries.remove(&page);
    }

    /// Every translation to a frame: the part of a flush of Xen's own that a guest may count on.
    pub(crate) fn flush_frame(&mut self, frame: Mfn) {
        if !self.entries.is_empty() {
            self.entries.retain(|_, translation| translation.frame != frame);
        }
    }
}
