//! Changing a tree that Xen holds: every change is a request, and a refused one is taken back.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half, which belongs to the address space (I-4)"
)]

use core::ops::Range;

use hypercall::{
    Batch, BatchError, Element, Frame, GuestVa, Machine, MmuExtOp, MmuUpdate, Pte, PteFlags, Slot,
};

use crate::context::Context;
use crate::error::{MapError, MapFailed};
use crate::loose::{check_flags, check_page};
use crate::pgd::{Pgd, Pinned};
use crate::walk::walk;

/// Up to this many pages are flushed one by one; beyond it, everything at once.
const PAGES_FLUSHED_SINGLY: u64 = 8;

/// A run of pages in the user half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// First address of the first page.
    pub start: GuestVa,
    /// How many.
    pub count: u64,
}

impl Pages {
    /// The page at `va` alone.
    #[must_use]
    pub const fn one(va: GuestVa) -> Self {
        Self { start: va, count: 1 }
    }

    fn check(self) -> Result<(), MapError> {
        check_page(self.start)?;
        match self.count {
            0 => Ok(()),
            _ => check_page(self.at(self.count - 1)?),
        }
    }

    fn at(self, index: u64) -> Result<GuestVa, MapError> {
        self.start.checked_add_pages(index).map_err(|_| MapError::KernelHalf(self.start))
    }

    const fn indices(self) -> Range<u64> {
        0..self.count
    }
}

impl Pgd<Pinned> {
    /// Gives every page of `pages` new flags, in one trap with the TLB flush that it needs.
    ///
    /// # Errors
    /// Before anything is asked: [`MapError::KernelHalf`], [`MapError::Unaligned`],
    /// [`MapError::Flags`] without PRESENT, [`MapError::NotMapped`],
    /// [`MapError::BatchTooSmall`], [`MapError::Walk`]. [`MapError::Refused`] if Xen refuses
    /// one: those before it have their old flags back.
    ///
    /// # Hypercalls
    /// One multicall of an `mmu_update` with an element a page and an `mmuext_op`. On refusal one
    /// more, to undo.
    pub fn protect<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        pages: Pages,
        flags: PteFlags,
        batch: &mut Batch<'_>,
    ) -> Result<(), MapError> {
        check_flags(flags)?;
        self.plan(context, pages, batch, |pte| pte.with_flags(flags))?;
        flush(batch, pages)?;
        submit(context, pages, batch)
    }

    /// Unmaps a page and returns its frame, once no TLB knows the mapping any more.
    ///
    /// # Errors
    /// As for [`protect`](Self::protect).
    ///
    /// # Hypercalls
    /// One multicall of an `mmu_update` and an `mmuext_op`. On refusal one more, to undo.
    pub fn unmap<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        va: GuestVa,
        batch: &mut Batch<'_>,
    ) -> Result<Frame, MapError> {
        let (_, pte) = self.present_leaf(context, va)?;
        let pfn = context.p2m.pfn(context.machine, pte.mfn())?;
        self.plan(context, Pages::one(va), batch, |_| Pte::ABSENT)?;
        flush(batch, Pages::one(va))?;
        submit(context, Pages::one(va), batch)?;
        // SAFETY: I-4: the entry was the frame's only owner; it is clear, and no TLB holds it.
        Ok(unsafe { Frame::claim(pfn) })
    }

    /// Maps `frame` at `va`, where the tree has an L1 table already.
    ///
    /// # Errors
    /// [`MapFailed`] with the frame and the reason: as for [`protect`](Self::protect), and
    /// [`MapError::Occupied`], [`MapError::NoTable`].
    ///
    /// # Hypercalls
    /// One `mmu_update`.
    pub fn map<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        (va, flags): (GuestVa, PteFlags),
        frame: Frame,
        batch: &mut Batch<'_>,
    ) -> Result<(), MapFailed> {
        match self.try_map(context, (va, flags), &frame, batch) {
            Ok(()) => Ok(()),
            Err(error) => Err(MapFailed { frame, error }),
        }
    }

    fn try_map<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        (va, flags): (GuestVa, PteFlags),
        frame: &Frame,
        batch: &mut Batch<'_>,
    ) -> Result<(), MapError> {
        check_page(va)?;
        check_flags(flags)?;
        let new = Pte::new(context.p2m.mfn(frame.pfn())?, flags);
        let (slot, old) = walk(context, self.root(), va)?.leaf().ok_or(MapError::NoTable(va))?;
        if old.is_present() {
            return Err(MapError::Occupied { va, pte: old });
        }
        batch.clear();
        let room = batch.updates_max();
        batch
            .update(MmuUpdate::set(slot, new), old.raw())
            .map_err(|_| MapError::BatchTooSmall { needed: 1, room })?;
        // Nothing was mapped there, so no TLB has anything to forget.
        submit(context, Pages::one(va), batch)
    }

    /// Reads every entry of `pages` and fills the batch with what `change` makes of it.
    fn plan<M: Machine>(
        &self,
        context: &Context<'_, M>,
        pages: Pages,
        batch: &mut Batch<'_>,
        change: impl Fn(Pte) -> Pte,
    ) -> Result<(), MapError> {
        pages.check()?;
        batch.clear();
        let needed = usize::try_from(pages.count).unwrap_or(usize::MAX);
        let too_small = MapError::BatchTooSmall { needed, room: batch.updates_max() };
        if needed > batch.updates_max() {
            return Err(too_small);
        }
        for index in pages.indices() {
            let (slot, pte) = self.present_leaf(context, pages.at(index)?)?;
            let update = MmuUpdate::set(slot, change(pte));
            batch.update(update, pte.raw()).map_err(|_| too_small)?;
        }
        Ok(())
    }

    fn present_leaf<M: Machine>(
        &self,
        context: &Context<'_, M>,
        va: GuestVa,
    ) -> Result<(Slot, Pte), MapError> {
        check_page(va)?;
        let leaf = walk(context, self.root(), va)?.leaf();
        leaf.filter(|(_, pte)| pte.is_present()).ok_or(MapError::NotMapped(va))
    }
}

