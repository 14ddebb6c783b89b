//! Builds the direct map in rounds, each filled by plain stores and linked at once.
#![expect(unsafe_code, reason = "fills and links tables in frames that the build owns (I-1, I-13)")]

use hypercall::{
    Batch, Frames, GuestVa, Level, Machine, Mfn, PAGE_SHIFT, Pfn, Pte, PteFlags, Uncertain,
};
use p2m::{Guest, P2mEntry, P2mError, Pfns, WalkError, walk};
use x86_64::structures::paging::PageTableIndex;

use crate::buffer::{TableBuffer, TableRound};
use crate::changes::{Change, entry, index, leads_to};
use crate::error::{EarlyError, RoundError};
use crate::memory::BootMemory;
use crate::plan::{Plan, mapped_runs};
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, NO_PFNS, chunk_pfns, overlap, run};
use crate::tables::{PlannedTable, RoundPlan, Steps};
use crate::uses::{RegionKind, mask_chunk, mask_rw};

/// The extent of the direct map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the machine has to be told before the next round"]
pub struct MapExtent {
    /// Its first address.
    pub start: GuestVa,
    /// The end of the pfns that are mapped, except holes and, before the last round, frames in use.
    pub end: u64,
}

/// A direct map under construction, and the owner of every frame that nobody uses yet.
///
/// # Invariants
/// I-13: frames of finished rounds are live tables, read-only in every mapping. All other free
/// frames are in no table, and writable as far as they are mapped.
#[derive(Debug)]
#[must_use = "the free frames are in here: finish it"]
pub struct Build<'m> {
    memory: &'m BootMemory<'m>,
    plan: Plan,
    done: usize,
    state: State,
}

/// What is known of the frames of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Those of finished rounds are tables, the others are not.
    Sound,
    /// The round behind the finished ones and its undo were refused: nobody knows which of its
    /// frames are tables.
    InDoubt,
}

