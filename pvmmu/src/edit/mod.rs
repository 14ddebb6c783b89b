//! Changes a tree that Xen holds. Changes collect in a batch, which goes to Xen when it is full,
//! when something reads what it would change, and at the end.
//!
//! An [`Edit`] is a section with pending changes. It borrows the address space exclusively, so
//! nothing else can read that meanwhile. What the section itself reads never depends on a pending
//! change: pages come in ascending order, and a step back submits what is pending first.
//!
//! Every batch is a unit. If Xen refuses one of its changes, those before it are undone with their
//! old values. Earlier batches stay, and the error says for how many pages.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half, which belongs to the address space (I-4)"
)]

mod graft;
mod map;
mod pinned;
mod remap;
mod rewrite;
mod seen;
mod settle;
mod share;
mod table;

use hypercall::{
    BatchError, CALLS_MAX, DomId, ENTRIES, Element, FrameSource, GuestVa, Level, Machine,
    MmuUpdate, Pfn, Pte,
};
use x86_64::structures::paging::PageTableIndex;

use crate::doubt::Doubt;
use crate::flush::Flush;
use crate::frames::SpaceFrames;
use crate::map_error::{MapError, RangeError};
use crate::marks::FOREIGN;
use crate::pages::page_number;
use crate::path::Path;
use crate::pgd::{Holds, Pgd, Pinned, Roots};
use crate::put_right::put_right;
use crate::room::Room;
use crate::tools::{Presence, Tools};
use p2m::{DirectMap, Guest, Walk, walk};

use settle::{Emptied, Settled, lose, settle, take_back};

/// Entries that are read at a time.
const PART: u16 = 64;

/// A section with pending changes of an address space: see [`Pgd::edit`].
///
/// An operation that fails before anything of it is pending leaves all as it was, and the section
/// can go on. One that fails behind its first pages ends the section, and so does a refusal.
/// Nothing that was pending happens then, not even earlier operations. Every further operation
/// returns the same error, and so does [`Pgd::edit`], even if the section does not. So what is
/// [`done`](Self::done) never includes anything that was dropped.
#[must_use = "what is pending is lost unless the section is finished"]
pub struct Edit<'e, 'a, 't, M, F> {
    tools: &'e mut Tools<'a, 't, M, F>,
    roots: Roots,
    /// What a refused undo left of the address space.
    doubt: &'e mut Option<Doubt>,
    path: Path,
    direct_map: DirectMap,
    /// The lowest page behind all that is pending.
    next: u64,
    /// The flush for what is pending.
    flush: Flush,
    /// Pages that are changed.
    done: u64,
    /// Pending updates that change only flags, which need not be settled.
    flags_only: usize,
    /// Whether a link to a table of the pool is pending.
    is_linking: bool,
    /// Room that the batch had when the present operation began, or since all was sent.
    room: usize,
    /// Why the section has ended: something pending was dropped.
    ended: Option<MapError>,
}

impl Pgd<Pinned> {
    /// Makes the changes of `section` with as few traps as the batch allows. The section reads
    /// through its [`Edit`] what it has written:
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(page);
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.unmap(page)?;
    ///     let gone = edit.walk(page.start)?;
    ///     assert!(gone.leaf().is_none_or(|(_, pte)| !pte.is_present()));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Meanwhile nothing else reads the address space, and no other section uses it or the tools:
    ///
    /// ```compile_fail,E0502
    /// # use pv_tests::examples::*;
    /// # let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// # let (mut pgd, mut tools) = TestGuest::with_pinned(page);
    /// let guest = tools.guest;
    /// pgd.edit(&mut tools, |_| pgd.translate(&guest, page.start).map(drop))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Two address spaces, each with tools of its own, can be edited together.
    ///
    /// # Errors
    /// What the section or the submit at its end failed with, or what ended the section earlier
    /// (see [`Edit`]). What was pending then has not happened. [`MapError::BatchTooSmall`] before
    /// the section begins.
    ///
    /// # Hypercalls
    /// For n changed entries and a batch of B updates: ceil(n / B) multicalls of an `mmu_update`
    /// and the flush; and those that [`Edit`]'s methods name for whole tables.
    pub fn edit<'a, 't, M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'a, 't, M, F>,
        section: impl FnOnce(&mut Edit<'_, 'a, 't, M, F>) -> Result<(), MapError>,
    ) -> Result<(), RangeError> {
        Room::check_entries(&tools.batch)
            .map_err(|error| RangeError { done: 0, error: error.into() })?;
        if tools.pool.as_ref().is_some_and(|pool| !pool.is_empty()) {
            self.holds = Holds::Tables;
        }
        let mut edit = Edit::begin(self, tools);
        match section(&mut edit).and_then(|()| edit.submit()) {
            Ok(()) => Ok(()),
            Err(error) => {
                edit.abandon();
                Err(RangeError { done: edit.done, error })
            }
        }
    }
}

