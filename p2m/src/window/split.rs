//! A GiB of a hole gets a table of its own.
//!
//! What was taken from the source is kept as tokens until the table is linked: what a frame holds
//! says nothing about whose the frames are that it names.

use core::ops::Range;

use hypercall::{Batch, Frame, FrameSource, Machine, Pfn, Pte, PteFlags};

use super::error::{WindowError, WindowFailure};
use super::grow::{LEAVES_MAX, Target};
use super::tables::{Access, Stopped, fill_leaf, fill_table, protect, unprotect, write};
use super::{GrowContext, Hole, Window};
use crate::entry::{ABSENT, IDENTITY};

/// What has become of a table that is not to be used after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It is loose, and writable.
    Writable,
    /// No table leads to it, but it may be read-only.
    ReadOnly,
}

impl Window {
    /// Puts a table of the GiB's own in the place of a shared one.
    pub(super) fn split<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        (table, gib, hole): (Frame, u64, Hole),
        (range, target): (Range<u64>, Target),
        (source, batch): (&mut impl FrameSource, &mut Batch<'_>),
    ) -> Result<(), WindowError> {
        let mut taken = [const { None }; LEAVES_MAX];
        let linked = self
            .fill_split(context, (table.pfn(), hole), (range, target), source, &mut taken)
            .and_then(|()| self.link_split(context, table.pfn(), gib, batch));
        linked.map_err(|(error, left)| {
            // Nothing leads to the table, and so nothing to them.
            taken.into_iter().flatten().for_each(|leaf| source.give(leaf));
            match left {
                Left::Writable => source.give(table),
                Left::ReadOnly => source.give_uncertain(table.into()),
            }
            error
        })
    }

    /// Protects a table and links it in the place of a shared one.
    fn link_split<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        table: Pfn,
        gib: u64,
        batch: &mut Batch<'_>,
    ) -> Result<(), (WindowError, Left)> {
        let around = (context.machine, context.p2m);
        let left = |error: WindowError| {
            (error, if error.undo.is_ok() { Left::Writable } else { Left::ReadOnly })
        };
        let table_alone = || core::iter::once(table);
        protect(around, table_alone(), Access::ReadOnly, batch)
            .map_err(|Stopped { failure, undo, .. }| left(WindowError { failure, undo }))?;
        let mfn = context.p2m.mfn(table).map_err(WindowFailure::from);
        mfn.and_then(|mfn| self.link(context, gib, mfn, batch)).map_err(|failure| {
            let all = Stopped { done: 1, failure, undo: Ok(()) };
            left(unprotect(around, table_alone(), all, batch))
        })
    }

    /// Fills a loose table like the shared one of `hole`, with the leaves in `range` converted. The
    /// leaves that it takes are in `taken`.
    fn fill_split<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        (table, hole): (Pfn, Hole),
        (range, target): (Range<u64>, Target),
        source: &mut impl FrameSource,
        taken: &mut [Option<Frame>; LEAVES_MAX],
    ) -> Result<(), (WindowError, Left)> {
        let as_it_was = |failure: WindowFailure| (failure.into(), Left::Writable);
        let unwritten = |failure: WindowFailure| (failure.into(), Left::ReadOnly);
        let shared = self.hole_pte(context, hole).map_err(as_it_was)?;
        fill_table(context.machine, table, |_| Ok(shared)).map_err(unwritten)?;
        for (at, place) in range.zip(taken) {
            let pte = match target {
                Target::Identity => self.hole_pte(context, Hole::Identity).map_err(as_it_was)?,
                Target::Own => {
                    let (leaf, pte) = own_leaf(context, hole, source).map_err(as_it_was)?;
                    *place = Some(leaf);
                    pte
                }
            };
            write(context.machine, table, at, pte).map_err(|error| unwritten(error.into()))?;
        }
        Ok(())
    }
}

/// Takes a page, fills it with the words of a hole, and makes the entry that leads to it.
pub(super) fn own_leaf<M: Machine>(
    context: GrowContext<'_, M>,
    hole: Hole,
    source: &mut impl FrameSource,
) -> Result<(Frame, Pte), WindowFailure> {
    let leaf = source.take().ok_or(WindowFailure::OutOfFrames)?;
    let word = match hole {
        Hole::Absent => ABSENT,
        Hole::Identity => IDENTITY,
    };
    if let Err(failure) = fill_leaf(context.machine, leaf.pfn(), word) {
        // It is not writable, as what is given back is.
        source.give_uncertain(leaf.into());
        return Err(failure);
    }
    match context.p2m.mfn(leaf.pfn()) {
        Ok(mfn) => Ok((leaf, Pte::new(mfn, context.machine.offered(PteFlags::KERNEL_RW)))),
        Err(error) => {
            source.give(leaf);
            Err(error.into())
        }
    }
}