impl<'m> Build<'m> {
    /// Begins a build, which owns every free frame.
    ///
    /// # Safety
    /// Nobody else uses or owns any frame that `memory` calls free, and no Rust object is in one
    /// (I-1). `plan` was made for this memory.
    ///
    /// ```
    /// # use hypercall::BatchStorage;
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// use early_pgt::{Build, Plan};
    ///
    /// let booting = Booting::new(Role::DomU, 1 << 14); // as its builder leaves it
    /// let (memory, p2m) = (booting.memory(), booting.p2m());
    /// let guest = booting.guest(&booting.model, &p2m);
    /// let mut storage = BatchStorage::<1024, 1>::new();
    /// // Nobody uses a frame that `memory` does not name.
    /// let mut build = unsafe { Build::begin(&memory, Plan::new(&memory)?) };
    /// while let Some(mapped) = build.round(&guest, &mut storage.batch())? {
    ///     booting.model.guest().set_direct_map(mapped.start, mapped.end); // the machine is told
    /// }
    /// let mut free = 0;
    /// let doubtful = build.finish(|frames| free += frames.count()); // a kernel keeps them
    /// assert!(free > 15_000 && doubtful.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const unsafe fn begin(memory: &'m BootMemory<'m>, plan: Plan) -> Self {
        Self { memory, plan, done: 0, state: State::Sound }
    }

    /// Makes the next round. Returns the new extent of the direct map, or `None` if it was
    /// complete.
    ///
    /// # Errors
    /// [`RoundError`]. The direct map is as before, and the round can be tried again. If the undo
    /// failed too ([`RoundError::undo`]), no further round is possible
    /// ([`EarlyError::RoundUnfinished`]), and [`finish`](Self::finish) returns the round's frames
    /// as uncertain.
    ///
    /// # Hypercalls
    /// One `mmu_update` if the batch has room for [`Plan::updates_max`]; otherwise one for each
    /// full batch. Each table of the round takes an element, and so does each entry that links
    /// one.
    ///
    /// ```
    /// # use hypercall::middleware::Counting;
    /// # use hypercall::BatchStorage;
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// # use early_pgt::{Build, Plan};
    /// let booting = Booting::new(Role::DomU, 1 << 14); // 64 MiB, as its builder leaves it
    /// let (memory, p2m) = (booting.memory(), booting.p2m());
    /// let machine = Counting::new(&booting.model);
    /// let mut storage = BatchStorage::<1024, 1>::new();
    /// let mut build = unsafe { Build::begin(&memory, Plan::new(&memory)?) };
    /// let mapped = build.round(&booting.guest(&machine, &p2m), &mut storage.batch())?;
    /// assert_eq!(mapped.map(|mapped| mapped.end), Some(1 << 14));
    /// assert_eq!(machine.counts().hypercalls, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn round<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Option<MapExtent>, RoundError> {
        let Some(round) = self.plan.rounds().get(self.done).copied() else { return Ok(None) };
        if self.state == State::InDoubt {
            return Err(EarlyError::RoundUnfinished { buffer: round.used() }.into());
        }
        if self.done == 0 {
            self.check_root(guest)?;
        }
        // SAFETY: the build owns all free frames, and the plan gives each to one round (I-1). The
        // token becomes the build's again at the end of this function.
        let frames = unsafe { Frames::claim(round.buffer.start, round.buffer.count) };
        let mut buffer = TableBuffer::new(frames);
        let mut tables = buffer.begin()?;
        let steps = self.plan.steps_of(self.memory, self.done);
        let work = Work { memory: self.memory, round, steps, guest };
        if let Err(error) = work.fill(&mut tables) {
            tables.abandon();
            return Err(error.into());
        }
        let changes = || work.gaps().chain(work.links());
        // SAFETY: the tables have just been filled, and the entries that link them are of the
        // direct map's own tables and root slots, or map frames in use at their place (I-13).
        let finished = unsafe { tables.finish(guest, changes, batch) };
        if finished.is_err_and(|error| error.undo.is_err()) {
            self.state = State::InDoubt;
        }
        finished?;
        self.done += 1;
        let end = self.plan.rounds()[..self.done].iter().map(|round| round.maps.end()).max();
        Ok(Some(MapExtent { start: self.memory.place.direct_map, end: end.unwrap_or(0) }))
    }

    /// Gives `owner` every free frame that is mapped and not a table, in runs, lowest first. All
    /// are writable in the direct map.
    ///
    /// Returns the frames of a round that was refused and could not be undone. They belong in a
    /// quarantine.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// let booting = Booting::new(Role::DomU, 1 << 14);
    /// let free = booting.build(); // all rounds, then `finish`
    /// assert!(free.iter().map(|frames| frames.count()).sum::<u64>() > 15_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "frames in doubt are for a quarantine"]
    pub fn finish(self, mut owner: impl FnMut(Frames)) -> Option<Uncertain> {
        let rounds = &self.plan.rounds()[..self.done];
        let in_doubt = self.plan.rounds().get(self.done).map(RoundPlan::used);
        let in_doubt = in_doubt.filter(|_| self.state == State::InDoubt);
        let mut used = [NO_PFNS; Plan::ROUNDS_MAX];
        let tables = rounds.iter().map(RoundPlan::used).chain(in_doubt);
        used.iter_mut().zip(tables).for_each(|(place, tables)| *place = tables);
        for run in self.memory.free_but(&used) {
            for mapped in mapped_runs(self.memory, rounds) {
                let Some(free) = overlap(run, mapped) else { continue };
                // SAFETY: the caller of `begin` gave all free frames, the tables are left out, the
                // runs are disjoint, and the build ends here: this is the only token (I-1).
                owner(unsafe { Frames::claim(free.start, free.count) });
            }
        }
        // SAFETY: they were among the free frames, and nobody else gets them (I-1, I-16).
        in_doubt.map(|doubt| unsafe { Frames::claim(doubt.start, doubt.count) }.into())
    }

    /// Checks that the root has nothing where the direct map will be.
    fn check_root<M: Machine>(&self, guest: &Guest<'_, M>) -> Result<(), EarlyError> {
        let start = self.memory.place.direct_map;
        let slot_shift = Level::L4.shift() - PAGE_SHIFT;
        for slot in 0..self.memory.end().div_ceil(1 << slot_shift) {
            let va = start.checked_add_pages(slot << slot_shift)?;
            let pte = guest.machine().read_entry(guest.kernel_root(), Level::L4.index_of(va))?;
            if pte.is_present() {
                return Err(EarlyError::RootSlotInUse { va, pte });
            }
        }
        Ok(())
    }
}

/// A round being made.
struct Work<'a, M> {
    memory: &'a BootMemory<'a>,
    round: RoundPlan,
    steps: Steps<'a>,
    guest: &'a Guest<'a, M>,
}