impl<'e, 'a, 't, M: Machine, F: FrameSource> Edit<'e, 'a, 't, M, F> {
    pub(crate) fn begin(pgd: &'e mut Pgd<Pinned>, tools: &'e mut Tools<'a, 't, M, F>) -> Self {
        tools.batch.clear();
        tools.begin(pgd);
        let (roots, doubt) = (pgd.roots(), &mut pgd.doubt);
        let (path, direct_map) = (Path::new(roots.kernel), DirectMap::default());
        let (next, flush, done, flags_only, is_linking) = (0, Flush::NONE, 0, 0, false);
        let (room, ended) = (tools.batch.room(), None);
        Self {
            tools,
            roots,
            doubt,
            path,
            direct_map,
            next,
            flush,
            done,
            flags_only,
            is_linking,
            room,
            ended,
        }
    }

    /// Does an operation as a unit: what it has pending when it fails does not happen.
    #[inline]
    fn whole(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        self.room = self.tools.batch.room();
        operation(self).map_err(|error| self.stopped(error))
    }

    /// Ends the section after a failed operation, if something of that is pending.
    #[cold]
    fn stopped(&mut self, error: MapError) -> MapError {
        if self.tools.batch.room() < self.room {
            self.end(error);
        }
        error
    }

    /// Drops what is pending: what failed with `error` and all before it.
    #[cold]
    fn end(&mut self, error: MapError) {
        self.ended.get_or_insert(error);
        self.abandon();
    }

    /// Repairs what a refused undo left, if anything, before the section reads what it would
    /// change. Nothing is pending then, because a refusal drops it. Fails if the section has ended.
    #[inline]
    fn put_right(&mut self) -> Result<(), MapError> {
        if let Some(error) = self.ended {
            return Err(error);
        }
        if self.doubt.is_some() {
            self.path.forget();
        }
        Ok(put_right(&self.tools.guest, self.roots, self.doubt)?)
    }

