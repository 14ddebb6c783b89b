//! Grows the map, and gives memory to the words of holes.
//!
//! The order: fill new tables and pages while nobody sees them, protect the table, link it by one
//! entry. Only then raise the length, or change entries there. The generation is odd around each
//! link. Until a page is linked, readers find the hole's words in its place, which say the same.
#![expect(unsafe_code, reason = "changes mappings of the window, which belong to it (I-2, I-9)")]

use hypercall::{Batch, Frame, FrameSource, Machine, MmuUpdate, Pfn, Pte, PteFlags, Slot};

use super::change::{Change, Part, Target};
use super::error::WindowError;
use super::{Hole, L1, LEAVES_MAX, PFNS_PER_L1, TABLE_ENTRIES, Window, index, place};
use crate::error::ListError;
use crate::guest::Guest;
use crate::map::{P2m, Pfns};
use crate::runs::LEAF_WORDS;
use crate::toolstack::Toolstack;

impl Window {
    /// Grows the map to `len` pfns. The new ones are absent, and their words share memory:
    /// [`reserve`](Self::reserve) a pfn before filling it. A smaller `len` changes nothing. If the
    /// list is published, `toolstack` learns of each change and of the new `max_pfn`.
    ///
    /// # Errors
    /// [`WindowError`]; the length is as it was. GiB that were linked stay so, unseen, and the next
    /// attempt uses them.
    ///
    /// # Hypercalls
    /// For G new GiB and a batch of B updates: ceil(G / B) `mmu_update`; none within a GiB that the
    /// map has begun. One more, a flush, after an operation whose undo was refused.
    ///
    /// ```
    /// # use hypercall::BatchStorage;
    /// # use p2m::Window;
    /// # use pv_tests::window::{CAPACITY, WindowMachine};
    /// let machine = WindowMachine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, _) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// window.grow(&machine.guest(&machine, &p2m), None, 1 << 18, &mut batch)?; // room for 1 GiB
    /// assert_eq!(p2m.len(), 1 << 18);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        toolstack: Option<&Toolstack<'_>>,
        len: u64,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let (p2m, capacity) = (guest.p2m(), self.capacity);
        let mut change = Change::begin(self, guest, toolstack, batch)?;
        if len > capacity {
            return Err(ListError::Capacity { pfns: len, capacity }.into());
        }
        let mut gib = p2m.len().div_ceil(PFNS_PER_L1);
        let end = len.div_ceil(PFNS_PER_L1);
        let absent = guest.mfn(change.window.pfn(place::ABSENT_L1))?;
        let pte = Pte::new(absent, PteFlags::TABLE);
        // A batch without room is full at the first update.
        let room = change.batch.updates_max().max(1);
        while gib < end {
            let first = Pfn::new(gib * PFNS_PER_L1);
            change.batch.clear();
            while gib < end && change.batch.updates() < room {
                change.push_l2(gib, pte)?;
                gib += 1;
            }
            change.submit(first)?;
        }
        // SAFETY: I-9: every GiB below is linked, and has absent words there, shared or in the tail
        // of a page.
        unsafe { p2m.list.raise(len) };
        if let Some(toolstack) = toolstack {
            toolstack.raise_max_pfn(p2m);
        }
        Ok(())
    }

    /// Gives the words of `pfns` memory of their own. The pfns can then be filled without a further
    /// frame or hypercall. Words that have memory are left alone, and no entry changes. If a frame
    /// list is published, [`refresh`](crate::FrameList::refresh) it before entries change.
    ///
    /// # Errors
    /// [`WindowError`]. GiB before the refused one, and the first pages in it, may be reserved.
    /// Every frame that is not in use is back in `source`.
    ///
    /// # Hypercalls
    /// For a GiB without a table of its own: one `update_va_mapping` and one `mmu_update`. For P
    /// pages in a GiB with one: ceil(P / B) multicalls of `mmu_update` and a flush. One more, a
    /// flush, after an operation whose undo was refused.
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Mfn, Pfn};
    /// # use p2m::{Pfns, Window};
    /// # use pv_tests::window::{CAPACITY, WindowMachine, WindowPool};
    /// let machine = WindowMachine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, rest) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// let (mut free, guest) = (WindowPool::new(rest), machine.guest(&machine, &p2m));
    /// window.grow(&guest, None, 1 << 18, &mut batch)?;
    /// // Room in the list is not memory for its words: that is reserved where it is needed.
    /// let new = Pfns::new(Pfn::new(0x2_0000), 512);
    /// assert!(unsafe { p2m.populate(new.start, Mfn::new(0x777)) }.is_err());
    /// window.reserve(&guest, None, new, &mut free, &mut batch)?;
    /// unsafe { p2m.populate(new.start, Mfn::new(0x777)) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        toolstack: Option<&Toolstack<'_>>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let mut change = Change::begin(self, guest, toolstack, batch)?;
        check_range(guest.p2m(), pfns)?;
        let reserved = change.reserve(pfns, source);
        change.end(reserved)
    }

    /// Marks `pfns`, which are empty, as identity frames. Whole pages and whole GiB of them share
    /// the memory of their words.
    ///
    /// # Errors
    /// [`WindowError`], with [`P2mError::Occupied`](crate::P2mError::Occupied) if a pfn is not
    /// empty. Pfns before it may be marked.
    ///
    /// # Hypercalls
    /// One `mmu_update` for a whole GiB; otherwise as for [`reserve`](Self::reserve).
    ///
    /// # Safety
    /// As for [`P2m::set_identity`].
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Mfn, Pfn};
    /// # use p2m::{Pfns, Window};
    /// # use pv_tests::window::{CAPACITY, WindowMachine, WindowPool};
    /// let machine = WindowMachine::new(1); // 16 MiB
    /// # let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// # let (frames, rest) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// # let mut storage = BatchStorage::<512, 4>::new();
    /// # let mut batch = storage.batch();
    /// let (p2m, mut window) = machine.open(&machine, frames, &mut batch)?;
    /// let (mut free, guest) = (WindowPool::new(rest), machine.guest(&machine, &p2m));
    /// window.grow(&guest, None, 1 << 20, &mut batch)?;
    /// let hole = Pfns::new(Pfn::new(0xc_0000), 0x4_0000); // the GiB below 4 GiB
    /// unsafe { window.reserve_identity(&guest, None, hole, &mut free, &mut batch) }?;
    /// assert_eq!(p2m.machine_frame(Pfn::new(0xf_ee00)), Ok(Mfn::new(0xf_ee00)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn reserve_identity<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        toolstack: Option<&Toolstack<'_>>,
        pfns: Pfns,
        source: &mut impl FrameSource,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let mut change = Change::begin(self, guest, toolstack, batch)?;
        check_range(guest.p2m(), pfns)?;
        // SAFETY: the caller's promise is passed on.
        let reserved = unsafe { change.reserve_identity(pfns, source) };
        change.end(reserved)
    }
}

