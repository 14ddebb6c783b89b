//! Reading page tables, live or loose.

use core::fmt;

use hypercall::{Entry, FrameAccess, GuestVa, Level, Pfn, Pte, Slot};

use crate::context::Context;
use crate::error::WalkError;

/// One entry on the way from the root to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Level of the table.
    pub level: Level,
    /// The table.
    pub table: Pfn,
    /// The place of the entry, in the machine's terms.
    pub slot: Slot,
    /// The entry.
    pub pte: Pte,
}

/// What the tables say of an address: the entries from the root down to the leaf, or to the first
/// that is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    steps: [Option<Step>; 4],
}

impl Walk {
    /// The entries met, root first.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.steps.iter().flatten().copied()
    }

    /// The entry met in the table of `level`, if the walk got there.
    #[must_use]
    pub fn at(&self, level: Level) -> Option<Step> {
        self.steps().find(|step| step.level == level)
    }

    /// The last entry met.
    #[must_use]
    pub fn last(&self) -> Option<Step> {
        self.steps().last()
    }

    /// The place and value of the L1 entry, present or not, if there is an L1 table.
    #[must_use]
    pub fn leaf(&self) -> Option<(Slot, Pte)> {
        self.at(Level::L1).map(|step| (step.slot, step.pte))
    }
}

/// A line for each entry: level, place, value.
impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.steps() {
            writeln!(
                f,
                "  {} pfn {} mfn {} slot {:>3}: {}",
                step.level,
                step.table,
                step.slot.table,
                u16::from(step.slot.index),
                step.pte
            )?;
        }
        Ok(())
    }
}

/// Walks the tree under `root` to the entry for `va`. Reads what stands in the tables now: of what
/// is pending in a section of that tree it knows nothing, [`Edit::walk`](crate::Edit::walk) does.
///
/// # Errors
/// [`WalkError`] if a table cannot be read, or an entry points to a frame that is not the guest's.
/// An absent entry is no error: the walk ends there. So it does at a superpage, which only the dom0
/// builder makes.
///
/// # Hypercalls
/// None.
pub fn walk<M: FrameAccess>(
    context: &Context<'_, M>,
    root: Pfn,
    va: GuestVa,
) -> Result<Walk, WalkError> {
    let mut steps = [None; 4];
    let mut table = root;
    for (place, level) in steps.iter_mut().zip(Level::TOP_DOWN) {
        let index = level.index_of(va);
        let pte = context.machine.read_entry(table, index)?;
        *place = Some(Step { level, table, slot: context.slot(table, index)?, pte });
        match pte.decode(level) {
            Entry::Table(mfn) => table = context.p2m.pfn(context.machine, mfn)?,
            Entry::Absent | Entry::Leaf(_) => break,
        }
    }
    Ok(Walk { steps })
}