impl<M: Machine> Work<'_, M> {
    /// Fills every table of the round. None is live.
    fn fill(&self, tables: &mut TableRound<'_>) -> Result<(), EarlyError> {
        let machine = self.guest.machine();
        for PlannedTable { level, number, frame, parent } in self.steps.clone() {
            let mfn = match frame {
                Some(frame) if tables.take()? == frame => {
                    let mut entries = [Pte::ABSENT; 512];
                    if level == Level::L1 {
                        self.entries(number, &mut entries)?;
                    }
                    // SAFETY: the frame is one of the buffer, which the build owns (I-1), and no
                    // table yet.
                    unsafe { machine.write_entries(frame, PageTableIndex::new(0), &entries) }?;
                    self.guest.mfn(frame)?
                }
                Some(_) => return Err(EarlyError::BufferEmpty { buffer: self.round.buffer }),
                None => {
                    let va = self.memory.place.kernel.checked_add_pages(number << CHUNK_SHIFT)?;
                    entry(self.guest, va, Level::L1)?.slot.table
                }
            };
            if let Some(parent) = parent {
                let pte = leads_to(self.guest, mfn);
                // SAFETY: the parent is a loose table of this round, in a frame of the buffer.
                unsafe { machine.write_entry(parent, index(number), pte) }?;
            }
        }
        Ok(())
    }

    /// Returns the entries of L1 table `number`.
    fn entries(&self, number: u64, entries: &mut [Pte; 512]) -> Result<(), EarlyError> {
        let chunk = chunk_pfns(number);
        let flags = self.guest.machine().offered(PteFlags::KERNEL_RW);
        for region in self.memory.regions {
            let Some(pfns) = overlap(region.pfns, chunk) else { continue };
            let first = (pfns.start.raw() % CHUNK_PFNS) as usize;
            let places = entries[first..].iter_mut().zip(pfns.iter());
            match region.kind {
                RegionKind::Ram => {
                    for (place, pfn) in places {
                        *place = Pte::new(self.guest.mfn(pfn)?, flags);
                    }
                }
                RegionKind::Identity => {
                    for (place, pfn) in places {
                        *place = Pte::new(self.identity(pfn)?, flags);
                    }
                }
            }
        }
        mask_chunk(entries, chunk, self.memory.uses);
        Ok(())
    }

    /// Returns the machine frame of the same number, which the pfn stands for.
    fn identity(&self, pfn: Pfn) -> Result<Mfn, EarlyError> {
        match self.guest.p2m().entry(pfn) {
            Ok(P2mEntry::Identity) | Err(P2mError::OutOfRange { .. }) => Ok(Mfn::new(pfn.raw())),
            Ok(_) => Err(EarlyError::NotIdentity(pfn)),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the entries that the builder's L1 tables lack: the machine's own frames; and all
    /// behind the builder's mapping, if that ends in the middle of a table. The first round sets
    /// them.
    fn gaps(&self) -> impl Iterator<Item = Result<Change, EarlyError>> {
        let is_first = self.round.maps.start.raw() == 0;
        let regions = if is_first { self.memory.regions } else { &[] };
        let end = self.memory.place.kernel_pages;
        let behind = run(end, end.next_multiple_of(CHUNK_PFNS));
        let missing = regions.iter().flat_map(move |region| {
            let inside = overlap(region.pfns, run(0, end));
            let inside = inside.filter(|_| region.kind == RegionKind::Identity);
            let parts = [inside, overlap(region.pfns, behind)].into_iter().flatten();
            parts.flat_map(Pfns::iter).map(|pfn| (region.kind, pfn))
        });
        missing.map(|(kind, pfn)| {
            let va = self.memory.place.kernel.checked_add_pages(pfn.raw())?;
            let slot = entry(self.guest, va, Level::L1)?.slot;
            let mfn = match kind {
                RegionKind::Ram => self.guest.mfn(pfn)?,
                RegionKind::Identity => self.identity(pfn)?,
            };
            let pte = Pte::new(mfn, self.guest.machine().offered(PteFlags::KERNEL_RW));
            Ok(Change { slot, old: Pte::ABSENT, new: mask_rw(pte, pfn, self.memory.uses) })
        })
    }

    /// Returns the entries of live tables that link the round's tables.
    fn links(&self) -> impl Iterator<Item = Result<Change, EarlyError>> {
        let live = self.steps.clone().filter(|table| table.parent.is_none());
        live.filter_map(|PlannedTable { level, number, frame, .. }| {
            Some(self.link(level, number, frame?))
        })
    }

    /// Returns the entry that links the table in `frame` into the running tree.
    fn link(&self, level: Level, number: u64, frame: Pfn) -> Result<Change, EarlyError> {
        // A table spans what an entry of the next level does.
        let pages = number << (level.shift() + CHUNK_SHIFT - PAGE_SHIFT);
        let va = self.memory.place.direct_map.checked_add_pages(pages)?;
        let path = walk(self.guest, self.guest.kernel_root(), va)?;
        let above = path.steps().find(|step| step.level.below() == Some(level));
        let slot = above.ok_or(WalkError::NotMapped(va))?.slot;
        let new = leads_to(self.guest, self.guest.mfn(frame)?);
        Ok(Change { slot, old: Pte::ABSENT, new })
    }
}
