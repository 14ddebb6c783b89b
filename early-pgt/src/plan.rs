//! The plan: which tables, from which frames, in how many rounds. A pure function of the memory.

use hypercall::Pfn;
use p2m::Pfns;

use crate::error::EarlyError;
use crate::memory::{BootMemory, Use};
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, L2_SHIFT, L3_SHIFT, overlap, touched, touches};
use crate::tables::{Step, Steps};

/// The most rounds a plan has. A frame that serves as L1 table maps 512 others, so each round maps
/// some 500 times the memory of the one before: three are enough for 16 TiB.
pub const ROUNDS_MAX: usize = 6;

/// One round: tables that are filled, protected and linked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundPlan {
    /// The pfns that the direct map shows behind it and did not before.
    pub maps: Pfns,
    /// The table buffer, `[start, top)`: frames that are mapped already.
    pub buffer: Pfns,
    /// How many of them become tables: `[start, end)`.
    pub tables: u64,
}

impl RoundPlan {
    const NONE: Self = {
        let none = Pfns::new(Pfn::new(0), 0);
        Self { maps: none, buffer: none, tables: 0 }
    };

    /// The frames that become tables.
    #[must_use]
    pub const fn used(&self) -> Pfns {
        Pfns::new(self.buffer.start, self.tables)
    }
}

/// How the direct map of all memory comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    rounds: [RoundPlan; ROUNDS_MAX],
    count: usize,
}

impl Plan {
    /// Plans a direct map of `memory`.
    ///
    /// Each round takes its tables from the largest run of free frames that is mapped when it
    /// begins, and maps as much as that allows, in ascending order. The first round's frames are in
    /// the builder's mapping; the tables of that mapping become part of the direct map as they
    /// are, so that each of its frames keeps one entry, with what protects it.
    ///
    /// If that does not work out, because what a round maps is all in use (the list of a guest of
    /// more than 125 GiB, placed behind the builder's mapping by INIT_P2M), then the largest run in
    /// use is left to the end.
    ///
    /// # Errors
    /// [`EarlyError::MappedTooLittle`] if the builder's mapping has too few free frames to begin
    /// with.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// use early_pgt::Plan;
    ///
    /// let booting = Booting::new(Role::DomU, 1 << 16); // 256 MiB, as built
    /// let plan = Plan::new(&booting.memory())?;
    /// assert_eq!(plan.rounds().len(), 1);
    /// println!("{} tables, {} updates at once", plan.tables(), plan.updates_max());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(memory: &BootMemory<'_>) -> Result<Self, EarlyError> {
        let all = Pfns::new(Pfn::new(0), memory.end());
        let mut plan = Self { rounds: [RoundPlan::NONE; ROUNDS_MAX], count: 0 };
        let Err(error) = plan.cover(memory, all) else { return Ok(plan) };
        let Some(late) = largest_use(memory) else { return Err(error) };
        plan.count = 0;
        for part in [
            Pfns::new(Pfn::new(0), late.start.raw()),
            Pfns::new(Pfn::new(late.end()), memory.end() - late.end()),
            late,
        ] {
            plan.cover(memory, part).map_err(|_| error)?;
        }
        Ok(plan)
    }

    /// Adds rounds that map `part`.
    fn cover(&mut self, memory: &BootMemory<'_>, part: Pfns) -> Result<(), EarlyError> {
        let mut from = part.start.raw();
        while from < part.end() {
            let mut taken = [Pfns::new(Pfn::new(0), 0); ROUNDS_MAX];
            for (place, round) in taken.iter_mut().zip(self.rounds()) {
                *place = round.used();
            }
            let buffer = largest_free(memory, self.rounds(), &taken[..self.count]);
            let limit = part.end();
            let (to, tables) = self.reach(memory, (from, limit), buffer.count);
            let shared = memory.place.kernel_pages.next_multiple_of(CHUNK_PFNS);
            let least = match self.count {
                0 => shared.max(1),
                _ => ((from >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT,
            };
            let least = least.min(limit);
            if to < least || self.count == ROUNDS_MAX {
                let needed = self.tables_for(memory, Pfns::new(Pfn::new(from), least - from));
                return Err(EarlyError::MappedTooLittle { free: buffer.count, needed });
            }
            let maps = Pfns::new(Pfn::new(from), to - from);
            self.rounds[self.count] = RoundPlan { maps, buffer, tables };
            self.count += 1;
            from = to;
        }
        Ok(())
    }

    /// How far `frames` tables reach behind `from`: the highest border of an L1 table up to the
    /// limit. And how many of them that takes.
    fn reach(&self, memory: &BootMemory<'_>, (from, limit): (u64, u64), frames: u64) -> (u64, u64) {
        let needed = |chunk: u64| {
            let to = (chunk << CHUNK_SHIFT).clamp(from, limit);
            self.tables_for(memory, Pfns::new(Pfn::new(from), to - from))
        };
        let (mut low, mut high) = (from >> CHUNK_SHIFT, limit.div_ceil(CHUNK_PFNS));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if needed(middle) <= frames { low = middle } else { high = middle - 1 }
        }
        ((low << CHUNK_SHIFT).clamp(from, limit), needed(low))
    }

    /// Tables that mapping `range` needs, besides the builder's and those of the rounds so far.
    fn tables_for(&self, memory: &BootMemory<'_>, range: Pfns) -> u64 {
        if range.count == 0 {
            return 0;
        }
        let shared = Pfns::new(Pfn::new(0), shared_chunks(memory) << CHUNK_SHIFT);
        let chunks = touched(memory.regions, CHUNK_SHIFT, range);
        let shared =
            overlap(shared, range).map_or(0, |shared| touched(memory.regions, CHUNK_SHIFT, shared));
        let upper = [L2_SHIFT, L3_SHIFT].map(|shift| {
            // Only the blocks at its ends can have been touched by what is mapped already.
            let (first, last) = (range.start.raw() >> shift, (range.end() - 1) >> shift);
            let ends = [Some(first), Some(last).filter(|last| *last != first)];
            let both = |block: &u64| {
                self.is_live(memory, shift, *block)
                    && touches(memory.regions, [range].into_iter(), (shift, *block))
            };
            let live = ends.into_iter().flatten().filter(both).count() as u64;
            touched(memory.regions, shift, range) - live
        });
        chunks - shared + upper.iter().sum::<u64>()
    }

    /// Whether the rounds so far make the upper table that spans block `number`.
    fn is_live(&self, memory: &BootMemory<'_>, shift: u32, number: u64) -> bool {
        let mapped = self.rounds().iter().map(|round| round.maps);
        touches(memory.regions, mapped, (shift, number))
    }

    /// The rounds, in order.
    #[must_use]
    pub fn rounds(&self) -> &[RoundPlan] {
        &self.rounds[..self.count]
    }

    /// The steps of each round: which frame becomes which table, in which order.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// use early_pgt::{Plan, Step};
    ///
    /// let booting = Booting::new(Role::DomU, 1 << 16); // 256 MiB, as built
    /// let memory = booting.memory();
    /// let plan = Plan::new(&memory)?;
    /// let steps = plan.steps(&memory).flatten();
    /// let tables = steps.filter(|step| matches!(step, Step::Table(_))).count();
    /// assert_eq!(tables as u64, plan.tables());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn steps<'m>(
        &'m self,
        memory: &'m BootMemory<'m>,
    ) -> impl Iterator<Item = impl Iterator<Item = Step>> {
        (0..self.count).map(move |at| self.steps_of(memory, at))
    }

    /// The steps of round `at`.
    pub(crate) fn steps_of<'m>(&'m self, memory: &'m BootMemory<'m>, at: usize) -> Steps<'m> {
        Steps::new(memory, self.rounds[at], &self.rounds[..at])
    }

    /// Tables of all rounds.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.rounds().iter().map(|round| round.tables).sum()
    }

    /// The most elements that a round sends to Xen, with all of which in one batch it takes one
    /// hypercall: an update for each table, and the entries that link them.
    #[must_use]
    pub fn updates_max(&self) -> u64 {
        self.rounds().iter().map(|round| round.tables).max().map_or(0, |tables| tables + LINKS_MAX)
    }
}

