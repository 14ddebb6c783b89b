//! Reading page tables, live or loose.

use core::fmt;

use hypercall::{
    ENTRIES, Entry, FrameAccess, GuestVa, Level, Mfn, PAGE_SIZE, Pfn, Pte, PteFlags, Slot,
};

use crate::context::Context;
use crate::error::{MapError, WalkError};
use crate::marks::{FOREIGN, MARKS, SHARED};
use crate::pages::Pages;
use crate::pgd::Pgd;

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
///
/// ```
/// # use hypercall::{GuestVa, Level};
/// # use pv_tests::guest::Guest;
/// # use pvmmu::{Pages, walk};
/// let va = GuestVa::new(0x40_0000)?;
/// let (pgd, tools) = Guest::with_pinned(Pages::one(va));
/// let found = walk(&tools.context, pgd.root(), va)?;
/// assert_eq!(found.steps().count(), 4);
/// let (slot, entry) = found.leaf().ok_or("there is a table")?;
/// assert!(entry.is_present());
/// assert_eq!(found.at(Level::L1).map(|step| step.slot), Some(slot));
/// println!("{found}"); // a line for each table on the way
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

/// Whose frame a page maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// The address space's own.
    Own(Pfn),
    /// One that other address spaces map, too, since a fork.
    Shared(Pfn),
    /// One that is not the guest's, or that P2M does not confirm.
    Foreign(Mfn),
}

impl Mapped {
    fn of<M: FrameAccess>(context: &Context<'_, M>, pte: Pte) -> Self {
        match context.p2m.pfn(context.machine, pte.mfn()) {
            Ok(pfn) if pte.flags().contains(SHARED) => Self::Shared(pfn),
            Ok(pfn) if !pte.flags().contains(FOREIGN) => Self::Own(pfn),
            _ => Self::Foreign(pte.mfn()),
        }
    }

    /// The frame, if it is the guest's.
    #[must_use]
    pub const fn pfn(self) -> Option<Pfn> {
        match self {
            Self::Own(pfn) | Self::Shared(pfn) => Some(pfn),
            Self::Foreign(_) => None,
        }
    }
}

/// A page, and what it maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address of the page.
    pub va: GuestVa,
    /// The frame.
    pub frame: Mapped,
    /// The entry's flags, as Xen and the CPU have left them, without what this crate notes there.
    pub flags: PteFlags,
}

impl<S> Pgd<S> {
    /// What is mapped at the page that `va` is in; `None` if nothing is.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Walk`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::GuestVa;
    /// # use pv_tests::guest::Guest;
    /// # use pvmmu::Pages;
    /// let va = GuestVa::new(0x40_0000)?;
    /// let (pgd, tools) = Guest::with_pinned(Pages::one(va));
    /// let page = pgd.translate(&tools.context, GuestVa::new(0x40_0123)?)?.ok_or("it is mapped")?;
    /// assert_eq!(page.va, va);
    /// assert_eq!(pgd.translate(&tools.context, GuestVa::new(0x80_0000)?)?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate<M: FrameAccess>(
        &self,
        context: &Context<'_, M>,
        va: GuestVa,
    ) -> Result<Option<Mapping>, MapError> {
        let page = GuestVa::new(va.raw() & !(PAGE_SIZE as u64 - 1));
        let page = Pages::one(page.map_err(|_| MapError::KernelHalf(va))?);
        let mut found = None;
        self.translate_pages(context, page, &mut |mapping| found = Some(mapping))?;
        Ok(found)
    }

    /// Calls `found` for every page of `pages` that is mapped, in order of address.
    ///
    /// # Errors
    /// As for [`walk`](Self::walk).
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::GuestVa;
    /// # use pv_tests::guest::Guest;
    /// # use pvmmu::Pages;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, tools) = Guest::with_pinned(pages);
    /// let (mut count, around) = (0, Pages { count: 1000, ..pages });
    /// pgd.translate_pages(&tools.context, around, &mut |_| count += 1)?;
    /// assert_eq!(count, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate_pages<M: FrameAccess>(
        &self,
        context: &Context<'_, M>,
        pages: Pages,
        found: &mut impl FnMut(Mapping),
    ) -> Result<(), MapError> {
        self.walk(context, pages, &mut |va, step| {
            if step.level == Level::L1 {
                let frame = Mapped::of(context, step.pte);
                found(Mapping { va, frame, flags: step.pte.flags().difference(MARKS) });
            }
        })
    }

    /// Calls `met` for every present entry, of tables of all levels, that has to do with `pages`,
    /// with the first address that it spans: in order of address, upper ones first. Nothing is read
    /// of tables that are missing.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Walk`]; what is in front of
    /// the table that cannot be read has been told of.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, Level};
    /// # use pv_tests::guest::Guest;
    /// # use pvmmu::Pages;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, tools) = Guest::with_pinned(pages);
    /// let mut met = Vec::new();
    /// pgd.walk(&tools.context, pages, &mut |_, step| met.push(step.level))?;
    /// assert_eq!(met[..3], [Level::L4, Level::L3, Level::L2]);
    /// assert_eq!(met[3..], [Level::L1; 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk<M: FrameAccess>(
        &self,
        context: &Context<'_, M>,
        pages: Pages,
        met: &mut impl FnMut(GuestVa, Step),
    ) -> Result<(), MapError> {
        pages.check()?;
        let Some(last) = pages.count.checked_sub(1) else { return Ok(()) };
        let ends = (pages.start, pages.at(last)?);
        Ok(walk_below(context, (Level::L4, self.root()), ends, met)?)
    }
}

/// The entries of a table, and of those below, for the addresses from the first to the last, all of
/// which the table spans.
fn walk_below<M: FrameAccess>(
    context: &Context<'_, M>,
    (level, table): (Level, Pfn),
    (first, last): (GuestVa, GuestVa),
    met: &mut impl FnMut(GuestVa, Step),
) -> Result<(), WalkError> {
    let span = 1u64 << level.shift();
    let base = first.raw() & !((span << 9) - 1);
    let index = |va| u16::from(level.index_of(va));
    let mut slots = index(first)..index(last) + 1;
    debug_assert!(slots.end <= ENTRIES);
    while let Some((at, pte)) = context.machine.next_present(table, slots.clone())? {
        slots.start = u16::from(at) + 1;
        let start = base + u64::from(u16::from(at)) * span;
        let Ok(va) = GuestVa::new(start) else { continue };
        met(va, Step { level, table, slot: context.slot(table, at)?, pte });
        let (Entry::Table(mfn), Some(below)) = (pte.decode(level), level.below()) else { continue };
        let child = context.p2m.pfn(context.machine, mfn)?;
        let end = GuestVa::new(start + span - 1).map_or(last, |end| end.min(last));
        walk_below(context, (below, child), (va.max(first), end), met)?;
    }
    Ok(())
}
