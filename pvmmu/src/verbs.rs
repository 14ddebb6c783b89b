//! What is done to an address space, loose or live: the same verbs with the same arguments.

use hypercall::{Frame, FrameSource, GuestVa, Level, Machine, PteFlags, Refused};

use crate::map_error::{MapError, RangeError};
use crate::pages::Pages;
use crate::pgd::Pgd;
use crate::tools::Tools;

/// State of an address space: [`Loose`](crate::Loose), which is changed by plain stores, or
/// [`Pinned`](crate::Pinned), which is changed by requests. What each method does, [`Pgd`]'s of the
/// same name says.
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

/// Changes, one at a time. Those of a pinned address space can be collected: [`Pgd::edit`].
impl<S: State> Pgd<S> {
    /// Maps `frame` at `va` in the user half. Tables that are missing come from the tools.
    ///
    /// # Errors
    /// The frame and the reason: as for [`map_pages`](Self::map_pages). Nothing is mapped then, but
    /// tables may have been added. There is no frame after [`MapError::NotUndone`] alone, if it is
    /// mapped all the same or went to [`FrameSource::give_uncertain`].
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise one `mmu_update`, or one more if tables come
    /// from no pool.
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

    /// Maps a frame at each page of `pages`, which all must be free; frames and missing tables come
    /// from the tools.
    ///
    /// # Errors
    /// [`RangeError`] with the pages, from the first on, that are mapped all the same.
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Flags`],
    /// [`MapError::Occupied`], [`MapError::OutOfFrames`], [`MapError::Walk`]; of a pinned address
    /// space [`MapError::BatchTooSmall`], [`MapError::Refused`], [`MapError::LinkRefused`],
    /// [`MapError::NotUndone`].
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise as for [`Pgd::edit`], one element a page, one
    /// more for each table that comes from the pool. A table that is filled before it is linked
    /// takes one `mmu_update` of its own, with 2 to 5 elements; with a batch of fewer updates than
    /// that, one more for each table.
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

    /// Unmaps `pages`, which all must be mapped; what they mapped goes to the frames of the tools,
    /// once no TLB knows the mapping any more.
    ///
    /// # Errors
    /// [`RangeError`]: as for [`map_pages`](Self::map_pages), and [`MapError::NotMapped`],
    /// [`MapError::OtherShares`].
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise as for [`Pgd::edit`], one element a page; or
    /// for a table that is better taken out as a whole, one `mmu_update` of two elements, and
    /// another one if something is left in it.
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

    /// Gives every page of `pages`, which all must be mapped, new flags. Accessed and dirty bits
    /// are neither set nor cleared by that: they stay as the CPU sets them, even while this goes
    /// on. A page that is shared stays read-only; if it is to be writable,
    /// [`Edit::make_own`](crate::Edit::make_own) does that at the first write.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap), and [`MapError::Flags`].
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise as for [`Pgd::edit`], one element a page; or
    /// for a table that is better changed as a whole, which takes [`Presence::MayVanish`], two
    /// `mmu_update` of two elements.
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

    /// Maps `frame` at `va` in place of what is mapped there, which goes to the frames of the
    /// tools. Accessed and dirty bits that the CPU has set there stay set, up to the last moment.
    ///
    /// # Errors
    /// [`MapError::NotMapped`], and as for [`map`](Self::map); the frame goes to the frames of the
    /// tools then.
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

    /// Moves `pages`, which all must be mapped, to the addresses from `to` on, where nothing may be
    /// mapped, with their frames and flags. Other vCPUs may see a page at both places for a moment,
    /// and never at none. Under [`Presence::Steady`] a dirty bit that one of them sets meanwhile
    /// moves, too; an accessed bit may be lost, and so may both of another domain's frame.
    ///
    /// # Errors
    /// [`RangeError`] with the pages, from the first on, that have moved all the same. As for
    /// [`map_pages`](Self::map_pages), and [`MapError::NotMapped`], [`MapError::Overlap`]. Xen
    /// refuses the entry of another domain's frame, unless its whole table moves.
    ///
    /// # Hypercalls
    /// None if the address space is loose. Otherwise, for n pages and a batch of B updates:
    /// ceil(2 n / B) multicalls of an `mmu_update` and the flush, and one more for each border of a
    /// table, at either place, and every 64 pages; twice as many under [`Presence::Steady`], where
    /// one of the pages is clean and can be written; for a whole table that moves to where there is
    /// none, one `mmu_update` of two elements. Tables that are missing take what they take in
    /// [`map_pages`](Self::map_pages).
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

    /// Moves the L1 table for `from`, with all the pages in it, to `to`, where there must be none.
    /// Both are first addresses of 2 MiB. One request links the table at its new place and then
    /// unlinks it from the old one, so that Xen does not validate it again; other vCPUs may see it
    /// at both for a moment. Its entries stay in it, with whatever the CPU notes in them.
    ///
    /// # Errors
    /// [`MapError::Unaligned`], [`MapError::NotMapped`] without a table for `from`,
    /// [`MapError::Occupied`] with one for `to`, [`MapError::OutOfFrames`] if `to` lacks a table
    /// above it and there is no frame for that, and as for [`map_pages`](Self::map_pages).
    ///
    /// # Hypercalls
    /// None if the address space is loose; otherwise one `mmu_update` of two elements, which
    /// flushes all TLBs; and what the tables above `to` take, if they are missing.
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

    /// Lets everything behind the entry of `level` for `va` be written, and executed, or not: an
    /// upper entry's flags, of which WRITABLE and NO_EXECUTE mean something.
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
