//! Growth, and memory for the words of holes.
//!
//! Plan and order: new tables and pages are filled while nobody sees them, the table is protected,
//! and one entry links it; only then does the length rise, or the caller change entries there. The
//! generation is odd around each link. Until a page is linked, readers find the hole's words in its
//! place, which say the same as those of the new page.
#![expect(unsafe_code, reason = "changes mappings of the window, which belong to it (I-2, I-9)")]

use core::ops::Range;

use hypercall::{
    Batch, Frame, FrameSource, Machine, Mfn, MmuExtOp, MmuUpdate, Pfn, Pte, PteFlags, Slot,
};

use super::error::{WindowError, WindowFailure};
use super::split::own_leaf;
use super::tables::read;
use super::{GrowContext, Hole, L1, PFNS_PER_L1, TABLE_ENTRIES, Window, index, place};
use crate::map::{P2m, Pfns};
use crate::runs::LEAF_WORDS;

/// The most pages that change in one hypercall.
pub(super) const LEAVES_MAX: usize = 512;
const _: () = assert!(LEAVES_MAX as u64 == TABLE_ENTRIES);

/// What leaves of a hole become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Pages of their own, with the words of the hole.
    Own,
    /// The shared page of identity words.
    Identity,
}

impl Window {
    /// Lets the map reach to `len` pfns; the new ones are absent and share their memory. A smaller
    /// `len` changes nothing. Before one of them is given anything, [`reserve`](Self::reserve) it.
    /// The published `max_pfn` rises as well.
    ///
    /// # Errors
    /// [`WindowError`]; the length is as it was. GiB that were linked already stay so, unseen, and
    /// are linked again by the next attempt.
    ///
    /// # Hypercalls
    /// For G new GiB and a batch of B updates: ceil(G / B) `mmu_update`; none within a GiB that the
    /// map has begun.
    ///
    /// ```
    /// # use hypercall::BatchStorage;
    /// # use p2m::Window;
    /// # use pv_tests::window::{CAPACITY, Machine, context};
    /// let machine = Machine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, _) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// window.grow(context(&machine, &p2m), 1 << 18, &mut batch)?; // room for 1 GiB
    /// assert_eq!(p2m.len(), 1 << 18);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow<M: Machine>(
        &mut self,
        context: GrowContext<'_, M>,
        len: u64,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let p2m = context.p2m;
        self.check_map(p2m)?;
        if len > self.capacity {
            let capacity = self.capacity;
            return Err(WindowFailure::Capacity { pfns: len, capacity }.into());
        }
        let mut gib = p2m.len().div_ceil(PFNS_PER_L1);
        let end = len.div_ceil(PFNS_PER_L1);
        let absent = p2m.mfn(self.pfn(place::ABSENT_L1))?;
        let pte = Pte::new(absent, PteFlags::TABLE);
        while gib < end {
            batch.clear();
            while gib < end && batch.updates() < batch.updates_max() {
                self.push_l2(context, gib, pte, batch)?;
                gib += 1;
            }
            submit(context, batch).map_err(WindowFailure::Refused)?;
        }
        // SAFETY: I-9: every GiB below is linked; what is there are absent words, shared or in the
        // tail of a page.
        unsafe { p2m.list.raise(len) };
        if let Some(toolstack) = context.toolstack {
            toolstack.raise_max_pfn(p2m);
        }
        Ok(())
    }

    /// Gives the words of `pfns` memory of their own, so that the pfns can be given something
    /// without a further frame or hypercall. Words that have it already are left alone; what any
    /// pfn stands for does not change. If a frame list is published,
    /// [`refresh`](crate::FrameList::refresh) it before the entries change.
    ///
    /// # Errors
    /// [`WindowError`]: GiB before the refused one, and the first pages in it, may be reserved;
    /// every frame that is not in use is back in `source`.
    ///
    /// # Hypercalls
    /// For a GiB that has no table of its own: one `update_va_mapping` and one `mmu_update`. For P
    /// pages in a GiB that has one: ceil(P / B) multicalls of `mmu_update` and a flush.
    /// One more, a flush, after an operation whose undo was refused.
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Mfn, Pfn};
    /// # use p2m::{Pfns, Window};
    /// # use pv_tests::window::{CAPACITY, Machine, Pool, context};
    /// let machine = Machine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, rest) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// let (mut free, around) = (Pool::new(rest), context(&machine, &p2m));
    /// window.grow(around, 1 << 18, &mut batch)?;
    /// // Room in the list is not memory for its words: that is reserved where it is needed.
    /// let new = Pfns::new(Pfn::new(0x2_0000), 512);
    /// assert!(unsafe { p2m.populate(new.start, Mfn::new(0x777)) }.is_err());
    /// window.reserve(around, new, &mut free, &mut batch)?;
    /// unsafe { p2m.populate(new.start, Mfn::new(0x777)) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve<M: Machine>(
        &mut self,
        context: GrowContext<'_, M>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        self.check_range(context, pfns)?;
        self.settle(context, batch)?;
        let reserved = self.reserve_leaves(context, pfns, source, batch);
        self.note(reserved)
    }

    fn reserve_leaves<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let leaves = pfns.start.raw() / LEAF_WORDS..pfns.end().div_ceil(LEAF_WORDS);
        for (gib, range) in by_gib(leaves) {
            self.convert(context, (gib, range, Target::Own), source, batch)?;
        }
        Ok(())
    }

    /// Makes up for the flush that Xen refused with an undo: pages that are mapped already would
    /// otherwise pass for pages that every vCPU sees.
    fn settle<M: Machine>(
        &mut self,
        context: GrowContext<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowFailure> {
        if self.owes_flush {
            batch.clear();
            batch.op(MmuExtOp::tlb_flush_all())?;
            submit(context, batch).map_err(WindowFailure::Refused)?;
            self.owes_flush = false;
        }
        Ok(())
    }

    /// Notes what an operation leaves.
    fn note(&mut self, done: Result<(), WindowError>) -> Result<(), WindowError> {
        self.owes_flush |= done.is_err_and(|error| error.undo.is_err());
        done
    }

    /// Marks `pfns`, which have no memory, as identity frames. Whole pages and whole GiB of them
    /// share their words' memory.
    ///
    /// # Errors
    /// [`WindowError`], `Occupied` among others if one of the pfns stands for something; those
    /// before it may be marked.
    ///
    /// # Hypercalls
    /// For a whole GiB one `mmu_update`; otherwise as for [`reserve`](Self::reserve).
    ///
    /// # Safety
    /// As for [`P2m::set_identity`].
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Mfn, Pfn};
    /// # use p2m::{Pfns, Window};
    /// # use pv_tests::window::{CAPACITY, Machine, Pool, context};
    /// let machine = Machine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, rest) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// let (mut free, around) = (Pool::new(rest), context(&machine, &p2m));
    /// window.grow(around, 1 << 20, &mut batch)?;
    /// let hole = Pfns::new(Pfn::new(0xc_0000), 0x4_0000); // the GiB below 4 GiB
    /// unsafe { window.reserve_identity(around, hole, &mut free, &mut batch) }?;
    /// assert_eq!(p2m.machine_frame(Pfn::new(0xf_ee00)), Ok(Mfn::new(0xf_ee00)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn reserve_identity<M: Machine>(
        &mut self,
        context: GrowContext<'_, M>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        self.check_range(context, pfns)?;
        self.settle(context, batch)?;
        // SAFETY: the caller's promise is handed on.
        let reserved = unsafe { self.reserve_identity_leaves(context, pfns, source, batch) };
        self.note(reserved)
    }

    /// # Safety
    /// As for [`reserve_identity`](Self::reserve_identity).
    unsafe fn reserve_identity_leaves<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let first = pfns.start.raw().next_multiple_of(LEAF_WORDS).min(pfns.end());
        let last = (pfns.end() / LEAF_WORDS * LEAF_WORDS).max(first);
        for (gib, range) in by_gib(first / LEAF_WORDS..last / LEAF_WORDS) {
            let whole = range.end - range.start == TABLE_ENTRIES;
            let l1 = self.l1((context.machine, context.p2m), gib)?;
            if whole && l1 == L1::Shared(Hole::Absent) {
                let identity = context.p2m.mfn(self.pfn(place::IDENTITY_L1))?;
                self.link(context, gib, identity, batch)?;
            } else {
                self.convert(context, (gib, range, Target::Identity), source, batch)?;
            }
        }
        for edge in [pfns.start.raw()..first, last..pfns.end()] {
            let edge = Pfns::new(Pfn::new(edge.start), edge.end.saturating_sub(edge.start));
            if edge.count > 0 {
                self.reserve_leaves(context, edge, source, batch)?;
                // SAFETY: the caller vouches for the pfns.
                unsafe { context.p2m.set_identity(edge) }?;
            }
        }
        Ok(())
    }

    /// The map has to be that of this window: its list grows where the window's tables lead (I-8).
    fn check_map(&self, p2m: &P2m<'_>) -> Result<(), WindowFailure> {
        if p2m.list.addr() == self.words && p2m.capacity() == self.capacity {
            Ok(())
        } else {
            Err(WindowFailure::OtherMap)
        }
    }

    fn check_range<M>(&self, context: GrowContext<'_, M>, pfns: Pfns) -> Result<(), WindowError> {
        self.check_map(context.p2m)?;
        let len = context.p2m.len();
        if pfns.end() > len {
            return Err(WindowFailure::Capacity { pfns: pfns.end(), capacity: len }.into());
        }
        Ok(())
    }

    /// Turns leaves of holes, `range` within the GiB, into what `target` says.
    fn convert<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        (gib, range, target): (u64, Range<u64>, Target),
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        match self.l1((context.machine, context.p2m), gib)? {
            L1::Own(table) => self.relink(context, (table, gib, range, target), source, batch),
            // Nothing to do for identity pages that are to become identity pages.
            L1::Shared(Hole::Identity) if target == Target::Identity => Ok(()),
            L1::Shared(hole) => {
                let table = source.take().ok_or(WindowFailure::OutOfFrames)?;
                self.split(context, (table, gib, hole), (range, target), (source, batch))
            }
            L1::Missing => {
                let pfns = gib * PFNS_PER_L1;
                Err(WindowFailure::Capacity { pfns, capacity: context.p2m.len() }.into())
            }
        }
    }

    /// Changes leaves of a live table.
    fn relink<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        (table, gib, range, target): (Pfn, u64, Range<u64>, Target),
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let chunk = LEAVES_MAX.min(batch.updates_max()).max(1);
        let mut at = range.start;
        while at < range.end {
            let mut taken = [const { None }; LEAVES_MAX];
            batch.clear();
            let mut plan = || -> Result<(), WindowFailure> {
                while at < range.end && batch.updates() < chunk {
                    let free = &mut taken[batch.updates()];
                    self.push_leaf(context, (table, at, target), (source, free), batch)?;
                    if target == Target::Identity {
                        self.mark_own(context, (table, gib, at))?;
                    }
                    at += 1;
                }
                Ok(())
            };
            let planned = plan().map_err(WindowError::from);
            if let Err(error) = planned.and_then(|()| change(context, batch)) {
                for leaf in taken.into_iter().flatten() {
                    match error.undo {
                        Ok(()) => source.give(leaf),
                        Err(_) => source.give_uncertain(leaf.into()),
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Adds the change of one leaf of a live table, if it is a hole that has to change.
    fn push_leaf<M: Machine, S: FrameSource>(
        &self,
        context: GrowContext<'_, M>,
        (table, at, target): (Pfn, u64, Target),
        (source, free): (&mut S, &mut Option<Frame>),
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowFailure> {
        let old = read(context.machine, table, index(at))?;
        let new = match (self.hole(context.p2m, old)?, target) {
            (None, _) | (Some(Hole::Identity), Target::Identity) => return Ok(()),
            (Some(Hole::Absent), Target::Identity) => self.hole_pte(context, Hole::Identity)?,
            (Some(hole), Target::Own) => {
                let (leaf, pte) = own_leaf(context, hole, source)?;
                *free = Some(leaf);
                pte
            }
        };
        let slot = Slot { table: context.p2m.mfn(table)?, index: index(at) };
        Ok(batch.update(MmuUpdate::set(slot, new), old.raw())?)
    }

    /// Marks the words of a leaf that has memory of its own as identity.
    fn mark_own<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        (table, gib, at): (Pfn, u64, u64),
    ) -> Result<(), WindowFailure> {
        let pte = read(context.machine, table, index(at))?;
        if self.hole(context.p2m, pte)?.is_none() {
            let first = Pfn::new((gib * TABLE_ENTRIES + at) * LEAF_WORDS);
            // SAFETY: only `reserve_identity` comes here, whose caller vouches for the pfns.
            unsafe { context.p2m.set_identity(Pfns::new(first, LEAF_WORDS)) }?;
        }
        Ok(())
    }

    /// The entry that leads to the shared page of a hole.
    pub(super) fn hole_pte<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        hole: Hole,
    ) -> Result<Pte, WindowFailure> {
        let page = match hole {
            Hole::Absent => place::ABSENT_LEAF,
            Hole::Identity => place::IDENTITY_LEAF,
        };
        let flags = context.machine.offered(PteFlags::KERNEL_RO);
        Ok(Pte::new(context.p2m.mfn(self.pfn(page))?, flags))
    }

    /// Links a table for a GiB, by one entry: if Xen refuses it, nothing has changed. It flushes
    /// every TLB itself when an entry above L1 changes.
    pub(super) fn link<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        gib: u64,
        table: Mfn,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowFailure> {
        batch.clear();
        self.push_l2(context, gib, Pte::new(table, PteFlags::TABLE), batch)?;
        submit(context, batch).map_err(WindowFailure::Refused)
    }

    /// Adds the change of a GiB's L2 entry.
    fn push_l2<M: Machine>(
        &self,
        context: GrowContext<'_, M>,
        gib: u64,
        pte: Pte,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowFailure> {
        let (table, at) = self.l2_entry(gib);
        let old = read(context.machine, table, at)?;
        let slot = Slot { table: context.p2m.mfn(table)?, index: at };
        Ok(batch.update(MmuUpdate::set(slot, pte), old.raw())?)
    }
}

/// Changes entries that a TLB may hold, at every vCPU; or changes them back.
fn change<M: Machine>(
    context: GrowContext<'_, M>,
    batch: &mut Batch<'_>,
) -> Result<(), WindowError> {
    if batch.updates() == 0 {
        return Ok(());
    }
    batch.op(MmuExtOp::tlb_flush_all()).map_err(WindowFailure::from)?;
    submit(context, batch).map_err(|error| {
        batch.invert();
        // Some vCPU may have used an entry meanwhile.
        let undo = match batch.op(MmuExtOp::tlb_flush_all()) {
            Ok(()) => submit(context, batch).map_err(WindowFailure::Refused),
            Err(full) => Err(full.into()),
        };
        WindowError { failure: WindowFailure::Refused(error), undo }
    })
}

/// Sends a change of the window's entries, with the generation odd meanwhile.
fn submit<M: Machine>(
    context: GrowContext<'_, M>,
    batch: &mut Batch<'_>,
) -> Result<(), hypercall::BatchError> {
    let _changing = context.toolstack.map(|toolstack| toolstack.changing());
    // SAFETY: the entries are the window's (I-9), and so are the pages they lead to; readers find
    // the same in either.
    unsafe { batch.submit(context.machine) }
}

/// Splits leaves into the parts that lie in one GiB: the GiB, and the leaves in it.
fn by_gib(leaves: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let mut start = leaves.start;
    core::iter::from_fn(move || {
        if start >= leaves.end {
            return None;
        }
        let gib = start / TABLE_ENTRIES;
        let end = leaves.end.min((gib + 1) * TABLE_ENTRIES);
        let range = start % TABLE_ENTRIES..end - gib * TABLE_ENTRIES;
        start = end;
        Some((gib, range))
    })
}
