//! What is mapped in an address space.

use hypercall::{ENTRIES, Entry, FrameAccess, GuestVa, Level, Mfn, PAGE_SIZE, Pfn, Pte, PteFlags};
use p2m::{Guest, TableEntry, WalkError};

use crate::map_error::MapError;
use crate::marks::{FOREIGN, MARKS, SHARED};
use crate::pages::Pages;
use crate::pgd::Pgd;

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
    fn of<M: FrameAccess>(guest: &Guest<'_, M>, pte: Pte) -> Self {
        match guest.pfn(pte.mfn()) {
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
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::Pages;
    /// let va = GuestVa::new(0x40_0000)?;
    /// let (pgd, tools) = TestGuest::with_pinned(Pages::one(va));
    /// let page = pgd.translate(&tools.guest, GuestVa::new(0x40_0123)?)?.ok_or("it is mapped")?;
    /// assert_eq!(page.va, va);
    /// assert_eq!(pgd.translate(&tools.guest, GuestVa::new(0x80_0000)?)?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        va: GuestVa,
    ) -> Result<Option<Mapping>, MapError> {
        let page = GuestVa::new(va.raw() & !(PAGE_SIZE as u64 - 1));
        let page = Pages::one(page.map_err(|_| MapError::KernelHalf(va))?);
        let mut found = None;
        self.translate_pages(guest, page, &mut |mapping| found = Some(mapping))?;
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
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::Pages;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, tools) = TestGuest::with_pinned(pages);
    /// let (mut count, around) = (0, Pages { count: 1000, ..pages });
    /// pgd.translate_pages(&tools.guest, around, &mut |_| count += 1)?;
    /// assert_eq!(count, 8);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate_pages<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        pages: Pages,
        found: &mut impl FnMut(Mapping),
    ) -> Result<(), MapError> {
        self.walk(guest, pages, &mut |va, step| {
            if step.level == Level::L1 {
                let frame = Mapped::of(guest, step.pte);
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
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::Pages;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, tools) = TestGuest::with_pinned(pages);
    /// let mut met = Vec::new();
    /// pgd.walk(&tools.guest, pages, &mut |_, step| met.push(step.level))?;
    /// assert_eq!(met[..3], [Level::L4, Level::L3, Level::L2]);
    /// assert_eq!(met[3..], [Level::L1; 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        pages: Pages,
        met: &mut impl FnMut(GuestVa, TableEntry),
    ) -> Result<(), MapError> {
        pages.check()?;
        let Some(last) = pages.count.checked_sub(1) else { return Ok(()) };
        let last = pages.at(last)?;
        Ok(walk_below(guest, Level::L4, self.root(), pages.start, last, met)?)
    }
}

/// The entries of a table, and of those below, for the addresses from the first to the last, all of
/// which the table spans.
fn walk_below<M: FrameAccess>(
    guest: &Guest<'_, M>,
    level: Level,
    table: Pfn,
    first: GuestVa,
    last: GuestVa,
    met: &mut impl FnMut(GuestVa, TableEntry),
) -> Result<(), WalkError> {
    let span = 1u64 << level.shift();
    let base = first.raw() & !((span << 9) - 1);
    let index = |va| u16::from(level.index_of(va));
    let mut slots = index(first)..index(last) + 1;
    debug_assert!(slots.end <= ENTRIES);
    while let Some((at, pte)) = guest.machine().next_present(table, slots.clone())? {
        slots.start = u16::from(at) + 1;
        let start = base + u64::from(u16::from(at)) * span;
        let Ok(va) = GuestVa::new(start) else { continue };
        met(va, TableEntry { level, table, slot: guest.slot(table, at)?, pte });
        let (Entry::Table(mfn), Some(below)) = (pte.decode(level), level.below()) else { continue };
        let child = guest.pfn(mfn)?;
        let end = GuestVa::new(start + span - 1).map_or(last, |end| end.min(last));
        walk_below(guest, below, child, va.max(first), end, met)?;
    }
    Ok(())
}
