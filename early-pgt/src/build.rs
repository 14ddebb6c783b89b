//! The direct map itself: round by round, each filled by plain stores and linked at once.
#![expect(unsafe_code, reason = "fills and links tables in frames that the build owns (I-1, I-13)")]

use hypercall::{
    Batch, FrameAccess, Frames, GuestVa, Level, Machine, Mfn, MmuUpdate, PAGE_SHIFT, Pfn, Pte,
    PteFlags, Slot, Uncertain,
};
use p2m::{Guest, P2mEntry, P2mError, Pfns};
use x86_64::structures::paging::PageTableIndex;

use crate::buffer::{Change, Direction, TableBuffer, TableRound, l1_table, table_above};
use crate::error::{EarlyError, RoundError};
use crate::memory::{BootMemory, RegionKind, mask_chunk, mask_rw};
use crate::plan::{Plan, ROUNDS_MAX, RoundPlan, mapped_runs};
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, overlap};
use crate::tables::{Parent, Step, Steps, Table};

/// An entry that leads to a table of the direct map: nothing in it is ever executed.
pub(crate) fn leads_to<M: FrameAccess>(guest: &Guest<'_, M>, table: Pfn) -> Result<Pte, P2mError> {
    guest.mfn(table).map(|mfn| leads_to_mfn(guest, mfn))
}

/// The same, for a table whose frame's number is known.
pub(crate) fn leads_to_mfn<M: FrameAccess>(guest: &Guest<'_, M>, table: Mfn) -> Pte {
    let flags = PteFlags::TABLE.union(PteFlags::NO_EXECUTE);
    Pte::new(table, guest.machine().offered(flags))
}

/// How far the direct map reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the machine has to be told before the next round"]
pub struct Mapped {
    /// Its first address.
    pub start: GuestVa,
    /// Pfns below this one are mapped, but for holes; before the last round, also but for frames
    /// in use.
    pub end: u64,
}

/// A direct map under construction, and the owner of every frame that nobody uses yet.
///
/// # Invariants
/// I-13: frames of finished rounds are live tables, read-only in every mapping; all other free
/// frames are in no table and, as far as they are mapped, writable.
#[derive(Debug)]
#[must_use = "the free frames are in here: finish it"]
pub struct Build<'m> {
    memory: &'m BootMemory<'m>,
    plan: Plan,
    done: usize,
    state: State,
}

/// Whether all is known of the frames of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Those of finished rounds are tables, the others are not.
    Sound,
    /// Whether those of the round behind the finished ones are tables is not known: it was refused,
    /// and so was its undo.
    InDoubt,
}

impl<'m> Build<'m> {
    /// Takes over every frame that is in no use.
    ///
    /// # Safety
    /// Nobody else uses or owns any frame that `memory` says is free, and no Rust object is in one
    /// (I-1). `plan` is of this memory.
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
    /// while let Some(mapped) = build.round(guest, &mut storage.batch())? {
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

