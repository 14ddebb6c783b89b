//! The end of an address space.
//!
//! Tables from the pool go back to it as they came, empty and validated: their entries are cleared one by one while they
//! are few, and a table that is full is taken out as a whole. What is left is unpinned at once, made writable, and
//! handed back by plain reading.

use core::fmt;

use hypercall::{Entry, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte, Slot};
use x86_64::structures::paging::PageTableIndex;

use crate::cost::{COSTS, Population, Way};
use crate::edit::{Edit, Tools, empty_table, population};
use crate::error::{MapError, PinFailure, UndoError, UnpinError, WalkError};
use crate::frames::FrameSource;
use crate::marks::held;
use crate::pgd::{Loose, Pgd, Pinned};
use crate::tables::Present;

/// An address space that was not taken apart, given back.
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub enum DestroyError {
    /// It is pinned still; some of its pages are gone already.
    Pinned(Pgd<Pinned>, MapError),
    /// It is pinned still, and all tables from the pool are gone from it.
    NotUnpinned(Pgd<Pinned>, PinFailure, Result<(), UndoError>),
    /// It is loose; what can still be read is in it.
    Loose(Pgd<Loose>, WalkError),
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not taken apart: ")?;
        match self {
            Self::Pinned(_, error) => error.fmt(f),
            Self::NotUnpinned(_, failure, undo) => {
                failure.fmt(f)?;
                undo.map_or_else(|undo| write!(f, "; {undo}"), Ok)
            }
            Self::Loose(_, error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DestroyError {}

impl Pgd<Pinned> {
    /// Takes the address space apart: tables from the pool go back to it, everything else to the frames of the tools.
    /// No vCPU may run on it; it waits for none.
    ///
    /// # Errors
    /// [`DestroyError`] with what is left. It can be destroyed again.
    ///
    /// # Hypercalls
    /// For n pages and H tables in tables from the pool, T other tables and a batch of B updates:
    /// ceil((n + H) / B) multicalls, or one more for each table from the pool that is taken out as a whole; one
    /// `mmuext_op`; ceil(T / B) `mmu_update`.
    pub fn destroy<M: Machine, F: FrameSource>(
        self,
        tools: &mut Tools<'_, '_, '_, M, F>,
    ) -> Result<(), DestroyError> {
        let roots = self.roots();
        let mut edit = Edit::begin(roots, tools);
        let mut entries = empty_table();
        let root = (Level::L4, roots.kernel, false);
        let stripped = strip(&mut edit, root, 0, &mut entries).and_then(|()| edit.submit());
        if let Err(error) = stripped {
            edit.abandon();
            return Err(DestroyError::Pinned(self, error));
        }
        let context = tools.context;
        let loose = match self.unpin(&context, tools.batch) {
            Ok(loose) => loose,
            Err(UnpinError { pgd, failure, undo }) => {
                return Err(DestroyError::NotUnpinned(pgd, failure, undo));
            }
        };
        loose
            .destroy(&context, tools.frames)
            .map_err(|(pgd, error)| DestroyError::Loose(pgd, error))
    }
}

/// A table: level, frame, and whether it is to be emptied whatever it is.
type Node = (Level, Pfn, bool);

/// Empties and unlinks every table below `node` that is pinned by itself, and every table that is linked in one.
fn strip<M: Machine, F: FrameSource>(
    edit: &mut Edit<'_, '_, '_, '_, M, F>,
    (level, table, is_held): Node,
    base: u64,
    entries: &mut [Pte; 512],
) -> Result<(), MapError> {
    let Some(below) = level.below() else { return Ok(()) };
    let context = edit.context();
    let mut present = Present::of(level, table);
    while let Some((index, pte)) = present.next(&context)? {
        let Entry::Table(mfn) = pte.decode(level) else { continue };
        let child = context.p2m.pfn(context.machine, mfn).map_err(WalkError::from)?;
        let base = base + (u64::from(index) << level.shift());
        let child_is_held = held(pte).is_some();
        if below > Level::L1 {
            let must_go = child_is_held || is_held;
            strip(edit, (below, child, must_go), base, entries)?;
            if must_go {
                if !child_is_held {
                    edit.hold((below, mfn), Slot { table: context.mfn(table)?, index })?;
                }
                edit.unlink((level, table, index), (below, mfn))?;
            }
        } else if child_is_held || is_held {
            let va = GuestVa::new(base).map_err(|_| MapError::OutOfFrames)?;
            let kept =
                if child_is_held { clear_l1(edit, (child, va), entries)? } else { Way::Table };
            match kept {
                Way::Entries => edit.unlink((level, table, index), (below, mfn))?,
                Way::Table => {
                    context.machine.read_entries(child, PageTableIndex::new(0), entries)?;
                    edit.take_out(child, va, entries)?;
                }
            }
        }
    }
    Ok(())
}

/// Clears the entries of an L1 table that is pinned by itself, if that is the cheaper way to end it, and says which way
/// that is.
fn clear_l1<M: Machine, F: FrameSource>(
    edit: &mut Edit<'_, '_, '_, '_, M, F>,
    (table, va): (Pfn, GuestVa),
    entries: &mut [Pte; 512],
) -> Result<Way, MapError> {
    let context = edit.context();
    context.machine.read_entries(table, PageTableIndex::new(0), entries)?;
    let before = population(entries);
    let way = COSTS.to_clear(before.total(), before, Population::default());
    if way == Way::Entries && before.total() > 0 {
        let mfn = context.mfn(table)?;
        for (index, pte) in (0u16..).zip(entries.iter()).filter(|(_, pte)| pte.is_present()) {
            let slot = Slot { table: mfn, index: PageTableIndex::new_truncate(index) };
            edit.clear_entry((va, MmuUpdate::set(slot, Pte::ABSENT)), *pte)?;
        }
    }
    Ok(way)
}
