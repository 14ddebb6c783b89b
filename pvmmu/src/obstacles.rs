//! The obstacles to a table that Xen refused. They are found by reading all tables of the running
//! root and of the tree, only after a refusal.

use core::fmt;

use hypercall::{Entry, FrameAccess, Level, Mfn, Pfn, RefusableFlag};

use crate::error::PinFailure;
use crate::marks::FOREIGN;
use crate::pgd::Roots;
use crate::tables::{Part, Place, Step};
use p2m::{Guest, WalkError};

/// A mapping for which Xen refuses a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// This entry maps the refused table writable.
    Writable(Place),
    /// This entry of the refused table maps a table of that level writable.
    MapsTable(Place, Level),
    /// This entry of the refused table names a frame that the frame map does not have.
    UnknownFrame(Place),
    /// This entry of the refused table has a flag that Xen refuses to everyone.
    Flag(Place, RefusableFlag),
    /// This entry leads to the refused table, which should no longer be one.
    Links(Place),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writable(place) => write!(f, "{place} maps it writable"),
            Self::MapsTable(place, level) => {
                write!(f, "its {place} maps an {level} table writable")
            }
            Self::UnknownFrame(place) => write!(f, "its {place} names a frame that P2M lacks"),
            Self::Flag(place, flag) => write!(f, "its {place} asks for {flag}"),
            Self::Links(place) => write!(f, "{place} leads to it"),
        }
    }
}

/// A table that may have obstacles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect {
    pub(crate) level: Level,
    pub(crate) pfn: Pfn,
    /// The first address that it will span, unless an entry leads to it already.
    pub(crate) base: u64,
}

/// The most obstacles in an error.
pub const OBSTACLES_MAX: usize = 4;

/// The obstacles of one table: the first ones, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Obstacles {
    first: [Option<Obstacle>; OBSTACLES_MAX],
    count: u64,
}

impl Obstacles {
    /// No obstacles.
    pub(crate) const NONE: Self = Self { first: [None; OBSTACLES_MAX], count: 0 };

    /// Returns how many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the first [`OBSTACLES_MAX`] of them.
    pub fn first(&self) -> impl Iterator<Item = Obstacle> {
        self.first.iter().flatten().copied()
    }

    /// Counts an obstacle. An entry of a table that is linked twice appears at two addresses, but
    /// is one entry to Xen.
    fn add(&mut self, obstacle: Obstacle) {
        let is_same = |known: Obstacle| match (known, obstacle) {
            (Obstacle::Writable(one), Obstacle::Writable(other)) => {
                one.table == other.table && one.index() == other.index()
            }
            _ => false,
        };
        if self.first().any(is_same) {
            return;
        }
        let place = usize::try_from(self.count).ok().and_then(|at| self.first.get_mut(at));
        place.into_iter().for_each(|place| *place = Some(obstacle));
        self.count += 1;
    }

    /// Returns the obstacles of the table that `failure` names, as far as tables can be read.
    pub(crate) fn of<M: FrameAccess>(
        guest: &Guest<'_, M>,
        roots: Roots,
        failure: &PinFailure,
    ) -> Self {
        let mut found = Self::default();
        if let PinFailure::Table { level, pfn, mfn, .. } = *failure {
            found.search(guest, roots, Suspect { level, pfn, base: 0 }, mfn);
        } else if let PinFailure::Root { pfn, mfn, .. } = *failure {
            found.search(guest, roots, Suspect { level: Level::L4, pfn, base: 0 }, mfn);
        }
        found
    }

    /// Returns the first of these tables, lower ones first, that has obstacles, and those; the last
    /// table if none has any.
    pub(crate) fn of_tables<M: FrameAccess>(
        guest: &Guest<'_, M>,
        roots: Roots,
        tables: impl Iterator<Item = Suspect>,
    ) -> Option<(Suspect, Self)> {
        let mut last = None;
        for suspect in tables {
            let mut found = Self::default();
            if let Ok(mfn) = guest.mfn(suspect.pfn) {
                found.search(guest, roots, suspect, mfn);
            }
            last = Some((suspect, found));
            if found.count > 0 {
                break;
            }
        }
        last
    }