/// Adds the flush that makes every vCPU forget `pages`.
fn flush(batch: &mut Batch<'_>, pages: Pages) -> Result<(), MapError> {
    let room = batch.ops_max();
    let singly = pages.count <= PAGES_FLUSHED_SINGLY && pages.count <= room as u64;
    let ops = if singly { pages.count } else { 1 };
    for index in 0..ops {
        let op = if singly {
            MmuExtOp::invlpg_all(pages.at(index)?.addr())
        } else {
            MmuExtOp::tlb_flush_all()
        };
        batch.op(op).map_err(|_| MapError::BatchTooSmall { needed: 1, room })?;
    }
    Ok(())
}

/// Submits the planned changes of `pages`; if one is refused, takes back those before it.
fn submit<M: Machine>(
    context: &Context<'_, M>,
    pages: Pages,
    batch: &mut Batch<'_>,
) -> Result<(), MapError> {
    // SAFETY: only entries of the user half change, which is the address space's own (I-4), and
    // `&mut self` of the caller says that nobody else changes it now.
    let Err(error) = (unsafe { batch.submit(context.machine) }) else { return Ok(()) };
    let applied = batch.applied().filter(|element| matches!(element, Element::Update(_))).count();
    let va = pages.at((applied as u64).min(pages.count - 1))?;
    take_back(context, pages, batch)?;
    Err(MapError::Refused { va, error })
}

/// Undoes what took effect of a refused batch, and flushes what may have been seen of it.
fn take_back<M: Machine>(
    context: &Context<'_, M>,
    pages: Pages,
    batch: &mut Batch<'_>,
) -> Result<(), MapError> {
    batch.invert();
    if batch.is_empty() {
        return Ok(());
    }
    let updates = batch.updates();
    flush(batch, pages)?;
    // SAFETY: as in `submit`; every entry gets back the value that it had.
    unsafe { batch.submit(context.machine) }.map_err(|refused: BatchError| {
        let undone = batch.applied().filter(|e| matches!(e, Element::Update(_))).count();
        let left = u32::try_from(updates - undone.min(updates)).unwrap_or(u32::MAX);
        MapError::NotUndone { left, error: refused.error }
    })
}
