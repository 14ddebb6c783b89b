//! The map as runs of pfns of one kind, and in numbers.

use core::fmt;

use hypercall::{Mfn, Pfn};

use crate::entry::{P2mEntry, is_shared};
use crate::map::{P2m, Pfns};

/// Words in a page of the list.
pub(crate) const LEAF_WORDS: u64 = 512;

/// What the pfns of a run have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// The kind of frame. Foreign frames of two owners are two kinds.
    Kind,
    /// The kind of frame, and consecutive machine frames.
    Frames,
}

/// Consecutive pfns of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The pfns.
    pub pfns: Pfns,
    /// The entry of the first one.
    pub first: P2mEntry,
}

/// Runs of the map, in order. They may or may not show what another vCPU changes meanwhile.
///
/// A page that holes share takes one step. So a sparse map costs as much as what it holds, and one
/// step for every 512 pfns of holes.
#[derive(Clone, Debug)]
pub struct MapRuns<'p, 'a> {
    p2m: &'p P2m<'a>,
    next: u64,
    end: u64,
    grain: Grain,
}

/// Returns the pfns of one word, or of one shared page of words.
pub(crate) fn step(p2m: &P2m<'_>, pfn: u64, end: u64) -> Option<(P2mEntry, u64)> {
    let word = p2m.word(Pfn::new(pfn)).ok()?;
    let pages_end = if is_shared(word) { (pfn / LEAF_WORDS + 1) * LEAF_WORDS } else { pfn + 1 };
    Some((P2mEntry::decode(word), pages_end.min(end) - pfn))
}

impl Iterator for MapRuns<'_, '_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.next >= self.end {
            return None;
        }
        let start = Pfn::new(self.next);
        let (first, mut count) = step(self.p2m, self.next, self.end)?;
        while start.raw() + count < self.end {
            let Some((entry, more)) = step(self.p2m, start.raw() + count, self.end) else { break };
            if !continues(first, count, entry, self.grain) {
                break;
            }
            count += more;
        }
        self.next = start.raw() + count;
        Some(Run { pfns: Pfns::new(start, count), first })
    }
}

/// Returns whether `entry`, `offset` pfns behind the first of a run, belongs to it.
fn continues(first: P2mEntry, offset: u64, entry: P2mEntry, grain: Grain) -> bool {
    let follows = |a: Mfn, b: Mfn| grain == Grain::Kind || a.checked_add(offset) == Some(b);
    match (first, entry) {
        (P2mEntry::Ram(a), P2mEntry::Ram(b)) => follows(a, b),
        (P2mEntry::Absent, P2mEntry::Absent) | (P2mEntry::Identity, P2mEntry::Identity) => true,
        (P2mEntry::Foreign { owner: of_a, mfn: a }, P2mEntry::Foreign { owner: of_b, mfn: b }) => {
            of_a == of_b && follows(a, b)
        }
        _ => false,
    }
}

impl<'a> P2m<'a> {
    /// Returns the runs of `pfns`, up to the end of the map.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use p2m::P2m;
    /// use p2m::runs::Grain;
    ///
    /// let list = [0x203, 0x204, u64::MAX, 0x999].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(p2m.runs(p2m.all(), Grain::Kind).count(), 3); // memory, a hole, memory
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    #[must_use]
    pub fn runs(&self, pfns: Pfns, grain: Grain) -> MapRuns<'_, 'a> {
        MapRuns { p2m: self, next: pfns.start.raw(), end: pfns.end().min(self.len()), grain }
    }

    /// Returns the runs of foreign frames: what other domains have lent, and where.
    pub fn foreign(&self) -> impl Iterator<Item = Run> {
        let is_foreign = |run: &Run| matches!(run.first, P2mEntry::Foreign { .. });
        self.runs(self.all(), Grain::Kind).filter(is_foreign)
    }
}

/// The number of pfns of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The guest's own memory.
    pub ram: u64,
    /// Pfns without anything.
    pub absent: u64,
    /// Holes for devices.
    pub identity: u64,
    /// Frames of other domains.
    pub foreign: u64,
}

impl Census {
    /// Counts `pfns`.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use p2m::P2m;
    /// use p2m::runs::Census;
    ///
    /// let list = [0x203, 0x204, u64::MAX, 0x999].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let census = Census::of(&p2m, p2m.all());
    /// assert_eq!(census.to_string(), "4 pfns: 3 ram, 1 absent, 0 identity, 0 foreign");
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    #[must_use]
    pub fn of(p2m: &P2m<'_>, pfns: Pfns) -> Self {
        let mut census = Self::default();
        for run in p2m.runs(pfns, Grain::Kind) {
            census.add(run.first, run.pfns.count);
        }
        census
    }

    pub(crate) const fn add(&mut self, entry: P2mEntry, count: u64) {
        match entry {
            P2mEntry::Ram(_) => self.ram += count,
            P2mEntry::Absent => self.absent += count,
            P2mEntry::Identity => self.identity += count,
            P2mEntry::Foreign { .. } => self.foreign += count,
        }
    }

    /// Returns the number of pfns counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.ram + self.absent + self.identity + self.foreign
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ram, absent, identity, foreign } = self;
        let total = self.total();
        write!(
            f,
            "{total} pfns: {ram} ram, {absent} absent, {identity} identity, {foreign} foreign"
        )
    }
}
