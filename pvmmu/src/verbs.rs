//! Operations on an address space, loose or live: the same verbs with the same arguments.

use hypercall::{Frame, FrameSource, GuestVa, Level, Machine, PteFlags, Refused};

use crate::map_error::{MapError, RangeError};
use crate::pages::Pages;
use crate::pgd::Pgd;
use crate::tools::Tools;

/// State of an address space: [`Loose`](crate::Loose), which stores change, or
/// [`Pinned`](crate::Pinned), which requests change. The methods of [`Pgd`] with the same names say
/// what these do.
#[expect(missing_docs, clippy::missing_errors_doc, reason = "said there")]
pub trait State: Sized {
    fn map<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), Refused<Option<Frame>, MapError>>;

    fn map_pages<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError>;

    fn unmap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
    ) -> Result<(), RangeError>;

    fn protect<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError>;

    fn replace<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), MapError>;

    fn remap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        to: GuestVa,
    ) -> Result<(), RangeError>;

    fn move_table<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        from: GuestVa,
        to: GuestVa,
    ) -> Result<(), MapError>;

    fn set_table_flags<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError>;
}

/// Changes, one at a time. To collect those of a pinned address space, use [`Pgd::edit`].
impl<S: State> Pgd<S> {
    /// Maps `frame` at `va` in the user half. Missing tables come from the tools.
    ///
    /// # Errors
    /// The frame and the reason: as for [`map_pages`](Self::map_pages). Nothing is mapped, but
    /// tables may have been added. Only after [`MapError::NotUndone`] there may be no frame: it is
    /// mapped, or went to [`FrameSource::give_uncertain`].
    ///
    /// # Hypercalls
    /// None if the address space is loose. One `mmu_update`; one more if missing tables do not come
    /// from a pool.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let (va, frame) = (GuestVa::new(0x40_1000)?, tools.frames.take().ok_or("no memory")?);
    /// let pfn = frame.pfn();
    /// // Were it refused, the frame would be in the error.
    /// pgd.map(&mut tools, va, PteFlags::USER_RW, frame)?;
    /// let mapped = pgd.translate(&tools.guest, va)?.and_then(|page| page.frame.pfn());
    /// assert_eq!(mapped, Some(pfn));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), Refused<Option<Frame>, MapError>> {
        S::map(self, tools, va, flags, frame)
    }

    /// Maps a frame at each page of `pages`, which must all be free. Frames and missing tables come
    /// from the tools.
    ///
    /// # Errors
    /// [`RangeError`] with the number of pages, from the first on, that are mapped.
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Flags`],
    /// [`MapError::Occupied`], [`MapError::OutOfFrames`], [`MapError::Walk`]; of a pinned address
    /// space [`MapError::BatchTooSmall`], [`MapError::Refused`], [`MapError::LinkRefused`],
    /// [`MapError::NotUndone`].
    ///
    /// # Hypercalls
    /// None if the address space is loose. As for [`Pgd::edit`], with one element for each page and
    /// each table from the pool. A table that is filled before it is linked takes one `mmu_update`
    /// of its own, with 2 to 5 elements; with a smaller batch, one more for each table.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Pages, Pgd};
    ///
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 1000 };
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// // The root, a table of levels 3 and 2, two of level 1.
    /// assert_eq!(pgd.tables(&tools.guest)?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_pages<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        S::map_pages(self, tools, pages, flags)
    }

    /// Unmaps `pages`, which must all be mapped. What they mapped goes to the frames of the tools,
    /// once no TLB knows the mapping any more.
    ///
    /// # Errors
    /// [`RangeError`]: as for [`map_pages`](Self::map_pages), and [`MapError::NotMapped`],
    /// [`MapError::OtherShares`].
    ///
    /// # Hypercalls
    /// None if the address space is loose. As for [`Pgd::edit`], one element a page. For a table
    /// that is cheaper to take out as a whole, one `mmu_update` of two elements, and another one if
    /// something is left in it.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.unmap(&mut tools, pages)?;
    /// // A second time nothing is there, and the error says so.
    /// let refused = pgd.unmap(&mut tools, pages).unwrap_err();
    /// assert_eq!((refused.done, refused.error), (0, pvmmu::MapError::NotMapped(pages.start)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unmap<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
    ) -> Result<(), RangeError> {
        S::unmap(self, tools, pages)
    }

    /// Gives every page of `pages`, which must all be mapped, new flags. Neither sets nor clears
    /// accessed and dirty bits: they stay as the CPU sets them, even meanwhile. A shared page stays
    /// read-only; if it should be writable, [`Edit::make_own`](crate::Edit::make_own) makes it so
    /// at the first write.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap), and [`MapError::Flags`].
    ///
    /// # Hypercalls
    /// None if the address space is loose. As for [`Pgd::edit`], one element a page. For a table
    /// that is cheaper to change as a whole, which needs [`Presence::MayVanish`], two `mmu_update`
    /// of two elements.
    ///
    /// [`Presence::MayVanish`]: crate::Presence::MayVanish
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// pgd.protect(&mut tools, pages, PteFlags::USER_RW - PteFlags::WRITABLE)?;
    /// let page = pgd.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert!(!page.flags.contains(PteFlags::WRITABLE));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn protect<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        S::protect(self, tools, pages, flags)
    }

    /// Maps `frame` at `va` in place of the present frame, which goes to the frames of the tools.
    /// Accessed and dirty bits that the CPU sets there stay set, up to the last moment.
    ///
    /// # Errors
    /// [`MapError::NotMapped`], and as for [`map`](Self::map); the frame then goes to the frames of
    /// the tools.
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise one.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(page);
    /// let (free, frame) = (tools.frames.source.count(), tools.frames.take().ok_or("no memory")?);
    /// pgd.replace(&mut tools, page.start, PteFlags::USER_RW, frame)?;
    /// assert_eq!(tools.frames.source.count(), free); // the one that was mapped came back
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn replace<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), MapError> {
        S::replace(self, tools, va, flags, frame)
    }

    /// Moves `pages`, which must all be mapped, with their frames and flags to the addresses from
    /// `to` on, where nothing may be mapped. For a moment other vCPUs may see a page at both
    /// places, but never at none. Under [`Presence::Steady`] a dirty bit that one of them sets
    /// meanwhile moves, too. An accessed bit may be lost, and so may both bits of another domain's
    /// frame.
    ///
    /// # Errors
    /// [`RangeError`] with the number of pages, from the first on, that have moved. As for
    /// [`map_pages`](Self::map_pages), and [`MapError::NotMapped`], [`MapError::Overlap`]. Xen
    /// refuses the entry of another domain's frame, unless its whole table moves.
    ///
    /// # Hypercalls
    /// None if the address space is loose. For n pages and a batch of B updates: ceil(2 n / B)
    /// multicalls of an `mmu_update` and the flush, and one more for each border of a table, at
    /// either place, and every 64 pages. Twice as many under [`Presence::Steady`] if one of the
    /// pages is clean and writable. For a whole table that moves to where there is none, one
    /// `mmu_update` of two elements. Missing tables cost as in [`map_pages`](Self::map_pages).
    ///
    /// [`Presence::Steady`]: crate::Presence::Steady
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let to = GuestVa::new(0x7000_0000)?;
    /// pgd.remap(&mut tools, pages, to)?;
    /// assert!(pgd.translate(&tools.guest, to)?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remap<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        to: GuestVa,
    ) -> Result<(), RangeError> {
        S::remap(self, tools, pages, to)
    }

    /// Moves the L1 table for `from`, with all its pages, to `to`, where there must be none. Both
    /// begin a 2 MiB span. One request links the table at its new place and then unlinks it from
    /// the old one, so Xen does not validate it again. For a moment other vCPUs may see it at both.
    /// Its entries stay in it, with the bits that the CPU sets.
    ///
    /// # Errors
    /// [`MapError::Unaligned`], [`MapError::NotMapped`] without a table for `from`,
    /// [`MapError::Occupied`] with one for `to`, [`MapError::OutOfFrames`] if a missing table above
    /// `to` gets no frame, and as for [`map_pages`](Self::map_pages).
    ///
    /// # Hypercalls
    /// None if the address space is loose. One `mmu_update` of two elements, which flushes all
    /// TLBs; and what missing tables above `to` cost.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 512 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let to = GuestVa::new(0x80_0000)?;
    /// pgd.move_table(&mut tools, pages.start, to)?;
    /// assert!(pgd.translate(&tools.guest, to)?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn move_table<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        from: GuestVa,
        to: GuestVa,
    ) -> Result<(), MapError> {
        S::move_table(self, tools, from, to)
    }

    /// Makes everything behind the entry of `level` for `va` writable and executable, or not. Of an
    /// upper entry's flags only WRITABLE and NO_EXECUTE matter.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] if there is no table behind it, [`MapError::Flags`] without PRESENT,
    /// and as for [`protect`](Self::protect).
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise one. Xen flushes all TLBs.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// // Nothing in these 2 MiB may be executed, whatever the entries of the pages say.
    /// let flags = PteFlags::TABLE | PteFlags::NO_EXECUTE;
    /// pgd.set_table_flags(&mut tools, Level::L2, pages.start, flags)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_table_flags<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        S::set_table_flags(self, tools, level, va, flags)
    }
}
