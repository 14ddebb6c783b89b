//! Ends an address space.
//!
//! Tables from the pool go back to it as they came, empty and validated. Their entries are cleared
//! one by one if they are few, and a full table is taken out as a whole. The rest is unpinned at
//! once, made writable, and given back by plain reading.

use core::fmt;

use hypercall::{Entry, FrameSource, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte, Slot, VcpuSet};
use x86_64::structures::paging::PageTableIndex;

use crate::cost::{COSTS, Population, Strategy};
use crate::doubt::Doubt;
use crate::edit::Edit;
use crate::entries::{EMPTY, Entries};
use crate::map_error::MapError;
use crate::marks::{Held, held};
use crate::pgd::{Holds, Loose, Pgd, Pinned};
use crate::pin::{PinError, unpin};
use crate::pool::TablePool;
use crate::room::Room;
use crate::tables::{Part, Place, Present, Step};
use crate::teardown::empty;
use crate::tools::Tools;
use crate::vcpus::Vcpus;
use p2m::{Guest, WalkError};

/// An address space that was not taken apart.
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub enum DestroyError {
    /// These vCPUs run on it. Nothing has changed.
    Running(Pgd<Pinned>, VcpuSet),
    /// It is still pinned. Some of its pages are gone.
    Pinned(Pgd<Pinned>, MapError),
    /// It is still pinned. Its pages are gone from all tables that are pinned by themselves.
    NotUnpinned(PinError<Pinned>),
    /// It is unpinned, and one of its tables could not be read or written. Some of its pages and
    /// tables are gone. [`Pgd::destroy`] takes the rest apart, which is plain memory.
    Loose(Pgd<Loose>, WalkError),
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not taken apart: ")?;
        match self {
            Self::Running(pgd, vcpus) => {
                write!(f, "vCPUs {vcpus} run on root pfn {}: load another there", pgd.root())
            }
            Self::Pinned(_, error) => error.fmt(f),
            Self::NotUnpinned(error) => error.fmt(f),
            Self::Loose(_, error) => write!(f, "it is unpinned, but {error}"),
        }
    }
}

impl core::error::Error for DestroyError {}

impl DestroyError {
    /// Returns the address space, if it is still pinned.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let running = [Running::nowhere()];
    /// let vcpus = unsafe { Vcpus::new(&running) };
    /// unsafe { vcpus.load(&tools.guest, 0, &pgd) }?;
    /// let refused = vcpus.destroy(pgd, &mut tools).unwrap_err(); // vCPU 0 runs on it
    /// let pgd = refused.into_pgd().ok_or("it is gone")?;
    /// unsafe { vcpus.leave(&tools.guest, 0) }?;
    /// vcpus.destroy(pgd, &mut tools)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_pgd(self) -> Option<Pgd<Pinned>> {
        match self {
            Self::Running(pgd, _) | Self::Pinned(pgd, _) => Some(pgd),
            Self::NotUnpinned(error) => Some(error.pgd),
            Self::Loose(..) => None,
        }
    }
}

