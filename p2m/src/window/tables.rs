//! Fills, protects and reads the tables and pages of the window.
#![expect(unsafe_code, reason = "writes frames that belong to the window (I-1, I-9)")]

use hypercall::{
    AccessError, Batch, CALLS_MAX, FrameAccess, Machine, PAGE_SIZE, Pfn, Pte, PteFlags, VaFlush,
    VaMapping,
};

use super::error::WindowError;
use super::{TABLE_ENTRIES, index};
use crate::error::ListError;
use crate::guest::Guest;

/// How the direct mapping maps a table's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    Writable,
}

impl Access {
    const fn flags(self) -> PteFlags {
        match self {
            Self::ReadOnly => PteFlags::KERNEL_RO,
            Self::Writable => PteFlags::KERNEL_RW,
        }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::ReadOnly => Self::Writable,
            Self::Writable => Self::ReadOnly,
        }
    }
}

/// Fills a page of the list with one word.
pub(super) fn fill_leaf<M: FrameAccess>(
    machine: &M,
    page: Pfn,
    word: u64,
) -> Result<(), AccessError> {
    const CHUNK_WORDS: usize = 64;
    let chunk = [word.to_le_bytes(); CHUNK_WORDS];
    let chunk = chunk.as_flattened();
    for offset in (0..PAGE_SIZE).step_by(chunk.len()) {
        // SAFETY: the page belongs to the window, and no table leads to it yet, or it is one of the
        // shared pages.
        unsafe { machine.write_bytes(page, offset, chunk) }?;
    }
    Ok(())
}

/// Fills a loose table, some entries at a time.
pub(super) fn fill_table<M: FrameAccess>(
    machine: &M,
    table: Pfn,
    mut entry: impl FnMut(u64) -> Result<Pte, ListError>,
) -> Result<(), ListError> {
    const PART: usize = 64;
    let mut part = [Pte::ABSENT; PART];
    for first in (0..TABLE_ENTRIES).step_by(PART) {
        for (at, pte) in (first..).zip(&mut part) {
            *pte = entry(at)?;
        }
        // SAFETY: the table belongs to the window and is part of no tree yet.
        unsafe { machine.write_entries(table, index(first), &part) }?;
    }
    Ok(())
}

/// Stores an entry of a loose table.
pub(super) fn write<M: FrameAccess>(
    machine: &M,
    table: Pfn,
    at: u64,
    pte: Pte,
) -> Result<(), AccessError> {
    // SAFETY: the table belongs to the window and is part of no tree yet.
    unsafe { machine.write_entry(table, index(at), pte) }
}

/// A [`protect`] that was refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    /// The first so many tables, which are mapped as asked.
    pub(super) done: u64,
    /// Why the next one is not.
    pub(super) failure: ListError,
    /// Whether those behind it are as they were.
    pub(super) undo: Result<(), ListError>,
}

/// Maps the frames of `tables` with `access` in the direct mapping, in one hypercall for each 16.
pub(super) fn protect<M: Machine>(
    guest: &Guest<'_, M>,
    tables: impl Iterator<Item = Pfn>,
    access: Access,
    batch: &mut Batch<'_>,
) -> Result<(), Stopped> {
    batch.clear();
    let mut done = 0;
    let mut pending = [Pfn::new(0); CALLS_MAX];
    for table in tables {
        let stopped = |failure, done| Stopped { done, failure, undo: Ok(()) };
        let mapped = mapping(guest, table, access).map_err(|failure| stopped(failure, done));
        let (mapping, old) = mapped?;
        if batch.va_mapping(mapping, old).is_err() {
            done += submit(guest.machine(), batch, done, &pending)?;
            batch.va_mapping(mapping, old).map_err(|full| stopped(full.into(), done))?;
        }
        pending[batch.requests() - 1] = table;
    }
    submit(guest.machine(), batch, done, &pending).map(drop)
}

/// Returns the request that maps `table` with `access`, and the entry that it replaces.
fn mapping<M: FrameAccess>(
    guest: &Guest<'_, M>,
    table: Pfn,
    access: Access,
) -> Result<(VaMapping, Pte), ListError> {
    let (machine, mfn) = (guest.machine(), guest.mfn(table)?);
    let entry = |access: Access| Pte::new(mfn, machine.offered(access.flags()));
    let va = machine.direct_map(table)?.addr();
    let mapping = VaMapping { va, pte: entry(access), flush: VaFlush::PageAll };
    Ok((mapping, entry(access.opposite())))
}

/// Submits the mappings of `pending` tables, behind `done` others. Returns how many are done then.
fn submit<M: Machine>(
    machine: &M,
    batch: &mut Batch<'_>,
    done: u64,
    pending: &[Pfn],
) -> Result<u64, Stopped> {
    let requests = batch.requests() as u64;
    // SAFETY: the frames belong to the window (I-9). No Rust reference leads into them.
    let Err(error) = (unsafe { batch.submit(machine) }) else { return Ok(requests) };
    let table = pending[error.request as usize];
    // What Xen did behind the refused entry is undone at once, so that the done ones are the first
    // ones.
    batch.invert();
    let failure = ListError::Protect { table, error };
    // SAFETY: as above.
    let undo =
        unsafe { batch.submit(machine) }.map_err(|error| ListError::Protect { table, error });
    batch.clear();
    Err(Stopped { done, failure, undo })
}

/// Undoes a [`protect`], whether it stopped or not.
pub(super) fn unprotect<M: Machine>(
    guest: &Guest<'_, M>,
    tables: impl Iterator<Item = Pfn>,
    stopped: Stopped,
    batch: &mut Batch<'_>,
) -> WindowError {
    let done = usize::try_from(stopped.done).unwrap_or(usize::MAX);
    let undone = protect(guest, tables.take(done), Access::Writable, batch);
    let undo = stopped.undo.and(undone.map_err(|again| again.failure));
    WindowError { failure: stopped.failure, undo }
}
