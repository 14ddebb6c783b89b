//! The tables of a round, in the order in which frames of the buffer become tables.

use hypercall::{Level, Pfn};

use crate::memory::BootMemory;
use crate::plan::{RoundPlan, shared_chunks};
use crate::spans::{CHUNK_SHIFT, L2_SHIFT, L3_SHIFT};

/// What a table hangs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A table of the same round, not yet live: linked by a plain store.
    Loose(Pfn),
    /// A live table of an earlier round: linked by Xen.
    Live(Pfn),
    /// The root: linked by Xen.
    Root,
}

/// A table of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its level.
    pub level: Level,
    /// Its number, counted from the direct map's first address: the pfn of its first page, by the
    /// pfns that a table of this level spans.
    pub number: u64,
    /// The frame.
    pub frame: Pfn,
    /// Where it is linked.
    pub parent: Parent,
}

/// A step of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame of the buffer becomes a table.
    Table(Table),
    /// L1 table `number` of the builder's becomes part of the direct map, in this L2 table.
    Share {
        /// Which.
        number: u64,
        /// The L2 table, of the same round.
        parent: Pfn,
    },
}

/// The last L2 and L3 table of the direct map so far, by number: new tables hang in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    l2: Option<(u64, Parent)>,
    l3: Option<(u64, Parent)>,
}

impl Edge {
    /// There is none.
    pub(crate) const fn new() -> Self {
        Self { l2: None, l3: None }
    }

    /// What is loose in a round is live after it.
    pub(crate) fn linked(self) -> Self {
        let live = |(number, parent)| match parent {
            Parent::Loose(pfn) => (number, Parent::Live(pfn)),
            other => (number, other),
        };
        Self { l2: self.l2.map(live), l3: self.l3.map(live) }
    }
}

/// The steps of a round, parents before children.
#[derive(Clone, Debug)]
pub(crate) struct Steps<'m> {
    memory: &'m BootMemory<'m>,
    round: RoundPlan,
    /// The first region that may have chunks left.
    region: usize,
    /// The next chunk to look at.
    chunk: u64,
    next_frame: Pfn,
    pub(crate) edge: Edge,
}

impl<'m> Steps<'m> {
    pub(crate) const fn new(memory: &'m BootMemory<'m>, round: RoundPlan, edge: Edge) -> Self {
        let chunk = round.maps.start.raw() >> CHUNK_SHIFT;
        Self { memory, round, region: 0, chunk, next_frame: round.buffer.start, edge }
    }

    /// The next chunk of the round in which there is something to map.
    fn find_chunk(&mut self) -> Option<u64> {
        loop {
            let region = self.memory.regions.get(self.region)?;
            let chunk = self.chunk.max(region.pfns.start.raw() >> CHUNK_SHIFT);
            if chunk << CHUNK_SHIFT >= region.pfns.end() {
                self.region += 1;
                continue;
            }
            self.chunk = chunk;
            return (chunk << CHUNK_SHIFT < self.round.maps.end()).then_some(chunk);
        }
    }

    fn take(&mut self, level: Level, number: u64, parent: Parent) -> Step {
        let frame = self.next_frame;
        self.next_frame = Pfn::new(frame.raw() + 1);
        Step::Table(Table { level, number, frame, parent })
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let chunk = self.find_chunk()?;
        let (l3, l2) = (chunk >> (L3_SHIFT - CHUNK_SHIFT), chunk >> (L2_SHIFT - CHUNK_SHIFT));
        let Some((_, l3_table)) = self.edge.l3.filter(|(number, _)| *number == l3) else {
            let step = self.take(Level::L3, l3, Parent::Root);
            self.edge.l3 = Some((l3, loose(step)));
            return Some(step);
        };
        let Some((_, l2_table)) = self.edge.l2.filter(|(number, _)| *number == l2) else {
            let step = self.take(Level::L2, l2, l3_table);
            self.edge.l2 = Some((l2, loose(step)));
            return Some(step);
        };
        self.chunk += 1;
        match l2_table {
            Parent::Loose(parent) if chunk < shared_chunks(self.memory) => {
                Some(Step::Share { number: chunk, parent })
            }
            _ => Some(self.take(Level::L1, chunk, l2_table)),
        }
    }
}

const fn loose(step: Step) -> Parent {
    match step {
        Step::Table(table) => Parent::Loose(table.frame),
        Step::Share { parent, .. } => Parent::Loose(parent),
    }
}
