//! What is mapped in an address space.

use hypercall::{FrameAccess, GuestVa, Level, Mfn, PAGE_SIZE, Pfn, Pte, PteFlags};
use p2m::Guest;

use crate::map_error::MapError;
use crate::marks::{FOREIGN, MARKS, SHARED};
use crate::pages::Pages;
use crate::pgd::Pgd;
use crate::tables::{Part, Place, Step};

/// The frame behind a page, and its owner.
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

    /// Returns the frame, if it is the guest's.
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
    /// The first address of the page.
    pub va: GuestVa,
    /// The frame.
    pub frame: Mapped,
    /// The entry's flags, as Xen and the CPU left them, without this crate's marks.
    pub flags: PteFlags,
}

impl<S> Pgd<S> {
    /// Returns what is mapped at `va`'s page; `None` if nothing is.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Walk`].
    ///
    /// ```
    /// # use pv_tests::examples::*;
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
    /// ```
    /// # use pv_tests::examples::*;
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
        self.walk(guest, pages, &mut |Place { va, level, pte, .. }| {
            if level == Level::L1 {
                let frame = Mapped::of(guest, pte);
                found(Mapping { va, frame, flags: pte.flags().difference(MARKS) });
            }
        })
    }

    /// Calls `met` for every present entry, of tables of all levels, on the path to `pages`: in
    /// order of address, upper ones first. Does not read below missing tables.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Walk`]. `met` has seen what
    /// is in front of the table that cannot be read.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, tools) = TestGuest::with_pinned(pages);
    /// let mut met = Vec::new();
    /// pgd.walk(&tools.guest, pages, &mut |place| met.push(place.level))?;
    /// assert_eq!(met[..3], [Level::L4, Level::L3, Level::L2]);
    /// assert_eq!(met[3..], [Level::L1; 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn walk<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        pages: Pages,
        met: &mut impl FnMut(Place),
    ) -> Result<(), MapError> {
        pages.check()?;
        let Some(last) = pages.count.checked_sub(1) else { return Ok(()) };
        let (first, last) = (pages.start.raw(), pages.at(last)?.raw());
        Part { first, last, ..Part::user_half(self.root()) }.entries(guest, &mut |place| {
            met(place);
            Ok(Step::Into)
        })
    }
}
