//! A model of a vCPU's TLB.
//!
//! It keeps every translation the guest has used until something that Xen or the architecture
//! promises to flush it does so, and no shorter: a guest that uses a translation which has gone
//! stale in the tables would fail on some machine on some day, so the model reports it at once.

use std::collections::HashMap;

use hypercall::Mfn;

/// Translations kept; beyond it old ones fall out, as on a machine.
const ENTRIES_MAX: usize = 1536;

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
    /// It outlives a switch of roots.
    Global,
}

/// The translations a vCPU holds, by page of the address.
#[derive(Debug, Default)]
pub(crate) struct Tlb {
    entries: HashMap<u64, Translation>,
}

impl Tlb {
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

    /// What a reload of cr3 flushes.
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
