//! Tables that are pinned by themselves, beside the root: those from a pool, and the L1 tables of a
//! tree that is edited while other vCPUs walk it. Such a table stays validated when it is unlinked.
//!
//! The entry that leads to the table carries the mark. Pin and mark change together, table by
//! table, so that every point at which Xen may refuse leaves a tree whose marks are right.
#![expect(unsafe_code, reason = "pins and unpins tables that belong to the tree (I-4)")]

use hypercall::{Batch, Entry, Level, Machine, MmuExtOp, MmuUpdate, Pfn, Pte, Slot};

use crate::context::Context;
use crate::error::{PinFailure, UndoError};
use crate::marks::{held, held_table, not_held};
use crate::pgd::{Holds, Pgd, Pinned, Roots};
use crate::tables::Present;

/// What was refused, and what of the undo.
type Refused = (PinFailure, Result<(), UndoError>);

impl Pgd<Pinned> {
    /// Pins every L1 table by itself, too. An L1 table that is moved or unlinked later is then not
    /// validated again. How many there were that were not pinned by themselves before.
    ///
    /// # Errors
    /// What was refused; the tables before it are pinned by themselves, and every mark is right.
    ///
    /// # Hypercalls
    /// For T tables, a batch of B updates and O extended operations: ceil(T / min(B, O))
    /// multicalls.
    pub fn hold_l1_tables<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<u64, (PinFailure, Result<(), UndoError>)> {
        self.holds = Holds::Tables;
        change(context, self.roots(), Change::Hold, batch)
    }
}

/// Lets go of every table from `lowest` up that is pinned by itself; the root still holds them. How
/// many there were.
pub(crate) fn release<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    lowest: Level,
    batch: &mut Batch<'_>,
) -> Result<u64, Refused> {
    change(context, roots, Change::Release(lowest), batch)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Hold,
    Release(Level),
}

impl Change {
    /// The operation and the new entry, if this table is to change.
    fn of(self, level: Level, pte: Pte) -> Option<(MmuExtOp, Pte)> {
        let mfn = pte.mfn();
        match (self, held(pte)) {
            (Self::Hold, None) if level == Level::L1 => {
                let flags = pte.flags().union(held_table(level));
                Some((MmuExtOp::pin(level, mfn), pte.with_flags(flags)))
            }
            (Self::Release(lowest), Some(_)) if level >= lowest => {
                Some((MmuExtOp::unpin(mfn), not_held(pte)))
            }
            _ => None,
        }
    }

    fn opposite(self, (level, pte): (Level, Pte)) -> MmuExtOp {
        match self {
            Self::Hold => MmuExtOp::unpin(pte.mfn()),
            Self::Release(_) => MmuExtOp::pin(level, pte.mfn()),
        }
    }
}

/// Tables that change together.
const CHUNK: usize = 64;

/// A table that is to change: its level, and the entry that leads to it, as it stands.
type Item = (Level, Slot, Pte);

struct Changing<'a, 'b, 'c, M> {
    context: &'a Context<'c, M>,
    batch: &'a mut Batch<'b>,
    change: Change,
    items: [Option<Item>; CHUNK],
    pending: usize,
    done: u64,
}

fn change<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    change: Change,
    batch: &mut Batch<'_>,
) -> Result<u64, Refused> {
    let items = [None; CHUNK];
    let mut changing = Changing { context, batch, change, items, pending: 0, done: 0 };
    changing.below(Level::L4, roots.kernel)?;
    changing.submit()?;
    Ok(changing.done)
}

fn unchanged(error: impl Into<PinFailure>) -> Refused {
    (error.into(), Ok(()))
}

impl<M: Machine> Changing<'_, '_, '_, M> {
    fn below(&mut self, level: Level, table: Pfn) -> Result<(), Refused> {
        let Some(below) = level.below() else { return Ok(()) };
        let mut present = Present::of(level, table);
        while let Some((index, pte)) = present.next(self.context).map_err(unchanged)? {
            let Entry::Table(mfn) = pte.decode(level) else { continue };
            if below > Level::L1 {
                let pfn = self.context.p2m.pfn(self.context.machine, mfn).map_err(unchanged)?;
                self.below(below, pfn)?;
            }
            if self.change.of(below, pte).is_some() {
                let room = self.batch.updates_max().min(self.batch.ops_max()).min(CHUNK);
                if self.pending == room {
                    self.submit()?;
                }
                let slot = self.context.slot(table, index).map_err(unchanged)?;
                let place = self.items.get_mut(self.pending).filter(|_| room > 0);
                *place.ok_or(unchanged(PinFailure::BatchTooSmall))? = Some((below, slot, pte));
                self.pending += 1;
            }
        }
        Ok(())
    }

    /// Sends the pins, then the marks of those that Xen took.
    fn submit(&mut self) -> Result<(), Refused> {
        let pending = core::mem::take(&mut self.pending);
        let (change, items) = (self.change, &self.items[..pending]);
        let items = || items.iter().flatten().copied();
        self.batch.clear();
        for (op, _) in items().filter_map(|(level, _, pte)| change.of(level, pte)) {
            self.batch.op(op).map_err(unchanged)?;
        }
        // SAFETY: the tables belong to the tree (I-4), which holds them through their entries all
        // the while.
        let pins = unsafe { self.batch.submit(self.context.machine) };
        let pinned = if pins.is_ok() { pending } else { self.batch.applied().count() };

        self.batch.clear();
        for (level, slot, pte) in items().take(pinned) {
            let Some((_, new)) = change.of(level, pte) else { continue };
            self.batch.update(MmuUpdate::set(slot, new), pte.raw()).map_err(unchanged)?;
        }
        // SAFETY: the entries keep their frames and all that Xen looks at: only a mark changes.
        let marks = unsafe { self.batch.submit(self.context.machine) };
        let marked = if marks.is_ok() { pinned } else { self.batch.applied().count() };
        self.done += marked as u64;

        self.batch.clear();
        for (level, _, pte) in items().take(pinned).skip(marked) {
            self.batch.op(change.opposite((level, pte))).map_err(unchanged)?;
        }
        // SAFETY: takes back the pins without a mark.
        let undone = unsafe { self.batch.submit(self.context.machine) };
        let undone =
            undone.map_err(|refused| UndoError { failure: PinFailure::Call(refused.error) });
        match (pins.err(), marks.err()) {
            (None, None) => Ok(()),
            (pin, mark) => {
                let refused = [pin, mark].into_iter().flatten().next();
                let error = refused
                    .map_or(PinFailure::BatchTooSmall, |refused| PinFailure::Call(refused.error));
                Err((error, undone))
            }
        }
    }
}
