//! The plan: which frames become which tables in how many rounds. A pure function of the memory.

use hypercall::Pfn;
use p2m::Pfns;

use crate::error::EarlyError;
use crate::memory::BootMemory;
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, L2_SHIFT, L3_SHIFT, NO_PFNS, overlap, run};
use crate::tables::{PlannedTable, RoundPlan, Steps};
use crate::uses::FrameUse;

/// A plan for the direct map of all memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    rounds: [RoundPlan; Self::ROUNDS_MAX],
    count: usize,
}

impl Plan {
    /// The most rounds in a plan. A frame that becomes an L1 table maps 512 others, so each round
    /// maps some 500 times the memory of the last. Five are enough for 16 TiB.
    pub const ROUNDS_MAX: usize = 6;

    /// Plans a direct map of `memory`.
    ///
    /// Each round takes its tables from the largest run of free frames that is mapped when it
    /// begins, and maps as much as that allows, in ascending order. The first round's frames are in
    /// the builder's mapping. The builder's L1 tables become part of the direct map as they are.
    ///
    /// If everything that a round would map is in use (the list of a guest of more than 125 GiB,
    /// which INIT_P2M placed behind the builder's mapping), the largest run in use comes last.
    ///
    /// # Errors
    /// [`EarlyError::MappedTooLittle`] if the builder's mapping has too few free frames.
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
        let mut plan = Self { rounds: [RoundPlan::NONE; Self::ROUNDS_MAX], count: 0 };
        let Err(error) = plan.cover(memory, run(0, memory.end())) else { return Ok(plan) };
        let Some(late) = largest_use(memory) else { return Err(error) };
        plan.count = 0;
        for part in [run(0, late.start.raw()), run(late.end(), memory.end()), late] {
            plan.cover(memory, part).map_err(|_| error)?;
        }
        Ok(plan)
    }

    /// Adds rounds that map `part`.
    fn cover(&mut self, memory: &BootMemory<'_>, part: Pfns) -> Result<(), EarlyError> {
        let mut rest = part;
        while rest.count > 0 {
            let mut taken = [NO_PFNS; Self::ROUNDS_MAX];
            taken.iter_mut().zip(self.rounds()).for_each(|(taken, round)| *taken = round.used());
            let buffer = largest_free(memory, self.rounds(), &taken[..self.count]);
            let maps = self.reach(memory, rest, buffer.count);
            let least = match self.count {
                0 => memory.shared_chunks() << CHUNK_SHIFT,
                _ => ((rest.start.raw() >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT,
            };
            let least = run(rest.start.raw(), least.min(rest.end()));
            if maps.count < least.count || self.count == Self::ROUNDS_MAX {
                let needed = self.tables_for(memory, least);
                return Err(EarlyError::MappedTooLittle { free: buffer.count, needed });
            }
            let tables = self.tables_for(memory, maps);
            self.rounds[self.count] = RoundPlan { maps, buffer, tables };
            self.count += 1;
            rest = run(maps.end(), rest.end());
        }
        Ok(())
    }

    /// Returns the part of `part`, from its start on, that `frames` tables map: up to the highest
    /// border of an L1 table.
    fn reach(&self, memory: &BootMemory<'_>, part: Pfns, frames: u64) -> Pfns {
        let (from, limit) = (part.start.raw(), part.end());
        let up_to = |chunk: u64| run(from, (chunk << CHUNK_SHIFT).clamp(from, limit));
        let (mut low, mut high) = (from >> CHUNK_SHIFT, limit.div_ceil(CHUNK_PFNS));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.tables_for(memory, up_to(middle)) <= frames {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        up_to(low)
    }

    /// Returns how many more tables mapping `range` needs.
    fn tables_for(&self, memory: &BootMemory<'_>, range: Pfns) -> u64 {
        if range.count == 0 {
            return 0;
        }
        let shared = run(0, memory.shared_chunks() << CHUNK_SHIFT);
        let shared = overlap(shared, range).map_or(0, |part| memory.touched(CHUNK_SHIFT, part));
        let upper = [L2_SHIFT, L3_SHIFT].map(|shift| {
            // What is mapped already can have touched only the blocks at its ends.
            let (first, last) = (range.start.raw() >> shift, (range.end() - 1) >> shift);
            let ends = [Some(first), Some(last).filter(|last| *last != first)];
            let both = |block: &u64| {
                memory.touches(shift, *block, self.rounds().iter().map(|round| round.maps))
                    && memory.touches(shift, *block, [range].into_iter())
            };
            let live = ends.into_iter().flatten().filter(both).count() as u64;
            memory.touched(shift, range) - live
        });
        memory.touched(CHUNK_SHIFT, range) - shared + upper.iter().sum::<u64>()
    }

    /// Returns the rounds, in order.
    #[must_use]
    pub fn rounds(&self) -> &[RoundPlan] {
        &self.rounds[..self.count]
    }

    /// Returns the steps of each round: its tables, in the order in which they are filled.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// use early_pgt::Plan;
    ///
    /// let booting = Booting::new(Role::DomU, 1 << 16); // 256 MiB, as built
    /// let memory = booting.memory();
    /// let plan = Plan::new(&memory)?;
    /// let frames = plan.steps(&memory).flatten().filter_map(|table| table.frame);
    /// assert_eq!(frames.count() as u64, plan.tables());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn steps<'m>(
        &'m self,
        memory: &'m BootMemory<'m>,
    ) -> impl Iterator<Item = impl Iterator<Item = PlannedTable>> {
        (0..self.count).map(move |at| self.steps_of(memory, at))
    }

    /// Returns the steps of round `at`.
    pub(crate) fn steps_of<'m>(&'m self, memory: &'m BootMemory<'m>, at: usize) -> Steps<'m> {
        Steps::new(memory, self.rounds[at], &self.rounds[..at])
    }

    /// Returns how many tables all rounds make.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.rounds().iter().map(|round| round.tables).sum()
    }

    /// Returns the most elements that a round sends to Xen: an update for each table, and the
    /// entries that link them. With a batch this large, a round takes one hypercall.
    #[must_use]
    pub fn updates_max(&self) -> u64 {
        self.rounds().iter().map(|round| round.tables).max().map_or(0, |tables| tables + LINKS_MAX)
    }
}

/// The most entries that link a round into live tables: the rest of an L2, of an L3 and of the
/// root, and the missing entries of a builder's L1.
const LINKS_MAX: u64 = 4 * 512;

/// Returns the largest run in one use, of at least an L1 table's frames, that is not the kernel's.
fn largest_use(memory: &BootMemory<'_>) -> Option<Pfns> {
    let behind = |used: &&FrameUse| used.pfns.start.raw() >= memory.place.kernel_pages;
    let used = memory.uses.iter().filter(behind).max_by_key(|used| used.pfns.count)?;
    let start = used.pfns.start.raw().next_multiple_of(CHUNK_PFNS);
    let end = used.pfns.end() & !(CHUNK_PFNS - 1);
    (start < end).then(|| run(start, end))
}

/// Returns the largest run of free frames that the builder or one of `rounds` mapped, the lowest of
/// several. Pfn 0 never becomes a table: ports of Linux's shape use it for "no frame".
fn largest_free(memory: &BootMemory<'_>, rounds: &[RoundPlan], taken: &[Pfns]) -> Pfns {
    let mut largest = NO_PFNS;
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

/// Returns the runs that are mapped. No two touch.
pub(crate) fn mapped_runs(
    memory: &BootMemory<'_>,
    rounds: &[RoundPlan],
) -> impl Iterator<Item = Pfns> {
    let kernel = run(0, memory.place.kernel_pages);
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
