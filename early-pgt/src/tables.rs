//! The tables of a round, in the order in which frames of its buffer become tables.

use hypercall::{Level, Pfn};
use p2m::Pfns;

use crate::memory::BootMemory;
use crate::spans::{CHUNK_SHIFT, L2_SHIFT, L3_SHIFT, NO_PFNS};

/// One round: tables that are filled, protected and linked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundPlan {
    /// The pfns that the direct map shows after this round and did not before.
    pub maps: Pfns,
    /// The table buffer, `[start, top)`: frames that are mapped already.
    pub buffer: Pfns,
    /// How many of them become tables: `[start, end)`.
    pub tables: u64,
}

impl RoundPlan {
    pub(crate) const NONE: Self = Self { maps: NO_PFNS, buffer: NO_PFNS, tables: 0 };

    /// Returns the frames that become tables.
    #[must_use]
    pub const fn used(&self) -> Pfns {
        Pfns::new(self.buffer.start, self.tables)
    }
}

/// A table of a round, and so a step of making it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedTable {
    /// Its level.
    pub level: Level,
    /// Its number from the direct map's first address on: its first pfn divided by the pfns that a
    /// table of this level spans.
    pub number: u64,
    /// The frame of the buffer that becomes the table. `None` for the L1 table of this number in
    /// the builder's mapping, which becomes part of the direct map as it is.
    pub frame: Option<Pfn>,
    /// The table of the same round in which a plain store links it. `None` if the root or a table
    /// of an earlier round is its parent: Xen links it there.
    pub parent: Option<Pfn>,
}

/// A table above the last chunk.
#[derive(Clone, Copy, Debug)]
struct Above {
    /// Its number.
    number: u64,
    /// Its frame, if it is one of this round's.
    loose: Option<Pfn>,
}

/// The tables of a round, parents before children.
#[derive(Clone, Debug)]
pub(crate) struct Steps<'m> {
    memory: &'m BootMemory<'m>,
    round: RoundPlan,
    before: &'m [RoundPlan],
    /// The first region that may have chunks left.
    region: usize,
    /// The next chunk to consider.
    chunk: u64,
    next_frame: Pfn,
    l3: Option<Above>,
    l2: Option<Above>,
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

    /// Returns the next chunk of the round that has something to map.
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

    /// Makes a step of the next frame.
    fn take(&mut self, level: Level, number: u64, parent: Option<Pfn>) -> PlannedTable {
        let frame = self.next_frame;
        self.next_frame = Pfn::new(frame.raw() + 1);
        PlannedTable { level, number, frame: Some(frame), parent }
    }

    /// Returns whether an earlier round made the table that spans block `number`.
    fn is_live(&self, shift: u32, number: u64) -> bool {
        self.memory.touches(shift, number, self.before.iter().map(|round| round.maps))
    }
}

impl Iterator for Steps<'_> {
    type Item = PlannedTable;

    fn next(&mut self) -> Option<PlannedTable> {
        let chunk = self.find_chunk()?;
        let (l3, l2) = (chunk >> (L3_SHIFT - CHUNK_SHIFT), chunk >> (L2_SHIFT - CHUNK_SHIFT));
        let l3_table = match self.l3 {
            Some(Above { number, loose }) if number == l3 => loose,
            _ if self.is_live(L3_SHIFT, l3) => None,
            _ => {
                let table = self.take(Level::L3, l3, None);
                self.l3 = Some(Above { number: l3, loose: table.frame });
                return Some(table);
            }
        };
        self.l3 = Some(Above { number: l3, loose: l3_table });
        let l2_table = match self.l2 {
            Some(Above { number, loose }) if number == l2 => loose,
            _ if self.is_live(L2_SHIFT, l2) => None,
            _ => {
                let table = self.take(Level::L2, l2, l3_table);
                self.l2 = Some(Above { number: l2, loose: table.frame });
                return Some(table);
            }
        };
        self.l2 = Some(Above { number: l2, loose: l2_table });
        self.chunk += 1;
        if l2_table.is_some() && chunk < self.memory.shared_chunks() {
            let (level, frame) = (Level::L1, None);
            return Some(PlannedTable { level, number: chunk, frame, parent: l2_table });
        }
        Some(self.take(Level::L1, chunk, l2_table))
    }
}
