//! The direct mapping of table frames: read-only while they are tables, writable before and after.
#![expect(
    unsafe_code,
    reason = "submits changes of the direct mapping; the frames belong to the tree (I-4)"
)]

use hypercall::{Batch, Machine, MmuUpdate, Pfn, Pte};

use crate::context::{Context, DirectMap};
use crate::error::{PinFailure, UndoError};
use crate::pgd::Roots;
use crate::tables::visit;

/// How a table's frame is to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    Writable,
}

impl Access {
    pub(crate) const fn apply(self, pte: Pte) -> Pte {
        match self {
            Self::ReadOnly => pte.read_only(),
            Self::Writable => pte.writable(),
        }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::ReadOnly => Self::Writable,
            Self::Writable => Self::ReadOnly,
        }
    }
}

/// A change that stopped in the middle.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Tables that were changed.
    pub(crate) done: u64,
    pub(crate) failure: PinFailure,
}

/// Maps the first `limit` tables of a tree with `access`, in the order of [`visit`], the user root
/// after all others, and says how many there were. Tables that are pinned by themselves are
/// read-only already, and stay so. One hypercall for each time the batch is full, and one for the
/// rest.
pub(crate) fn set_access<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    (access, limit): (Access, u64),
    batch: &mut Batch<'_>,
) -> Result<u64, Stopped> {
    batch.clear();
    let mut done = 0;
    let mut pending = 0;
    let mut direct_map = DirectMap::default();
    let mut collect = |table: Pfn| -> Result<bool, PinFailure> {
        if done + pending == limit {
            return Ok(false);
        }
        if pending > 0 && batch.room() == 0 {
            submit(context, batch, &mut done)?;
            pending = 0;
        }
        let (slot, pte) = direct_map.entry(context, table)?;
        batch.update(MmuUpdate::set(slot, access.apply(pte)), pte.raw())?;
        pending += 1;
        Ok(true)
    };
    let collected = visit(context, roots.kernel, &mut |table| {
        if table.is_held { Ok(true) } else { collect(table.pfn) }
    })
    .and_then(|_| roots.user.map_or(Ok(true), &mut collect));
    match collected.and_then(|_| submit(context, batch, &mut done)) {
        Ok(()) => Ok(done),
        Err(failure) => {
            batch.clear();
            Err(Stopped { done, failure })
        }
    }
}

/// Puts the first `count` tables back to how they were before `set_access` gave them `access`.
pub(crate) fn undo<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    (access, count): (Access, u64),
    batch: &mut Batch<'_>,
) -> Result<(), UndoError> {
    if count == 0 {
        return Ok(());
    }
    set_access(context, roots, (access.opposite(), count), batch)
        .map(drop)
        .map_err(|stopped| UndoError { failure: stopped.failure })
}

fn submit<M: Machine>(
    context: &Context<'_, M>,
    batch: &mut Batch<'_>,
    done: &mut u64,
) -> Result<(), PinFailure> {
    let full = batch.updates();
    // SAFETY: the frames whose direct mapping changes are tables of the tree at hand, which belong
    // to nobody else (I-4); no Rust reference leads into them.
    match unsafe { batch.submit(context.machine) } {
        Ok(()) => {
            *done += full as u64;
            Ok(())
        }
        Err(refused) => {
            *done += batch.applied().count() as u64;
            let error = refused.error;
            match batch.refused_update() {
                Some(update) => {
                    let mfn = Pte::from_raw(update.value()).mfn();
                    let table = context.p2m.pfn(context.machine, mfn)?;
                    Err(PinFailure::Protect { table, error })
                }
                None => Err(PinFailure::Call(error)),
            }
        }
    }
}