impl Pgd<Pinned> {
    /// Takes the address space apart: tables from the pool go back to it, and everything else goes
    /// to the frames of the tools. No vCPU may run on it.
    ///
    /// # Errors
    /// [`DestroyError`] with the address space, which can be destroyed again.
    ///
    /// # Hypercalls
    /// For n pages and H tables in tables from the pool, T other tables and a batch of B updates:
    /// ceil((n + H) / B) multicalls, or one more for each table from the pool that is taken out as
    /// a whole; one `mmuext_op`; ceil(T / B) `mmu_update`.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, mut tools) = TestGuest::with_pinned(pages); // eight pages, pinned
    /// let before = tools.frames.source.count();
    /// pgd.destroy(&mut tools)?;
    /// assert_eq!(tools.frames.source.count(), before + 8 + 4); // pages, and tables
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn destroy<M: Machine, F: FrameSource>(
        mut self,
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<(), DestroyError> {
        let roots = self.roots();
        let ready = Room::check(&tools.batch)
            .map_err(MapError::from)
            .and_then(|()| self.put_right(&tools.guest).map_err(MapError::from))
            .and_then(|()| self.begin_to_release(&tools.guest, &mut tools.frames));
        if let Err(error) = ready {
            return Err(DestroyError::Pinned(self, error));
        }
        let holds = self.holds;
        let mut edit = Edit::begin(&mut self, tools);
        let mut strip = Strip { entries: EMPTY, linked: 0 };
        let root = Node { level: Level::L4, table: roots.kernel, base: 0, end: End::Dropped };
        let stripped = match holds {
            Holds::Nothing => Ok(()),
            Holds::Tables => strip.below(&mut edit, root).and_then(|()| edit.submit()),
        };
        if let Err(error) = stripped {
            edit.abandon();
            return Err(DestroyError::Pinned(self, error));
        }
        let mut none = TablePool::none();
        let Tools { guest, batch, pool, frames, .. } = tools;
        let pool = pool.as_deref_mut().unwrap_or(&mut none);
        match unpin(guest, roots, holds, Level::L2, batch) {
            Ok(released) => pool.note_not_returned(released),
            Err(refused) => {
                return Err(DestroyError::NotUnpinned(self.not_unpinned(guest, refused)));
            }
        }
        // INVARIANT: I-5: only empty L1 tables, which go to the pool now, are still pinned by
        // themselves.
        let returned = pool.counts().returned;
        if let Err(error) = empty(guest, Level::L4, roots.kernel, roots.user, pool, frames) {
            pool.note_not_returned(strip.linked - (pool.counts().returned - returned));
            // INVARIANT: I-5: those that are left become plain memory before anything else.
            Doubt::TABLES.note(&mut self.doubt);
            self.holds = Holds::Nothing;
            return Err(DestroyError::Loose(self.into_state(), error));
        }
        let frames = frames.of_tables();
        frames.give(self.root);
        self.user_root.into_iter().for_each(|root| frames.give(root));
        Ok(())
    }
}

impl Vcpus<'_> {
    /// Takes an address space apart, as [`Pgd::destroy`] does, if no vCPU runs on it.
    ///
    /// # Errors
    /// [`DestroyError::Running`] if one runs on it, and nothing has changed; others as for
    /// [`Pgd::destroy`].
    ///
    /// # Hypercalls
    /// As for [`Pgd::destroy`]; none if a vCPU runs on it.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let running = [Running::nowhere()];
    /// unsafe { Vcpus::new(&running) }.destroy(pgd, &mut tools)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn destroy<M: Machine, F: FrameSource>(
        self,
        pgd: Pgd<Pinned>,
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<(), DestroyError> {
        let running = self.on(&pgd);
        if !running.is_empty() {
            return Err(DestroyError::Running(pgd, running));
        }
        pgd.destroy(tools)
    }
}

/// An upper table on the way down.
#[derive(Clone, Copy)]
struct Node {
    level: Level,
    table: Pfn,
    /// The first address that it spans.
    base: u64,
    /// How it ends.
    end: End,
}

/// How an upper table ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything is unlinked from it, and it stays validated.
    Emptied,
    /// It ends with the root, when that is unpinned. L1 tables that are pinned by themselves stay
    /// linked in it until then.
    Dropped,
}

/// What happens to a tree before it is unpinned.
struct Strip {
    /// Room for a table.
    entries: Entries,
    /// L1 tables from the pool that are empty now, and still linked.
    linked: u64,
}

