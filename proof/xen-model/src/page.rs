//! A frame: what Xen knows of it, and what is in it.

use crate::types::{CountInfo, TypeInfo};

/// Words of a frame, entries of a table.
pub(crate) const WORDS: usize = hypercall::ENTRIES as usize;

/// Owner of nothing (`DOMID_INVALID`).
pub(crate) const NOBODY: u16 = 0x7ff4;
/// Owner of I/O frames.
pub(crate) const DOM_IO: u16 = 0x7ff1;
/// Owner of Xen's frames.
pub(crate) const DOM_XEN: u16 = 0x7ff2;

/// An M2P entry that names no page.
pub(crate) const INVALID_M2P: u64 = u64::MAX;

/// What every word of a frame is that was given back: a guest that still reads it sees it at once.
pub(crate) const POISON: u64 = 0xc2c2_c2c2_c2c2_c2c2;

/// What [`Page::validated`] says of a table whose entries are all good.
pub(crate) const ALL_ENTRIES: u16 = 512;

/// What is in a frame.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    /// What the builder put there; computed when read.
    Planned,
    /// The same word throughout.
    Filled(u64),
    /// Any words.
    Words(Box<[u64; WORDS]>),
}

/// What Xen knows of a frame (`struct page_info`), and its contents.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) count: CountInfo,
    pub(crate) kind: TypeInfo,
    pub(crate) m2p: u64,
    pub(crate) owner: u16,
    /// Above zero: same-level entries in this table; below: tables of the same level that hold this
    /// one.
    pub(crate) linear: i16,
    /// Entries that hold references, while a table is being validated or torn down; else 512.
    pub(crate) validated: u16,
    pub(crate) contents: Contents,
}