    /// Makes the next round, and says how far the direct map reaches then; `None` if it is whole.
    ///
    /// # Errors
    /// [`RoundError`]; the direct map is as before, and the round can be tried again. If not even
    /// the undo worked ([`RoundError::undo`]) there is no further round
    /// ([`EarlyError::RoundUnfinished`]), and [`finish`](Self::finish) keeps the round's frames
    /// from everybody.
    ///
    /// # Hypercalls
    /// One `mmu_update` with an element for each table of the round and for each entry that links
    /// one, if the batch has room for [`Plan::updates_max`]; one for each time it is full,
    /// otherwise.
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Counting};
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// # use early_pgt::{Build, Plan};
    /// let booting = Booting::new(Role::DomU, 1 << 14); // 64 MiB, as its builder leaves it
    /// let (memory, p2m, machine) = (booting.memory(), booting.p2m(), Counting::new(&booting.model));
    /// let mut storage = BatchStorage::<1024, 1>::new();
    /// let mut build = unsafe { Build::begin(&memory, Plan::new(&memory)?) };
    /// let mapped = build.round(booting.guest(&machine, &p2m), &mut storage.batch())?;
    /// assert_eq!(mapped.map(|mapped| mapped.end), Some(1 << 14));
    /// assert_eq!(machine.counts().hypercalls, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn round<M: Machine>(
        &mut self,
        guest: Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Option<Mapped>, RoundError> {
        let Some(round) = self.plan.rounds().get(self.done).copied() else { return Ok(None) };
        if self.state == State::InDoubt {
            return Err(EarlyError::RoundUnfinished { buffer: round.used() }.into());
        }
        if self.done == 0 {
            self.check_root(guest)?;
        }
        // SAFETY: the build owns all free frames, and the plan gives each to one round (I-1). The
        // token goes back to being the build's at the end of this function.
        let frames = unsafe { Frames::claim(round.buffer.start, round.buffer.count) };
        let mut buffer = TableBuffer::new(frames);
        let mut tables = buffer.begin()?;
        let steps = self.plan.steps_of(self.memory, self.done);
        let work = Work { memory: self.memory, round, steps, guest };
        if let Err(error) = work.fill(&mut tables) {
            tables.abandon();
            return Err(error.into());
        }
        let links = |direction| work.gaps(direction).chain(work.links(direction));
        // SAFETY: the tables were filled a moment ago, and the entries that link them are of the
        // direct map's own tables and root slots, or map frames in use at their place (I-13).
        let finished = unsafe { tables.finish(guest, links, batch) };
        if finished.is_err_and(|error| error.undo.is_err()) {
            self.state = State::InDoubt;
        }
        finished?;
        self.done += 1;
        let end = self.plan.rounds()[..self.done].iter().map(|round| round.maps.end()).max();
        Ok(Some(Mapped { start: self.memory.place.direct_map, end: end.unwrap_or(0) }))
    }

    /// Gives every frame that is no table to `owner`, in runs, lowest first: all of them writable
    /// in the direct map. The frames of rounds that were not made are among them; those that are
    /// not mapped yet are not.
    ///
    /// The tables of a round that was refused and could not be undone go to nobody: they come back
    /// as [`Uncertain`], for a quarantine.
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
        let mut used = [Pfns::new(Pfn::new(0), 0); ROUNDS_MAX];
        for (place, tables) in
            used.iter_mut().zip(rounds.iter().map(RoundPlan::used).chain(in_doubt))
        {
            *place = tables;
        }
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

    /// Nothing is where the direct map is to be.
    fn check_root<M: Machine>(&self, guest: Guest<'_, M>) -> Result<(), EarlyError> {
        let start = self.memory.place.direct_map;
        let last = start.checked_add_pages(self.memory.end() - 1)?;
        for slot in u16::from(Level::L4.index_of(start))..=u16::from(Level::L4.index_of(last)) {
            let pte = guest.machine().read_entry(guest.kernel_root(), PageTableIndex::new(slot))?;
            if pte.is_present() {
                let slots = u64::from(slot) - u64::from(u16::from(Level::L4.index_of(start)));
                let va = start.checked_add_pages(slots << (Level::L4.shift() - PAGE_SHIFT))?;
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
    guest: Guest<'a, M>,
}

impl<M: Machine> Work<'_, M> {
    fn steps(&self) -> Steps<'_> {
        self.steps.clone()
    }

    /// Fills every table of the round; none is live.
    fn fill(&self, tables: &mut TableRound<'_>) -> Result<(), EarlyError> {
        for step in self.steps() {
            match step {
                Step::Table(table) if tables.take()? == table.frame => self.fill_table(table)?,
                Step::Table(_) => return Err(EarlyError::BufferEmpty),
                Step::Share { number, parent } => {
                    let va = self.memory.place.kernel.checked_add_pages(number << CHUNK_SHIFT)?;
                    let l1 = l1_table(
                        (self.guest.machine(), self.guest.p2m()),
                        self.guest.kernel_root(),
                        va,
                    )?
                    .0;
                    let pte = leads_to(&self.guest, l1)?;
                    // SAFETY: the L2 is a loose table of this round, in a frame of the buffer.
                    unsafe { self.guest.machine().write_entry(parent, index(number), pte) }?;
                }
            }
        }
        Ok(())
    }

    fn fill_table(&self, table: Table) -> Result<(), EarlyError> {
        let machine = self.guest.machine();
        let mut entries = [Pte::ABSENT; 512];
        if table.level == Level::L1 {
            self.entries(table.number, &mut entries)?;
        }
        // SAFETY: the frame is one of the buffer, which the build owns (I-1), and no table yet.
        unsafe { machine.write_entries(table.frame, PageTableIndex::new(0), &entries) }?;
        if let Parent::Loose(parent) = table.parent {
            let pte = leads_to(&self.guest, table.frame)?;
            // SAFETY: the parent is a loose table of this round, in a frame of the buffer.
            unsafe { machine.write_entry(parent, index(table.number), pte) }?;
        }
        Ok(())
    }

    /// The entries of L1 table `number`.
    fn entries(&self, number: u64, entries: &mut [Pte; 512]) -> Result<(), EarlyError> {
        let chunk = Pfns::new(Pfn::new(number << CHUNK_SHIFT), CHUNK_PFNS);
        let flags = self.guest.machine().offered(PteFlags::KERNEL_RW);
        for region in self.memory.regions {
            let Some(pfns) = overlap(region.pfns, chunk) else { continue };
            let first = (pfns.start.raw() % CHUNK_PFNS) as usize;
            let places = entries[first..].iter_mut().zip(pfns.iter());
            match region.kind {
                RegionKind::Ram => {
                    for (place, pfn) in places {
                        *place = Pte::new(self.guest.p2m().mfn(pfn)?, flags);
                    }
                }
                RegionKind::Identity => {
                    for (place, pfn) in places {
                        *place = self.identity(pfn)?;
                    }
                }
            }
        }
        mask_chunk(entries, chunk, self.memory.uses);
        Ok(())
    }

    /// The entry of a pfn that stands for the machine's frame of the same number.
    fn identity(&self, pfn: Pfn) -> Result<Pte, EarlyError> {
        match self.guest.p2m().entry(pfn) {
            Ok(P2mEntry::Identity) | Err(P2mError::OutOfRange { .. }) => {}
            Ok(_) => return Err(EarlyError::NotIdentity(pfn)),
            Err(error) => return Err(error.into()),
        }
        Ok(Pte::new(Mfn::new(pfn.raw()), self.guest.machine().offered(PteFlags::KERNEL_RW)))
    }

    /// The entries that are missing in the builder's L1 tables: what stands for the machine's own
    /// frames; and all behind its mapping, if that ends in the middle of a table.
    fn gaps(&self, direction: Direction) -> impl Iterator<Item = Change> {
        let end = self.memory.place.kernel_pages;
        let first = self.round.maps.start.raw() == 0;
        let shared = Pfns::new(Pfn::new(0), if first { end } else { 0 });
        let behind = Pfns::new(
            Pfn::new(end),
            if first { end.next_multiple_of(CHUNK_PFNS) - end } else { 0 },
        );
        let missing = self.memory.regions.iter().flat_map(move |region| {
            let inside = overlap(region.pfns, shared);
            let inside = inside.filter(|_| region.kind == RegionKind::Identity);
            let both = [inside, overlap(region.pfns, behind)];
            both.into_iter().flatten().map(|pfns| (region.kind, pfns))
        });
        let entries = missing.flat_map(|(kind, pfns)| pfns.iter().map(move |pfn| (kind, pfn)));
        entries.map(move |(kind, pfn)| {
            let chunk_start = pfn.raw() & !(CHUNK_PFNS - 1);
            let va = self.memory.place.kernel.checked_add_pages(chunk_start)?;
            let around = (self.guest.machine(), self.guest.p2m());
            let (_, table) = l1_table(around, self.guest.kernel_root(), va)?;
            let slot = Slot { table, index: index(pfn.raw()) };
            let flags = self.guest.machine().offered(PteFlags::KERNEL_RW);
            let new = match kind {
                RegionKind::Ram => Pte::new(self.guest.p2m().mfn(pfn)?, flags),
                RegionKind::Identity => self.identity(pfn)?,
            };
            Ok(ordered(direction, slot, mask_rw(new, pfn, self.memory.uses)))
        })
    }

    /// The entries that link the round's tables where that takes Xen.
    fn links(&self, direction: Direction) -> impl Iterator<Item = Change> {
        self.steps().filter_map(move |step| {
            let Step::Table(table) = step else { return None };
            let (parent, first) = match table.parent {
                Parent::Loose(_) => return None,
                Parent::Live => match self.live_parent(table) {
                    Ok(parent) => (parent, 0),
                    Err(error) => return Some(Err(error)),
                },
                Parent::Root => {
                    let first = Level::L4.index_of(self.memory.place.direct_map);
                    (self.guest.kernel_root(), u64::from(u16::from(first)))
                }
            };
            Some((|| {
                let slot = Slot {
                    table: self.guest.p2m().mfn(parent)?,
                    index: index(first + table.number),
                };
                let new = leads_to(&self.guest, table.frame)?;
                Ok(ordered(direction, slot, new))
            })())
        })
    }
}

impl<M: Machine> Work<'_, M> {
    /// The live table that `table` hangs in.
    fn live_parent(&self, table: Table) -> Result<Pfn, EarlyError> {
        // A table spans what an entry of the next level does.
        let pages = table.number << (table.level.shift() + CHUNK_SHIFT - PAGE_SHIFT);
        let va = self.memory.place.direct_map.checked_add_pages(pages)?;
        let around = (self.guest.machine(), self.guest.p2m());
        table_above(around, self.guest.kernel_root(), (va, table.level))
    }
}

/// Fills an empty slot, or empties it.
fn ordered(direction: Direction, slot: Slot, new: Pte) -> (MmuUpdate, Pte) {
    match direction {
        Direction::Forth => (MmuUpdate::set(slot, new), Pte::ABSENT),
        Direction::Back => (MmuUpdate::set(slot, Pte::ABSENT), new),
    }
}

/// The index of block `number` in the table above it.
pub(crate) const fn index(number: u64) -> PageTableIndex {
    PageTableIndex::new_truncate((number % 512) as u16)
}
