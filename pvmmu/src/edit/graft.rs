//! Tables that plain stores fill first, and that Xen validates when they are linked into a live
//! tree.

use hypercall::{Frame, FrameSource, GuestVa, Level, Machine, MmuUpdate, Pte, PteFlags, Uncertain};
use x86_64::structures::paging::PageTableIndex;

use super::Edit;
use super::map::mirror;
use super::table::link_refused;
use crate::access::Access;
use crate::doubt::Doubt;
use crate::entries::EMPTY;
use crate::leaf::lose;
use crate::map_error::MapError;
use crate::obstacles::{Obstacles, Suspect};
use crate::pages::Run;
use crate::pool::TablePool;
use crate::room::Room;
use crate::store::{clear, fill_run, take_table};
use crate::teardown::empty;
use crate::tools::Tools;

/// New tables, at most one for each of levels 1 to 3, lowest first.
type Chain = [Option<Frame>; 3];

/// Their levels.
const LEVELS: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// Why a chain was not linked.
struct NotLinked {
    error: MapError,
    /// Whether all is as it was.
    is_undone: bool,
}

impl NotLinked {
    const fn undone(error: MapError) -> Self {
        Self { error, is_undone: true }
    }

    const fn in_doubt(error: MapError) -> Self {
        Self { error, is_undone: false }
    }
}

/// Why the direct mapping of only the first tables was changed.
struct SetFewer {
    done: usize,
    error: MapError,
}

