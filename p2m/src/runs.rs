//! The map as runs of pfns that stand for the same kind of thing, and in numbers.

use core::fmt;

use hypercall::{Mfn, Pfn};

use crate::entry::{P2mEntry, is_shared};
use crate::map::{P2m, Pfns};

/// Words in a page of the list.
pub(crate) const LEAF_WORDS: u64 = 512;

/// What runs are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// One kind of frame; foreign frames of two owners are two kinds.
    Kind,
    /// One kind of frame, and machine frames that follow one another.
    Frames,
}

/// Pfns that stand for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which.
    pub pfns: Pfns,
    /// What the first of them stands for.
    pub first: P2mEntry,
}

/// Runs of the map, in order. What another vCPU changes meanwhile is seen or not.
///
/// Pages that many holes share are passed over in one step, so that a sparse map costs what it
/// holds, and one step for every 512 pfns that it does not.
#[derive(Clone, Debug)]
pub struct Runs<'p, 'a> {
    p2m: &'p P2m<'a>,
    next: u64,
    end: u64,
    grain: Grain,
}

/// Pfns that lie in one word, or in one shared page of words.
pub(crate) fn step(p2m: &P2m<'_>, pfn: u64, end: u64) -> Option<(P2mEntry, u64)> {
    let word = p2m.word(Pfn::new(pfn)).ok()?;
    let pages_end = if is_shared(word) { (pfn / LEAF_WORDS + 1) * LEAF_WORDS } else { pfn + 1 };
    Some((P2mEntry::decode(word), pages_end.min(end) - pfn))
}

impl Iterator for Runs<'_, '_> {
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

/// Returns whether `entry`, `offset` pfns after the first of a run, belongs to it.
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
    /// Returns the runs of `pfns`, as far as the map goes.
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
    pub fn runs(&self, pfns: Pfns, grain: Grain) -> Runs<'_, 'a> {
        Runs { p2m: self, next: pfns.start.raw(), end: pfns.end().min(self.len()), grain }
    }

    /// Returns the runs of foreign frames: what other domains have lent, and where.
    pub fn foreign(&self) -> impl Iterator<Item = Run> {
        let is_foreign = |run: &Run| matches!(run.first, P2mEntry::Foreign { .. });
        self.runs(self.all(), Grain::Kind).filter(is_foreign)
    }
}

/// How many pfns stand for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The guest's own memory.
    pub ram: u64,
    /// Nothing.
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

    /// Returns how many pfns were counted.
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