    /// Returns the entries, except its own in the tree under `roots`, that lead to the table which
    /// `failure` names, as far as tables can be read.
    pub(crate) fn of_unpin<M: FrameAccess>(
        guest: &Guest<'_, M>,
        roots: Roots,
        failure: &PinFailure,
    ) -> Self {
        let mut found = Self::default();
        let PinFailure::Protect { table, .. } = *failure else { return found };
        let Ok(mfn) = guest.mfn(table) else { return found };
        let is_root = table == roots.kernel || Some(table) == roots.user;
        let mut own_links = u64::from(!is_root);
        let running = Some(guest.kernel_root()).filter(|root| *root != roots.kernel);
        let trees = [Some(Part::user_half(roots.kernel)), running.map(Part::whole)];
        for tree in trees.into_iter().flatten() {
            let is_running = Some(tree.table) == running;
            // As above.
            let _ = tree.above(Level::L1).entries(guest, &mut |place| {
                let leads = place.pte.decode(place.level) == Entry::Table(mfn);
                if leads && (is_running || own_links == 0) {
                    found.add(Obstacle::Links(place));
                } else if leads {
                    own_links -= 1;
                }
                Ok::<_, WalkError>(place.into_known(guest))
            });
        }
        found
    }

    /// Writes the obstacles of a table, or that there are none.
    pub(crate) fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 => f.write_str(
                "; no mapping of the running tree or of this one stands in the way: look for one \
                 in another address space, a grant, or bits that Xen does not allow",
            ),
            count => write!(f, "; {count} in the way: {self}"),
        }
    }

    fn search<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        roots: Roots,
        Suspect { level, pfn: table, mut base }: Suspect,
        mfn: Mfn,
    ) {
        let trees = [Part::whole(guest.kernel_root()), Part::user_half(roots.kernel)];
        for tree in trees {
            // A part that cannot be read is not searched.
            let _ = tree.entries(guest, &mut |place| {
                let leads_to_it = place.pte.mfn() == mfn;
                if leads_to_it && place.level > level {
                    base = place.va.raw();
                }
                if leads_to_it && place.level == Level::L1 && place.pte.is_writable() {
                    self.add(Obstacle::Writable(place));
                }
                Ok::<_, WalkError>(place.into_known(guest))
            });
        }
        let table = match level {
            Level::L4 => Part { lowest: level, ..Part::user_half(table) },
            _ => Part::one_table(level, table, base),
        };
        let _ = table.entries(guest, &mut |place| {
            let missing = guest.machine().missing_flags();
            let flag = RefusableFlag::find(place.pte, Some(level), missing);
            if let Some(flag) = flag.filter(|flag| flag.is_refused_to_all(level)) {
                self.add(Obstacle::Flag(place, flag));
            }
            let known = guest.pfn(place.pte.mfn()).is_ok();
            let is_foreign = level == Level::L1 && place.pte.flags().contains(FOREIGN);
            if !known && !is_foreign {
                self.add(Obstacle::UnknownFrame(place));
            }
            let writes = known && level == Level::L1 && place.pte.is_writable();
            let level = |tree: &Part| table_level(guest, *tree, place.pte.mfn());
            if let (true, Some(level)) = (writes, trees.iter().find_map(level)) {
                self.add(Obstacle::MapsTable(place, level));
            }
            Ok::<_, WalkError>(Step::Over)
        });
    }
}

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, obstacle) in self.first().enumerate() {
            write!(f, "{}{obstacle}", if number == 0 { "" } else { "; " })?;
        }
        match self.count.saturating_sub(OBSTACLES_MAX as u64) {
            0 => Ok(()),
            more => write!(f, "; and {more} more like these"),
        }
    }
}

/// Returns the level of `mfn`, if it is the root or a table of a tree.
pub(crate) fn table_level<M: FrameAccess>(
    guest: &Guest<'_, M>,
    tree: Part,
    mfn: Mfn,
) -> Option<Level> {
    if guest.mfn(tree.table) == Ok(mfn) {
        return Some(Level::L4);
    }
    let mut found = None;
    // As above.
    let _ = tree.above(Level::L1).entries(guest, &mut |place| {
        if place.pte.decode(place.level) == Entry::Table(mfn) {
            found = Some(place.below());
            return Ok(Step::Out);
        }
        Ok::<_, WalkError>(place.into_known(guest))
    });
    found
}