/// Checks that the map has these pfns.
fn check_range(p2m: &P2m<'_>, pfns: Pfns) -> Result<(), ListError> {
    if pfns.end() > p2m.len() {
        return Err(ListError::Capacity { pfns: pfns.end(), capacity: p2m.len() });
    }
    Ok(())
}

impl<M: Machine> Change<'_, '_, '_, M> {
    /// See [`Window::reserve`].
    fn reserve(&mut self, pfns: Pfns, source: &mut impl FrameSource) -> Result<(), WindowError> {
        let leaves = pfns.start.raw() / LEAF_WORDS..pfns.end().div_ceil(LEAF_WORDS);
        for part in Part::of(leaves) {
            self.convert(&part, Target::Own, source)?;
        }
        Ok(())
    }

    /// See [`Window::reserve_identity`].
    ///
    /// # Safety
    /// As there.
    unsafe fn reserve_identity(
        &mut self,
        pfns: Pfns,
        source: &mut impl FrameSource,
    ) -> Result<(), WindowError> {
        let first = pfns.start.raw().next_multiple_of(LEAF_WORDS).min(pfns.end());
        let last = (pfns.end() / LEAF_WORDS * LEAF_WORDS).max(first);
        for part in Part::of(first / LEAF_WORDS..last / LEAF_WORDS) {
            let whole = part.leaves.end - part.leaves.start == TABLE_ENTRIES;
            let l1 = self.window.l1(&self.guest, part.gib)?;
            if whole && l1 == L1::Shared(Hole::Absent) {
                let identity = self.guest.mfn(self.window.pfn(place::IDENTITY_L1))?;
                self.link(part.gib, identity)?;
            } else {
                self.convert(&part, Target::Identity, source)?;
            }
        }
        for edge in [pfns.start.raw()..first, last..pfns.end()] {
            let edge = Pfns::new(Pfn::new(edge.start), edge.end.saturating_sub(edge.start));
            if edge.count > 0 {
                self.reserve(edge, source)?;
                // SAFETY: the caller vouches for the pfns.
                unsafe { self.guest.p2m().set_identity(edge) }?;
            }
        }
        Ok(())
    }

    /// Turns leaves of holes into what `target` says.
    fn convert(
        &mut self,
        part: &Part,
        target: Target,
        source: &mut impl FrameSource,
    ) -> Result<(), WindowError> {
        match self.window.l1(&self.guest, part.gib)? {
            L1::Own(table) => self.relink(table, part, target, source),
            // Identity pages stay identity pages.
            L1::Shared(Hole::Identity) if target == Target::Identity => Ok(()),
            L1::Shared(hole) => self.split(part, hole, target, source),
            L1::Missing => {
                let (pfns, capacity) = (part.gib * PFNS_PER_L1, self.guest.p2m().len());
                Err(ListError::Capacity { pfns, capacity }.into())
            }
        }
    }

    /// Changes leaves of a live table.
    fn relink(
        &mut self,
        table: Pfn,
        part: &Part,
        target: Target,
        source: &mut impl FrameSource,
    ) -> Result<(), WindowError> {
        let chunk = LEAVES_MAX.min(self.batch.updates_max()).max(1);
        let mut at = part.leaves.start;
        while at < part.leaves.end {
            let first = part.pfns(at).start;
            let mut taken = [const { None }; LEAVES_MAX];
            self.batch.clear();
            let mut plan = || -> Result<(), ListError> {
                while at < part.leaves.end && self.batch.updates() < chunk {
                    let (pfns, free) = (part.pfns(at), &mut taken[self.batch.updates()]);
                    self.push_leaf(table, pfns, target, source, free)?;
                    if target == Target::Identity {
                        self.mark_own(table, pfns)?;
                    }
                    at += 1;
                }
                Ok(())
            };
            let planned = plan().map_err(WindowError::from);
            if let Err(error) = planned.and_then(|()| self.submit_flushed(first)) {
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

    /// Adds the change of one leaf of a live table, if it is a hole that must change. Puts its page
    /// into `taken`.
    fn push_leaf(
        &mut self,
        table: Pfn,
        pfns: Pfns,
        target: Target,
        source: &mut impl FrameSource,
        taken: &mut Option<Frame>,
    ) -> Result<(), ListError> {
        let at = index(pfns.start.raw() / LEAF_WORDS);
        let old = self.guest.machine().read_entry(table, at)?;
        let new = match (self.window.hole(self.guest.p2m(), old)?, target) {
            (None, _) | (Some(Hole::Identity), Target::Identity) => return Ok(()),
            (Some(Hole::Absent), Target::Identity) => self.hole_pte(Hole::Identity)?,
            (Some(hole), Target::Own) => {
                let (leaf, pte) = self.own_leaf(pfns, hole, source)?;
                *taken = Some(leaf);
                pte
            }
        };
        let slot = Slot { table: self.guest.mfn(table)?, index: at };
        Ok(self.batch.update(MmuUpdate::set(slot, new), old.raw())?)
    }

    /// Marks the words of a leaf with memory of its own as identity.
    fn mark_own(&self, table: Pfn, pfns: Pfns) -> Result<(), ListError> {
        let at = index(pfns.start.raw() / LEAF_WORDS);
        let pte = self.guest.machine().read_entry(table, at)?;
        if self.window.hole(self.guest.p2m(), pte)?.is_none() {
            // SAFETY: only `reserve_identity` comes here, whose caller vouches for the pfns.
            unsafe { self.guest.p2m().set_identity(pfns) }?;
        }
        Ok(())
    }
}