    /// Returns the table entries of `va`, with all that the section has written: see
    /// [`walk()`](p2m::walk()).
    ///
    /// # Errors
    /// [`MapError::Walk`], and as for [`submit`](Self::submit).
    ///
    /// # Hypercalls
    /// As for [`submit`](Self::submit).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.unmap(pages)?;
    ///     let (_, entry) = edit.walk(pages.start)?.leaf().expect("its table is left");
    ///     assert!(!entry.is_present());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk(&mut self, va: GuestVa) -> Result<Walk, MapError> {
        self.submit()?;
        Ok(walk(&self.tools.guest, self.roots.kernel, va)?)
    }

    /// Returns the number of pages changed by what has been submitted.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.unmap(Pages { count: 3, ..pages })?;
    ///     assert_eq!(edit.done(), 0); // pending
    ///     edit.submit()?;
    ///     assert_eq!(edit.done(), 3);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn done(&self) -> u64 {
        self.done
    }

    /// Returns the guest.
    pub(crate) const fn guest(&self) -> Guest<'a, M> {
        self.tools.guest
    }

    /// Returns the kernel root of the address space.
    pub(crate) const fn root(&self) -> Pfn {
        self.roots.kernel
    }

    /// Returns whether others may write its pages meanwhile.
    pub(crate) fn may_be_written(&self) -> bool {
        self.tools.presence == Presence::Steady
    }

    /// Returns the frames of the tools.
    pub(crate) const fn frames(&mut self) -> &mut SpaceFrames<'a, F> {
        &mut self.tools.frames
    }

    /// Clears an entry that maps a page in the table for `va`.
    pub(crate) fn clear_entry(
        &mut self,
        va: GuestVa,
        update: MmuUpdate,
        old: Pte,
    ) -> Result<(), MapError> {
        self.push_page(update, old)?;
        self.flush = Flush::ALL;
        self.passed(va, ENTRIES);
        Ok(())
    }

    /// Unlinks the empty table behind `link`, which is pinned by itself. It goes back to the pool.
    pub(crate) fn unlink(
        &mut self,
        level: Level,
        table: Pfn,
        index: PageTableIndex,
        link: Pte,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let slot = guest.slot(table, index)?;
        self.make_room_for_two()?;
        if let (Level::L4, Some(user)) = (level, self.roots.user) {
            let copy = guest.machine().read_entry(user, index)?;
            self.push(MmuUpdate::set(guest.slot(user, index)?, Pte::ABSENT), copy.raw())?;
        }
        self.push(MmuUpdate::set(slot, Pte::ABSENT), link.raw())
    }

    /// Makes sure that nothing pending concerns the page at `va` or one behind it, nor the tables
    /// on its path. Pages that are only read count, too: the path has then left the tables that are
    /// linked only by pending changes.
    fn ascend_to(&mut self, va: GuestVa) -> Result<(), MapError> {
        self.put_right()?;
        let page = page_number(va);
        if page < self.next {
            self.submit()?;
        }
        self.next = page;
        Ok(())
    }

    /// Records that what is pending reaches up to `count` pages behind `va`.
    fn passed(&mut self, va: GuestVa, count: u16) {
        self.next = page_number(va) + u64::from(count);
    }

    /// Makes room for two updates that belong together.
    fn make_room_for_two(&mut self) -> Result<(), MapError> {
        Room::check(&self.tools.batch)?;
        if self.tools.batch.room() < 2 { self.submit() } else { Ok(()) }
    }

    /// Adds an update to what is pending.
    fn push(&mut self, update: MmuUpdate, old: u64) -> Result<(), MapError> {
        if self.tools.batch.update(update, old).is_err() {
            self.submit()?;
            self.tools.batch.update(update, old)?;
        }
        Ok(())
    }

    /// Adds an update of the entry of a mapped page, in the name of the domain whose frame that is.
    fn push_page(&mut self, update: MmuUpdate, old: Pte) -> Result<(), MapError> {
        if old.flags().contains(FOREIGN) {
            let domain = self.tools.frames.domain_of(old.mfn());
            return self.push_for(update, old.raw(), domain);
        }
        self.push(update, old.raw())
    }

    /// Adds an update for another domain's frame to what is pending.
    fn push_for(&mut self, update: MmuUpdate, old: u64, owner: DomId) -> Result<(), MapError> {
        // It is a request of its own, which Xen does even if it refuses the one before it. So the
        // table that it changes was linked in an earlier submit. Room for one request for own
        // frames and one for the flush must be left.
        let is_later = self.is_linking || self.tools.batch.requests() + 3 > CALLS_MAX;
        if is_later || self.tools.batch.update_for(update, old, owner).is_err() {
            self.submit()?;
            self.tools.batch.update_for(update, old, owner)?;
        }
        Ok(())
    }

    /// Sends what is pending, with its flush, and settles what it changed.
    ///
    /// # Errors
    /// [`MapError::Refused`]: nothing of it is in effect, and the section has ended.
    /// [`MapError::NotUndone`].
    ///
    /// # Hypercalls
    /// None if nothing is pending; otherwise one, and one more after a refusal.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.edit(&mut tools, |edit| {
    ///     edit.protect(pages, PteFlags::USER_RW - PteFlags::WRITABLE)?;
    ///     edit.submit()?; // from here on nothing can be written there, on any vCPU
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit(&mut self) -> Result<(), MapError> {
        self.next = 0;
        let flush = core::mem::replace(&mut self.flush, Flush::NONE);
        let flags_only = core::mem::take(&mut self.flags_only);
        self.is_linking = false;
        self.put_right()?;
        let Tools { guest, batch, pool, frames, reach, .. } = &mut *self.tools;
        if batch.is_empty() {
            return Ok(());
        }
        let updates = batch.updates();
        self.room = batch.updates_max();
        if let Err(full) = flush.push(batch, *reach) {
            self.end(full.into());
            return Err(full.into());
        }
        // SAFETY: only entries of the user half change. They belong to the address space (I-4),
        // which is borrowed exclusively.
        match unsafe { batch.submit(guest.machine()) } {
            Ok(()) => {
                if flags_only == updates {
                    self.done += updates as u64;
                    return Ok(());
                }
                let mut settled = Settled { guest, pool: pool.as_deref_mut(), frames, pages: 0 };
                settle(batch.sent(), &mut settled);
                self.done += settled.pages;
                Ok(())
            }
            Err(error) => {
                let error = self.refused(error);
                self.ended = Some(error);
                Err(error)
            }
        }
    }

    /// Undoes what took effect of a refused batch, and gives back what it was to map.
    fn refused(&mut self, error: BatchError) -> MapError {
        let path = self.path;
        self.path.forget();
        // Should whoever gets a frame panic: nothing more is done, and what is done is flushed.
        self.ended = Some(MapError::RefusedCall(error));
        *self.doubt = Some(Doubt::FLUSH);
        let Tools { guest, batch, pool, frames, .. } = &mut *self.tools;
        let update = batch.refused_update();
        let mut settled = Settled { guest, pool: pool.as_deref_mut(), frames, pages: 0 };
        let batch = Emptied(batch);
        take_back(batch.0.unapplied(), &mut settled);
        core::mem::forget(batch);
        *self.doubt = None;
        self.tools.batch.invert();
        let undone = self.ask_to_undo(Doubt::FLUSH);
        let Tools { guest, batch, pool, frames, .. } = &mut *self.tools;
        let mut settled = Settled { guest, pool: pool.as_deref_mut(), frames, pages: 0 };
        let batch = Emptied(batch);
        if undone.is_ok() {
            take_back(swapped(batch.0.sent()), &mut settled);
        } else {
            // Those that are undone have been in effect, and the others still are. Either way a TLB
            // may know what has no entry now.
            lose(swapped(batch.0.in_effect()), &mut settled);
            lose(batch.0.unapplied(), &mut settled);
        }
        drop(batch);
        match undone {
            Err(error) => error,
            Ok(()) => {
                match update.and_then(|update| table::va_of(guest, self.roots, &path, update)) {
                    Some(va) => MapError::Refused { va, error },
                    None => MapError::RefusedCall(error),
                }
            }
        }
    }

    /// Drops what is pending: gives back what it was to map.
    pub(crate) fn abandon(&mut self) {
        self.path.forget();
        self.next = 0;
        self.flags_only = 0;
        self.is_linking = false;
        self.flush = Flush::NONE;
        let Tools { guest, batch, pool, frames, .. } = &mut *self.tools;
        let mut settled = Settled { guest, pool: pool.as_deref_mut(), frames, pages: 0 };
        take_back(Emptied(batch).0.unapplied(), &mut settled);
    }
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Submits an inverted batch, with a flush of all that a TLB may know from what it undoes. If
    /// Xen refuses that, notes `left`.
    fn ask_to_undo(&mut self, left: Doubt) -> Result<(), MapError> {
        let Tools { guest, batch, reach, .. } = &mut *self.tools;
        if batch.is_empty() {
            return Ok(());
        }
        let updates = batch.updates();
        Flush::ALL.push(batch, *reach)?;
        // SAFETY: every entry gets back the value that it had.
        let Err(refused) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(()) };
        left.note(self.doubt);
        let done = batch.applied().filter(|done| matches!(done, Element::Update(_))).count();
        let left = u32::try_from(updates - done.min(updates)).unwrap_or(u32::MAX);
        Err(MapError::NotUndone { left, error: refused.error })
    }

    /// Does the same for a batch in which nothing comes in or goes out. Empties it: a batch's
    /// remains count as pages to give back.
    fn undo(&mut self, left: Doubt) -> Result<(), MapError> {
        let undone = self.ask_to_undo(left);
        self.tools.batch.clear();
        undone
    }
}

/// Returns the pairs of a batch from those of the inverted one.
fn swapped(
    pairs: impl Iterator<Item = (MmuUpdate, u64)>,
) -> impl Iterator<Item = (MmuUpdate, u64)> {
    pairs.map(|(update, old)| (MmuUpdate::from_raw(update.target(), old), update.value()))
}

impl<M, F> core::fmt::Debug for Edit<'_, '_, '_, M, F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { roots, next, flush, done, .. } = self;
        f.debug_struct("Edit")
            .field("roots", roots)
            .field("next", next)
            .field("flush", flush)
            .field("done", done)
            .finish_non_exhaustive()
    }
}