/// The most entries that link a round into live tables: the rest of an L2, of an L3 and of the
/// root, and the missing entries of a builder's L1.
const LINKS_MAX: u64 = 4 * 512;

/// L1 tables of the builder's mapping.
pub(crate) fn shared_chunks(memory: &BootMemory<'_>) -> u64 {
    memory.place.kernel_pages.div_ceil(CHUNK_PFNS)
}

/// The largest run of L1 tables' worth of frames in one use that is not the kernel's.
fn largest_use(memory: &BootMemory<'_>) -> Option<Pfns> {
    let behind = |used: &&Use| used.pfns.start.raw() >= memory.place.kernel_pages;
    let used = memory.uses.iter().filter(behind).max_by_key(|used| used.pfns.count)?;
    let start = used.pfns.start.raw().next_multiple_of(CHUNK_PFNS);
    let end = used.pfns.end() & !(CHUNK_PFNS - 1);
    (start < end).then(|| Pfns::new(Pfn::new(start), end - start))
}

/// The largest run of free frames that the builder or one of `rounds` mapped, of several the
/// lowest. Pfn 0 is never a table: to ports of Linux's shape it says "no frame".
fn largest_free(memory: &BootMemory<'_>, rounds: &[RoundPlan], taken: &[Pfns]) -> Pfns {
    let mut largest = Pfns::new(Pfn::new(0), 0);
    for run in memory.free_but(taken) {
        for mapped in mapped_runs(memory, rounds) {
            let Some(part) = overlap(run, mapped) else { continue };
            let start = part.start.raw().max(1);
            let count = part.end().saturating_sub(start);
            if count > largest.count {
                largest = Pfns::new(Pfn::new(start), count);
            }
        }
    }
    largest
}

/// What is mapped, in runs of which no two touch.
pub(crate) fn mapped_runs(
    memory: &BootMemory<'_>,
    rounds: &[RoundPlan],
) -> impl Iterator<Item = Pfns> {
    let kernel = Pfns::new(Pfn::new(0), memory.place.kernel_pages);
    let all = move || [kernel].into_iter().chain(rounds.iter().map(|round| round.maps));
    let begins = move |start: u64| {
        !all().any(|run| run.start.raw() < start && start <= run.end() && run.count > 0)
    };
    all().enumerate().filter_map(move |(at, run)| {
        let start = run.start.raw();
        let first = all().take(at).all(|other| other.start != run.start);
        if !first || !begins(start) {
            return None;
        }
        let mut end = run.end();
        while let Some(next) = all().rfind(|run| run.start.raw() <= end && run.end() > end) {
            end = next.end();
        }
        Some(Pfns::new(run.start, end - start))
    })
}
