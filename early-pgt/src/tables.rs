//! The tables of a round, in the order in which frames of the buffer become tables.

use hypercall::{Level, Pfn};

use crate::memory::BootMemory;
use crate::plan::{RoundPlan, shared_chunks};
use crate::spans::{CHUNK_SHIFT, L2_SHIFT, L3_SHIFT, touches};

/// What a table hangs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A table of the same round, not yet live: linked by a plain store.
    Loose(Pfn),
    /// A live table of an earlier round, to be found in the running tree: linked by Xen.
    Live,
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

/// The steps of a round, parents before children.
#[derive(Clone, Debug)]
pub(crate) struct Steps<'m> {
    memory: &'m BootMemory<'m>,
    round: RoundPlan,
    before: &'m [RoundPlan],
    /// The first region that may have chunks left.
    region: usize,
    /// The next chunk to look at.
    chunk: u64,
    next_frame: Pfn,
    /// The L3 and L2 table that the last chunk was under, by number.
    l3: Option<(u64, Parent)>,
    l2: Option<(u64, Parent)>,
}

impl<'m> Steps<'m> {
    pub(crate) const fn new(
        memory: &'m BootMemory<'m>,
        round: RoundPlan,
        before: &'m [RoundPlan],
    ) -> Self {
        let chunk = round.maps.start.raw() >> CHUNK_SHIFT;
        let next_frame = round.buffer.start;
        Self { memory, round, before, region: 0, chunk, next_frame, l3: None, l2: None }
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

    /// A table of this round, which the steps behind it hang in.
    fn take(&mut self, level: Level, number: u64, parent: Parent) -> Table {
        let frame = self.next_frame;
        self.next_frame = Pfn::new(frame.raw() + 1);
        Table { level, number, frame, parent }
    }

    /// Whether an earlier round made the table that spans block `number`.
    fn is_live(&self, shift: u32, number: u64) -> bool {
        let mapped = self.before.iter().map(|round| round.maps);
        touches(self.memory.regions, mapped, (shift, number))
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let chunk = self.find_chunk()?;
        let (l3, l2) = (chunk >> (L3_SHIFT - CHUNK_SHIFT), chunk >> (L2_SHIFT - CHUNK_SHIFT));
        let l3_table = match self.l3 {
            Some((number, table)) if number == l3 => table,
            _ if self.is_live(L3_SHIFT, l3) => Parent::Live,
            _ => {
                let table = self.take(Level::L3, l3, Parent::Root);
                self.l3 = Some((l3, Parent::Loose(table.frame)));
                return Some(Step::Table(table));
            }
        };
        self.l3 = Some((l3, l3_table));
        let l2_table = match self.l2 {
            Some((number, table)) if number == l2 => table,
            _ if self.is_live(L2_SHIFT, l2) => Parent::Live,
            _ => {
                let table = self.take(Level::L2, l2, l3_table);
                self.l2 = Some((l2, Parent::Loose(table.frame)));
                return Some(Step::Table(table));
            }
        };
        self.l2 = Some((l2, l2_table));
        self.chunk += 1;
        match l2_table {
            Parent::Loose(parent) if chunk < shared_chunks(self.memory) => {
                Some(Step::Share { number: chunk, parent })
            }
            _ => Some(Step::Table(self.take(Level::L1, chunk, l2_table))),
        }
    }
}