impl Strip {
    /// Empties every L1 table below `node` that is pinned by itself. Unlinks every table from those
    /// that the pool will keep.
    fn below<M: Machine, F: FrameSource>(
        &mut self,
        edit: &mut Edit<'_, '_, '_, M, F>,
        Node { level, table, base, end }: Node,
    ) -> Result<(), MapError> {
        let Some(below) = level.below() else { return Ok(()) };
        let guest = edit.guest();
        let mut present = Present::of(level, table);
        while let Some((index, pte)) = present.next(&guest)? {
            let Entry::Table(mfn) = pte.decode(level) else { continue };
            let child = guest.pfn(mfn).map_err(WalkError::from)?;
            let base = base + (u64::from(index) << level.shift());
            let child_is_held = held(pte).is_some();
            let unlinks = if below > Level::L1 {
                let child_end = match end {
                    End::Emptied => End::Emptied,
                    End::Dropped => end_of(&guest, below, child, pte)?,
                };
                self.below(edit, Node { level: below, table: child, base, end: child_end })?;
                child_end == End::Emptied
            } else if child_is_held || end == End::Emptied {
                let va = GuestVa::new(base).map_err(|_| MapError::OutOfFrames)?;
                let way = if child_is_held { clear_l1(edit, child, va)? } else { Strategy::Table };
                if way == Strategy::Table {
                    let first = PageTableIndex::new(0);
                    guest.machine().read_entries(child, first, &mut self.entries)?;
                    edit.take_out(child, va, &self.entries)?;
                } else if end == End::Dropped && matches!(held(pte), Some(Held::Pooled(_))) {
                    self.linked += 1;
                }
                way == Strategy::Entries && end == End::Emptied
            } else {
                false
            };
            if unlinks {
                edit.unlink(level, table, index, pte)?;
            }
        }
        Ok(())
    }
}

/// Returns how the upper table behind `link` ends. Only one that is pinned by itself can be kept,
/// with few tables in it, and only if the upper tables in it are kept, too.
fn end_of<M: Machine>(
    guest: &Guest<'_, M>,
    level: Level,
    table: Pfn,
    link: Pte,
) -> Result<End, WalkError> {
    if held(link).is_none() {
        return Ok(End::Dropped);
    }
    // Tables in the one that is read, by its level.
    let (mut tables, mut end) = ([0; 5], End::Emptied);
    Part::one_table(level, table, 0).above(Level::L1).entries(
        guest,
        &mut |Place { level, pte, .. }| {
            let at = level as usize;
            tables[at] += 1;
            tables[at - 1] = 0;
            let is_few = COSTS.to_end_upper(tables[at]) == Strategy::Entries;
            if is_few && (level == Level::L2 || held(pte).is_some()) {
                return Ok::<_, WalkError>(Step::Into);
            }
            end = End::Dropped;
            Ok(Step::Out)
        },
    )?;
    Ok(end)
}

/// More entries than are ever cleared one by one when a table ends.
const FEW: u16 = 96;

/// Clears the entries of an L1 table that is pinned by itself, if that is the cheaper way to end
/// it. Returns which way is.
fn clear_l1<M: Machine, F: FrameSource>(
    edit: &mut Edit<'_, '_, '_, M, F>,
    table: Pfn,
    va: GuestVa,
) -> Result<Strategy, MapError> {
    let guest = edit.guest();
    let mut few = [0u16; FEW as usize];
    let mut before = Population::default();
    let mut present = Present::of(Level::L1, table);
    while let Some((index, pte)) = present.next(&guest)? {
        let Some(place) = few.get_mut(usize::from(before.total())) else {
            return Ok(Strategy::Table);
        };
        *place = index.into();
        if pte.is_writable() {
            before.writable += 1;
        } else {
            before.read_only += 1;
        }
    }
    let way = COSTS.to_clear(before.total(), before, Population::default());
    if way == Strategy::Entries {
        let mfn = guest.mfn(table)?;
        for index in &few[..usize::from(before.total())] {
            let index = PageTableIndex::new_truncate(*index);
            let pte = guest.machine().read_entry(table, index)?;
            let update = MmuUpdate::set(Slot { table: mfn, index }, Pte::ABSENT);
            edit.clear_entry(va, update, pte)?;
        }
    }
    Ok(way)
}

const _: () = {
    let few = Population { writable: FEW, read_only: 0 };
    let nothing = Population { writable: 0, read_only: 0 };
    assert!(matches!(COSTS.to_clear(FEW, few, nothing), Strategy::Table));
};
