//! The requests of a change of the window: links of its tables, and entries of live ones.
#![expect(unsafe_code, reason = "changes mappings of the window, which belong to it (I-2, I-9)")]

use core::ops::Range;

use hypercall::{
    Batch, BatchError, Frame, FrameSource, Machine, Mfn, MmuExtOp, MmuUpdate, Pfn, Pte, PteFlags,
    Slot,
};

use super::error::WindowError;
use super::tables::fill_leaf;
use super::{Hole, PFNS_PER_L1, TABLE_ENTRIES, Window, place};
use crate::entry::{ABSENT, IDENTITY};
use crate::error::ListError;
use crate::guest::Guest;
use crate::map::Pfns;
use crate::runs::LEAF_WORDS;
use crate::toolstack::Toolstack;

/// What leaves of a hole become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Pages of their own, with the words of the hole.
    Own,
    /// The shared page of identity words.
    Identity,
}

/// Leaves of one GiB.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) gib: u64,
    /// Their places in the GiB's L1 table.
    pub(super) leaves: Range<u64>,
}

impl Part {
    /// Splits `leaves`, counted from pfn 0, at the borders of GiB.
    pub(super) fn of(leaves: Range<u64>) -> impl Iterator<Item = Self> {
        let mut start = leaves.start;
        core::iter::from_fn(move || {
            let gib = start / TABLE_ENTRIES;
            let end = leaves.end.min((gib + 1) * TABLE_ENTRIES);
            let leaves = start % TABLE_ENTRIES..end.saturating_sub(gib * TABLE_ENTRIES);
            let part = (start < end).then_some(Self { gib, leaves });
            start = end;
            part
        })
    }

    /// Returns the pfns of the leaf at this place.
    pub(super) const fn pfns(&self, at: u64) -> Pfns {
        Pfns::new(Pfn::new(self.gib * PFNS_PER_L1 + at * LEAF_WORDS), LEAF_WORDS)
    }
}

/// A change of a window that is under way.
pub(super) struct Change<'c, 'a, 'b, M> {
    pub(super) window: &'c mut Window,
    pub(super) guest: Guest<'a, M>,
    toolstack: Option<&'c Toolstack<'c>>,
    pub(super) batch: &'c mut Batch<'b>,
}

impl<'c, 'a, 'b, M: Machine> Change<'c, 'a, 'b, M> {
    /// Begins a change. The map must be the window's, because its list grows where the window's
    /// tables lead (I-8). If Xen refused an undo and its flush before, flushes now: otherwise some
    /// vCPU might not see pages that are mapped already.
    pub(super) fn begin(
        window: &'c mut Window,
        guest: &Guest<'a, M>,
        toolstack: Option<&'c Toolstack<'c>>,
        batch: &'c mut Batch<'b>,
    ) -> Result<Self, ListError> {
        let p2m = guest.p2m();
        if p2m.list.addr() != window.words || p2m.capacity() != window.capacity {
            return Err(ListError::OtherMap(window.va));
        }
        let mut change = Self { window, guest: *guest, toolstack, batch };
        if change.window.owes_flush {
            change.batch.clear();
            change.batch.op(MmuExtOp::tlb_flush_all())?;
            change.submit(Pfn::new(0))?;
            change.window.owes_flush = false;
        }
        Ok(change)
    }

    /// Records what the change leaves.
    pub(super) fn end(self, done: Result<(), WindowError>) -> Result<(), WindowError> {
        self.window.owes_flush |= done.is_err_and(|error| error.undo.is_err());
        done
    }

    /// Returns the entry that leads to the shared page of a hole.
    pub(super) fn hole_pte(&self, hole: Hole) -> Result<Pte, ListError> {
        let page = match hole {
            Hole::Absent => place::ABSENT_LEAF,
            Hole::Identity => place::IDENTITY_LEAF,
        };
        let flags = self.guest.machine().offered(PteFlags::KERNEL_RO);
        Ok(Pte::new(self.guest.mfn(self.window.pfn(page))?, flags))
    }

    /// Takes a page for the words of `pfns` and fills it with those of a hole. Returns it and the
    /// entry that leads to it.
    pub(super) fn own_leaf(
        &self,
        pfns: Pfns,
        hole: Hole,
        source: &mut impl FrameSource,
    ) -> Result<(Frame, Pte), ListError> {
        let leaf = source.take().ok_or(ListError::OutOfFrames(pfns.start))?;
        let word = match hole {
            Hole::Absent => ABSENT,
            Hole::Identity => IDENTITY,
        };
        if let Err(error) = fill_leaf(self.guest.machine(), leaf.pfn(), word) {
            // It cannot be written, so it does not go back as a free frame.
            source.give_uncertain(leaf.into());
            return Err(error.into());
        }
        match self.guest.mfn(leaf.pfn()) {
            Ok(mfn) => Ok((leaf, Pte::new(mfn, self.guest.machine().offered(PteFlags::KERNEL_RW)))),
            Err(error) => {
                source.give(leaf);
                Err(error.into())
            }
        }
    }

    /// Links a table for a GiB by one entry. If Xen refuses, nothing has changed. Xen itself
    /// flushes every TLB when an entry above L1 changes.
    pub(super) fn link(&mut self, gib: u64, table: Mfn) -> Result<(), WindowError> {
        let first = Pfn::new(gib * PFNS_PER_L1);
        self.batch.clear();
        self.push_l2(gib, Pte::new(table, PteFlags::TABLE))?;
        self.submit(first).map_err(|failure| match self.batch.in_effect().count() {
            0 => failure.into(),
            // A machine may do a request that it refuses as a whole.
            _ => WindowError { failure, undo: self.take_back(first) },
        })
    }

    /// Undoes what took effect of a refused batch, and flushes: some vCPU may have used an entry.
    fn take_back(&mut self, first: Pfn) -> Result<(), ListError> {
        self.batch.invert();
        self.batch.op(MmuExtOp::tlb_flush_all())?;
        self.submit(first)
    }

    /// Adds the change of a GiB's L2 entry.
    pub(super) fn push_l2(&mut self, gib: u64, pte: Pte) -> Result<(), ListError> {
        let (table, index) = self.window.l2_entry(gib);
        let old = self.guest.machine().read_entry(table, index)?;
        let slot = Slot { table: self.guest.mfn(table)?, index };
        Ok(self.batch.update(MmuUpdate::set(slot, pte), old.raw())?)
    }

    /// Changes entries that a TLB may hold, at every vCPU, or changes them back. The first is for
    /// the word of `pfn`.
    pub(super) fn submit_flushed(&mut self, pfn: Pfn) -> Result<(), WindowError> {
        if self.batch.updates() == 0 {
            return Ok(());
        }
        self.batch.op(MmuExtOp::tlb_flush_all()).map_err(ListError::from)?;
        self.submit(pfn).map_err(|failure| WindowError { failure, undo: self.take_back(pfn) })
    }

    /// Sends changes of the window's entries, with the generation odd meanwhile. The first is for
    /// the word of `pfn`.
    pub(super) fn submit(&mut self, pfn: Pfn) -> Result<(), ListError> {
        let _changing = self.toolstack.map(Toolstack::changing);
        // SAFETY: the entries are the window's (I-9), and so are the pages they lead to. Readers
        // find the same in either.
        let done = unsafe { self.batch.submit(self.guest.machine()) };
        done.map_err(|error: BatchError| ListError::Refused { pfn, error })
    }
}
