//! Tables and pages of the window: filled while loose, protected, read.
#![expect(unsafe_code, reason = "writes frames that belong to the window (I-1, I-9)")]

use hypercall::{
    AccessError, Batch, CALLS_MAX, FrameAccess, Machine, PAGE_SIZE, Pfn, Pte, PteFlags,
};
use hypercall::{VaFlush, VaMapping};
use x86_64::structures::paging::PageTableIndex;

use super::error::{WindowError, WindowFailure};
use super::{TABLE_ENTRIES, index};
use crate::map::P2m;

/// How a table's frame is mapped in the direct mapping.
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
) -> Result<(), WindowFailure> {
    const CHUNK_WORDS: usize = 64;
    let chunk = [word.to_le_bytes(); CHUNK_WORDS];
    let chunk = chunk.as_flattened();
    for offset in (0..PAGE_SIZE).step_by(chunk.len()) {
        // SAFETY: the page belongs to the window, and no table does yet lead to it, or it is one of
        // the shared pages.
        unsafe { machine.write_bytes(page, offset, chunk) }?;
    }
    Ok(())
}

/// Fills a loose table, entry by entry.
pub(super) fn fill_table<M: FrameAccess>(
    machine: &M,
    table: Pfn,
    mut entry: impl FnMut(u64) -> Result<Pte, WindowFailure>,
) -> Result<(), WindowFailure> {
    for at in 0..TABLE_ENTRIES {
        write(machine, table, at, entry(at)?)?;
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

/// Reads an entry of a table, loose or live.
pub(super) fn read<M: FrameAccess>(
    machine: &M,
    table: Pfn,
    at: PageTableIndex,
) -> Result<Pte, AccessError> {
    machine.read_entry(table, at)
}

/// A [`protect`] that was refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    /// How many tables are mapped as was asked: the first ones.
    pub(super) done: u64,
    /// Why the next is not.
    pub(super) failure: WindowFailure,
    /// Whether those behind it are as they were.
    pub(super) undo: Result<(), WindowFailure>,
}

/// Maps the frames of `tables` with `access` in the direct mapping. One hypercall for each 16
/// tables.
pub(super) fn protect<M: Machine>(
    (machine, p2m): (&M, &P2m<'_>),
    tables: impl Iterator<Item = Pfn>,
    access: Access,
    batch: &mut Batch<'_>,
) -> Result<(), Stopped> {
    batch.clear();
    let mut done = 0;
    let mut pending = [Pfn::new(0); CALLS_MAX];
    for table in tables {
        let mapping = (|| {
            let mfn = p2m.mfn(table)?;
            let va = machine.direct_map(table)?.addr();
            let pte = Pte::new(mfn, machine.offered(access.flags()));
            let old = Pte::new(mfn, machine.offered(access.opposite().flags()));
            Ok((VaMapping { va, pte, flush: VaFlush::PageAll }, old))
        })();
        let stopped = |failure| Stopped { done, failure, undo: Ok(()) };
        let (mapping, old) = mapping.map_err(stopped)?;
        if batch.va_mapping(mapping, old).is_err() {
            submit(machine, batch, &mut done, &pending)?;
            batch.va_mapping(mapping, old).map_err(|full| Stopped {
                done,
                failure: full.into(),
                undo: Ok(()),
            })?;
        }
        pending[batch.requests() - 1] = table;
    }
    submit(machine, batch, &mut done, &pending)
}

fn submit<M: Machine>(
    machine: &M,
    batch: &mut Batch<'_>,
    done: &mut u64,
    pending: &[Pfn],
) -> Result<(), Stopped> {
    let requests = batch.requests();
    // SAFETY: the frames belong to the window (I-9); no Rust reference leads into them.
    let Err(error) = (unsafe { batch.submit(machine) }) else {
        *done += requests as u64;
        return Ok(());
    };
    let failure = match pending.get(error.request) {
        Some(&table) => WindowFailure::Protect { table, error },
        None => WindowFailure::Refused(error),
    };
    // What Xen did behind the refused entry is taken back at once, so that the done ones are the
    // first ones.
    batch.invert();
    // SAFETY: as above.
    let undo = unsafe { batch.submit(machine) }.map_err(WindowFailure::Refused);
    batch.clear();
    Err(Stopped { done: *done, failure, undo })
}

/// Undoes a [`protect`] that stopped, or that is to be undone whole.
pub(super) fn unprotect<M: Machine>(
    around: (&M, &P2m<'_>),
    tables: impl Iterator<Item = Pfn>,
    stopped: Stopped,
    batch: &mut Batch<'_>,
) -> WindowError {
    let done = usize::try_from(stopped.done).unwrap_or(usize::MAX);
    let undone = protect(around, tables.take(done), Access::Writable, batch);
    let undo = stopped.undo.and(undone.map_err(|again| again.failure));
    WindowError { failure: stopped.failure, undo }
}
