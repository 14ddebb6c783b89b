//! The plan: which tables, from which frames, in how many rounds. A pure function of the memory.

use hypercall::Pfn;
use p2m::Pfns;

use crate::error::EarlyError;
use crate::memory::BootMemory;
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, L2_SHIFT, L3_SHIFT, touched};

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
    /// # Errors
    /// [`EarlyError::MappedTooLittle`] if the builder's mapping has too few free frames to begin
    /// with.
    ///
    /// # Hypercalls
    /// None.
    pub fn new(memory: &BootMemory<'_>) -> Result<Self, EarlyError> {
        let mut plan = Self { rounds: [RoundPlan::NONE; ROUNDS_MAX], count: 0 };
        let mut taken = [Pfns::new(Pfn::new(0), 0); ROUNDS_MAX];
        let mut from = 0;
        while from < memory.end() {
            let mapped = from.max(memory.place.kernel_pages);
            let buffer = largest_free(memory, mapped, &taken[..plan.count]);
            let least = shared_chunks(memory).max((from >> CHUNK_SHIFT) + 1);
            let to = reach(memory, from, buffer.count);
            let needed = tables_between(memory, from, (least << CHUNK_SHIFT).min(memory.end()));
            if to < (least << CHUNK_SHIFT).min(memory.end()) || plan.count == ROUNDS_MAX {
                return Err(EarlyError::MappedTooLittle { free: buffer.count, needed });
            }
            let tables = tables_between(memory, from, to);
            let maps = Pfns::new(Pfn::new(from), to - from);
            plan.rounds[plan.count] = RoundPlan { maps, buffer, tables };
            taken[plan.count] = Pfns::new(buffer.start, tables);
            plan.count += 1;
            from = to;
        }
        Ok(plan)
    }

    /// The rounds, in order.
    #[must_use]
    pub fn rounds(&self) -> &[RoundPlan] {
        &self.rounds[..self.count]
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

/// Tables that a direct map of everything below `end` needs, besides the builder's.
pub(crate) fn tables_below(memory: &BootMemory<'_>, end: u64) -> u64 {
    let chunks = touched(memory.regions, CHUNK_SHIFT, end);
    let shared = shared_chunks(memory).min(chunks);
    chunks - shared
        + touched(memory.regions, L2_SHIFT, end)
        + touched(memory.regions, L3_SHIFT, end)
}

fn tables_between(memory: &BootMemory<'_>, from: u64, to: u64) -> u64 {
    tables_below(memory, to) - tables_below(memory, from)
}

/// How far `frames` tables reach behind `from`: the highest border of an L1 table.
fn reach(memory: &BootMemory<'_>, from: u64, frames: u64) -> u64 {
    let (mut low, mut high) = (from >> CHUNK_SHIFT, memory.end().div_ceil(CHUNK_PFNS));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if tables_between(memory, from, (middle << CHUNK_SHIFT).min(memory.end())) <= frames {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    (low << CHUNK_SHIFT).clamp(from, memory.end())
}

/// The largest run of free frames below `mapped`, of several the lowest. Pfn 0 is never a table: to
/// ports of Linux's shape it says "no frame".
fn largest_free(memory: &BootMemory<'_>, mapped: u64, taken: &[Pfns]) -> Pfns {
    let mut largest = Pfns::new(Pfn::new(0), 0);
    for run in memory.free_but(taken) {
        let start = run.start.raw().max(1);
        let count = run.end().min(mapped).saturating_sub(start);
        if count > largest.count {
            largest = Pfns::new(Pfn::new(start), count);
        }
    }
    largest
}