/// Returns the error to report when an undo was refused with `error`.
const fn not_undone(error: MapError) -> MapError {
    match error {
        MapError::RefusedCall(refused) => MapError::NotUndone { left: 1, error: refused.error },
        error => error,
    }
}

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Makes the missing tables below the absent entry of `level`, fills the L1 table with `run`,
    /// and links the chain. On failure nothing has changed.
    ///
    /// # Hypercalls
    /// One `mmu_update` of 2 to 5 elements, or one more for each element that does not fit the
    /// batch. As many again after a refusal.
    pub(super) fn graft(
        &mut self,
        level: Level,
        run: Run,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        self.graft_from(Level::L1, level, run, flags)
    }

    /// Does the same, but only with tables of `lowest` and higher levels.
    pub(super) fn graft_from(
        &mut self,
        lowest: Level,
        level: Level,
        run: Run,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        Room::check(&self.tools.batch)?;
        self.submit()?;
        let mut chain = Chain::default();
        let built = self.build(&mut chain, lowest, level, run, flags);
        let linked = match built {
            Ok(top) => self.link_chain(&chain, level, run.va, top),
            Err(error) => Err(NotLinked::undone(error)),
        };
        match linked {
            Ok(()) => {
                // INVARIANT: I-4: the tokens have gone into the entries.
                for (table, level) in chain.iter().zip(LEVELS) {
                    if let Some(table) = table {
                        self.path.set(level, Some(table.pfn()));
                    }
                }
                self.done += u64::from(run.count);
                Ok(())
            }
            Err(NotLinked { error, is_undone }) => {
                if is_undone {
                    self.take_apart(chain);
                } else {
                    self.lose_chain(chain, run.va);
                }
                Err(error)
            }
        }
    }

    /// Fills the tables and chains them. Returns the entry for the topmost.
    fn build(
        &mut self,
        chain: &mut Chain,
        lowest: Level,
        level: Level,
        run: Run,
        flags: PteFlags,
    ) -> Result<Pte, MapError> {
        let Tools { guest, frames, .. } = &mut *self.tools;
        let mut top = Pte::ABSENT;
        let below = chain.iter_mut().zip(LEVELS);
        for (place, at) in below.take(level as usize - 1).skip(lowest as usize - 1) {
            // Only a cleared frame goes into the chain: it may hold the entries of its former use.
            let table = place.insert(take_table(guest, frames, clear)?);
            if at == Level::L1 {
                for part in run.parts(super::PART) {
                    fill_run(guest, table.pfn(), part, flags, frames)?;
                }
            } else if top.is_present() {
                // SAFETY: the token says that nobody else uses the frame (I-1).
                unsafe { guest.machine().write_entry(table.pfn(), at.index_of(run.va), top) }?;
            }
            top = Pte::new(guest.mfn(table.pfn())?, PteFlags::TABLE);
        }
        Ok(top)
    }

    /// Makes the tables read-only and links the topmost, at once if the batch has room for all of
    /// it.
    fn link_chain(
        &mut self,
        chain: &Chain,
        level: Level,
        va: GuestVa,
        top: Pte,
    ) -> Result<(), NotLinked> {
        let links = if level == Level::L4 && self.roots.user.is_some() { 2 } else { 1 };
        let elements = chain.iter().flatten().count() + links;
        let ahead = elements.saturating_sub(self.tools.batch.updates_max());
        self.set_first(chain, Access::ReadOnly, ahead).map_err(|SetFewer { done, error }| {
            match self.set_first(chain, Access::Writable, done) {
                Ok(()) => NotLinked::undone(error),
                Err(again) => NotLinked::in_doubt(not_undone(again.error)),
            }
        })?;
        self.link_rest(chain, level, va, top, ahead).map_err(|refused| {
            match self.set_first(chain, Access::Writable, ahead) {
                Ok(()) => refused,
                Err(again) => NotLinked::in_doubt(not_undone(again.error)),
            }
        })
    }

    /// Changes the direct mapping of the first `count` tables, one by one.
    fn set_first(&mut self, chain: &Chain, access: Access, count: usize) -> Result<(), SetFewer> {
        let guest = self.tools.guest;
        for (done, table) in chain.iter().flatten().take(count).enumerate() {
            let batch = &mut self.tools.batch;
            batch.clear();
            let planned = self.direct_map.entry(&guest, table.pfn());
            let planned = planned.map_err(MapError::from).and_then(|(direct, pte)| {
                Ok(batch.update(MmuUpdate::set(direct, access.apply(pte)), pte.raw())?)
            });
            planned.map_err(|error| SetFewer { done, error })?;
            // SAFETY: the tables are new (I-1), and linked nowhere.
            let changed = unsafe { batch.submit(guest.machine()) };
            changed.map_err(|error| SetFewer { done, error: MapError::RefusedCall(error) })?;
        }
        Ok(())
    }

    /// Makes the tables behind the first `ahead` read-only and links the topmost.
    fn link_rest(
        &mut self,
        chain: &Chain,
        level: Level,
        va: GuestVa,
        top: Pte,
        ahead: usize,
    ) -> Result<(), NotLinked> {
        self.plan_link(chain, level, va, top, ahead).map_err(NotLinked::undone)?;
        let (guest, roots) = (self.tools.guest, self.roots);
        let batch = &mut self.tools.batch;
        // SAFETY: the tables are new (I-1), and the absent entry belongs to the address space
        // (I-4).
        let Err(error) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(()) };
        // Before the undo makes the tables' own direct mappings writable.
        let suspects = chain.iter().zip(LEVELS).filter_map(|(table, level)| {
            let base = va.raw() >> (level.shift() + 9) << (level.shift() + 9);
            Some(Suspect { level, pfn: table.as_ref()?.pfn(), base })
        });
        let found = Obstacles::of_tables(&guest, roots, suspects);
        batch.invert();
        match self.undo(Doubt::TABLES) {
            Ok(()) => Err(NotLinked::undone(link_refused(va, found, error))),
            Err(error) => Err(NotLinked::in_doubt(error)),
        }
    }

    fn plan_link(
        &mut self,
        chain: &Chain,
        level: Level,
        va: GuestVa,
        top: Pte,
        ahead: usize,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let (slot, absent) = self.path.entry(&guest, level, va)?;
        let batch = &mut self.tools.batch;
        batch.clear();
        for table in chain.iter().flatten().skip(ahead) {
            let (direct, pte) = self.direct_map.entry(&guest, table.pfn())?;
            batch.update(MmuUpdate::set(direct, Access::ReadOnly.apply(pte)), pte.raw())?;
        }
        batch.update(MmuUpdate::set(slot, top), absent.raw())?;
        if let (Level::L4, Some(user)) = (level, self.roots.user) {
            let (slot, copy) = mirror(guest.mfn(user)?, slot, top.mfn());
            batch.update(MmuUpdate::set(slot, copy), absent.raw())?;
        }
        Ok(())
    }

    /// After a refused undo some of the tables may still be read-only, or linked. Those that the
    /// tree holds are its own now. The others, and what they map, become uncertain.
    #[cold]
    fn lose_chain(&mut self, chain: Chain, va: GuestVa) {
        Doubt::TABLES.note(self.doubt);
        let guest = self.tools.guest;
        self.tools.batch.clear();
        self.path.forget();
        // What cannot be read is not found.
        let _ = self.path.seek(&guest, va);
        let is_held = chain.iter().zip(LEVELS).any(|(table, level)| {
            table.as_ref().is_some_and(|table| self.path.table(level) == Some(table.pfn()))
        });
        if is_held {
            return;
        }
        if let Some(table) = &chain[0] {
            let mut entries = EMPTY;
            let first = PageTableIndex::new(0);
            if guest.machine().read_entries(table.pfn(), first, &mut entries).is_ok() {
                let pages = entries.iter().filter(|pte| pte.is_present());
                pages.for_each(|pte| lose(&guest, *pte, &mut self.tools.frames));
            }
        }
        for table in chain.into_iter().flatten() {
            self.tools.frames.of_tables().give_uncertain(Uncertain::from(table));
        }
    }

    /// Gives back what was taken for a chain that is linked nowhere.
    fn take_apart(&mut self, chain: Chain) {
        let Tools { guest, batch, frames, .. } = &mut *self.tools;
        let mut pool = TablePool::none();
        batch.clear();
        for (table, level) in chain.into_iter().zip(LEVELS) {
            let Some(table) = table else { continue };
            // Upper tables have one entry, for the table that has just been given back: only pages
            // are released.
            if level == Level::L1
                && let Err(error) = empty(guest, level, table.pfn(), None, &mut pool, frames)
            {
                log::error!("pfn {} is in doubt, and what it maps: {error}", table.pfn());
                frames.of_tables().give_uncertain(Uncertain::from(table));
                continue;
            }
            frames.of_tables().give(table);
        }
    }
}
