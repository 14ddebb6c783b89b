//! Gives a GiB of a hole a table of its own.
//!
//! Tokens of the frames taken are kept until the table is linked: the contents of a frame do not
//! tell who owns the frames that it names.

use hypercall::{Frame, FrameSource, Machine, Pfn};

use super::change::{Change, Part, Target};
use super::error::WindowError;
use super::tables::{Access, Stopped, fill_table, protect, unprotect, write};
use super::{Hole, LEAVES_MAX};
use crate::error::ListError;

/// The state of a table that is not used after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It is loose, and writable.
    Writable,
    /// No table leads to it, but it may be read-only.
    ReadOnly,
    /// The window may still lead to it.
    Linked,
}

/// A table that is not used.
struct Unused {
    /// The reason.
    error: WindowError,
    left: Left,
}

impl Unused {
    fn of(error: impl Into<WindowError>, left: Left) -> Self {
        Self { error: error.into(), left }
    }
}

impl<M: Machine> Change<'_, '_, '_, M> {
    /// Replaces the shared table of `hole` by one of the GiB's own, with the leaves of `part`
    /// converted.
    pub(super) fn split(
        &mut self,
        part: &Part,
        hole: Hole,
        target: Target,
        source: &mut impl FrameSource,
    ) -> Result<(), WindowError> {
        let first = part.pfns(part.leaves.start).start;
        let table = source.take().ok_or(ListError::OutOfFrames(first))?;
        let mut taken = [const { None }; LEAVES_MAX];
        let linked = self
            .fill_split(table.pfn(), part, hole, target, source, &mut taken)
            .and_then(|()| self.link_split(table.pfn(), part.gib));
        linked.map_err(|Unused { error, left }| {
            for leaf in taken.into_iter().flatten() {
                match left {
                    // Nothing leads to the table, and so nothing to them.
                    Left::Writable | Left::ReadOnly => source.give(leaf),
                    Left::Linked => source.give_uncertain(leaf.into()),
                }
            }
            match left {
                Left::Writable => source.give(table),
                Left::ReadOnly | Left::Linked => source.give_uncertain(table.into()),
            }
            error
        })
    }

    /// Protects a table and links it in place of a shared one.
    fn link_split(&mut self, table: Pfn, gib: u64) -> Result<(), Unused> {
        let guest = self.guest;
        let left = |error: WindowError| {
            Unused::of(error, if error.undo.is_ok() { Left::Writable } else { Left::ReadOnly })
        };
        let table_alone = || core::iter::once(table);
        protect(&guest, table_alone(), Access::ReadOnly, self.batch)
            .map_err(|Stopped { failure, undo, .. }| left(WindowError { failure, undo }))?;
        let mfn = guest.mfn(table).map_err(WindowError::from);
        mfn.and_then(|mfn| self.link(gib, mfn)).map_err(|error| {
            let WindowError { failure, undo: Ok(()) } = error else {
                return Unused::of(error, Left::Linked);
            };
            let all = Stopped { done: 1, failure, undo: Ok(()) };
            left(unprotect(&guest, table_alone(), all, self.batch))
        })
    }

    /// Fills a loose table like the shared one of `hole`, with the leaves of `part` converted. Puts
    /// the leaves that it takes into `taken`.
    fn fill_split(
        &self,
        table: Pfn,
        part: &Part,
        hole: Hole,
        target: Target,
        source: &mut impl FrameSource,
        taken: &mut [Option<Frame>; LEAVES_MAX],
    ) -> Result<(), Unused> {
        let as_it_was = |failure: ListError| Unused::of(failure, Left::Writable);
        let unwritten = |failure: ListError| Unused::of(failure, Left::ReadOnly);
        let machine = self.guest.machine();
        let shared = self.hole_pte(hole).map_err(as_it_was)?;
        fill_table(machine, table, |_| Ok(shared)).map_err(unwritten)?;
        for (at, place) in part.leaves.clone().zip(taken) {
            let pte = match target {
                Target::Identity => self.hole_pte(Hole::Identity).map_err(as_it_was)?,
                Target::Own => {
                    let leaf = self.own_leaf(part.pfns(at), hole, source);
                    let (leaf, pte) = leaf.map_err(as_it_was)?;
                    *place = Some(leaf);
                    pte
                }
            };
            write(machine, table, at, pte).map_err(|error| unwritten(error.into()))?;
        }
        Ok(())
    }
}
