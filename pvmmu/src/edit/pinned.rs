//! Operations on a pinned address space, each in a section of its own.

use hypercall::{DomId, Frame, FrameSource, GuestVa, Level, Machine, Mfn, PteFlags, Refused};

use super::Edit;
use crate::frames::OnePage;
use crate::map_error::{MapError, RangeError};
use crate::pages::Pages;
use crate::pgd::{Pgd, Pinned};
use crate::tools::Tools;
use crate::verbs::State;

impl State for Pinned {
    fn map<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), Refused<Option<Frame>, MapError>> {
        let mut page = OnePage::new(frame);
        let mut one = tools.with_source(&mut page);
        let mapped = pgd.edit(&mut one, |edit| edit.map_pages(Pages::one(va), flags));
        let frame = page.end(&mut tools.frames);
        mapped.map_err(|RangeError { error, .. }| Refused { value: frame, error })
    }

    fn map_pages<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        pgd.edit(tools, |edit| edit.map_pages(pages, flags))
    }

    fn unmap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
    ) -> Result<(), RangeError> {
        pgd.edit(tools, |edit| edit.unmap(pages))
    }

    fn protect<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        pgd.edit(tools, |edit| edit.protect(pages, flags))
    }

    fn replace<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), MapError> {
        let mut frame = Some(frame);
        let replaced = pgd.edit(tools, |edit| {
            frame.take().map_or(Ok(()), |frame| edit.replace(va, flags, frame))
        });
        // There was no section.
        frame.into_iter().for_each(|frame| tools.frames.give(frame));
        replaced.map_err(|refused| refused.error)
    }

    fn remap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        to: GuestVa,
    ) -> Result<(), RangeError> {
        pgd.edit(tools, |edit| edit.remap(pages, to))
    }

    fn move_table<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        from: GuestVa,
        to: GuestVa,
    ) -> Result<(), MapError> {
        pgd.edit(tools, |edit| edit.move_table(from, to)).map_err(|refused| refused.error)
    }

    fn set_table_flags<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        let change = |edit: &mut Edit<'_, '_, '_, M, F>| edit.set_table_flags(level, va, flags);
        pgd.edit(tools, change).map_err(|refused| refused.error)
    }
}

impl Pgd<Pinned> {
    /// Maps `pages` to consecutive frames of `domain` from `first` on: see [`Edit::map_foreign`].
    ///
    /// # Errors
    /// As for [`Edit::map_foreign`].
    ///
    /// # Hypercalls
    /// As for [`map_pages`](Self::map_pages).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut tools = TestGuest::dom0().tools();
    /// let pgd = Pgd::new(&mut tools)?;
    /// let mut pgd = pgd.pin(&tools.guest, &mut tools.batch)?;
    /// let (pages, vga) = (Pages { start: GuestVa::new(0x40_0000)?, count: 8 }, Mfn::new(0xb8));
    /// pgd.map_foreign(&mut tools, pages, PteFlags::USER_RW, vga, DomId::IO)?;
    /// assert!(pgd.translate(&tools.guest, pages.start)?.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_foreign<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
        first: Mfn,
        domain: DomId,
    ) -> Result<(), RangeError> {
        self.edit(tools, |edit| edit.map_foreign(pages, flags, first, domain))
    }
}
