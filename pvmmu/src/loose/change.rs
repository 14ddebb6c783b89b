//! Changes of an address space under construction: the vocabulary of a live one, by plain stores.
#![expect(unsafe_code, reason = "stores into tables of a loose tree (I-4, I-5)")]

use hypercall::{DomId, Frame, FrameSource, GuestVa, Level, Machine, Mfn, Pfn, Pte, PteFlags};
use x86_64::structures::paging::PageTableIndex;

use crate::entries::{Change, Clear, Flags, SEEN, check_present, with_table_flags};
use crate::leaf::release;
use crate::map_error::{MapError, RangeError};
use crate::marks::FOREIGN;
use crate::pages::{Pages, Run, check_flags, check_page, check_table};
use crate::path::{Found, Path};
use crate::pgd::{Loose, Pgd};
use crate::store::{PART, store};
use crate::tables::Place;
use crate::tools::Tools;
use p2m::{Guest, WalkError};

impl Pgd<Loose> {
    /// Unmaps `pages`, which all must be mapped; what they mapped goes to `frames`.
    ///
    /// # Errors
    /// [`RangeError`] with the pages, from the first on, that are unmapped all the same.
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::NotMapped`],
    /// [`MapError::Walk`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// pgd.unmap(&mut tools, pages)?;
    /// assert_eq!(pgd.translate(&tools.guest, pages.start)?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unmap<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        let counted = frames.begin_to_release(self.counted);
        counted.map_err(|error| RangeError { done: 0, error: error.into() })?;
        self.rewrite(guest, pages, &Clear, &mut |old| release(guest, old, frames))
    }

    /// Gives every page of `pages`, which all must be mapped, new flags. A page that is shared
    /// stays read-only. Accessed and dirty bits stay as they are.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap), and [`MapError::Flags`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// let read_only = PteFlags::USER_RW - PteFlags::WRITABLE;
    /// pgd.protect(&mut tools, pages, read_only)?;
    /// let page = pgd.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert_eq!(page.flags, read_only);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn protect<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        let guest = &tools.guest;
        check_flags(flags).map_err(|error| RangeError { done: 0, error })?;
        let flags = guest.machine().offered(flags);
        let change = &Flags::of(flags);
        self.rewrite(guest, pages, change, &mut |_| {})
    }

    /// Puts what `change` makes of every entry of `pages` in its place, and hands the old ones on.
    fn rewrite<M: Machine, C: Change>(
        &mut self,
        guest: &Guest<'_, M>,
        pages: Pages,
        change: &C,
        gone: &mut impl FnMut(Pte),
    ) -> Result<(), RangeError> {
        let mut done = 0;
        let mut path = Path::new(self.root());
        let mut rewrite = || -> Result<(), MapError> {
            self.put_right(guest)?;
            for run in pages.runs(PART)? {
                let Found::Table(table) = path.seek(guest, run.va)? else {
                    return Err(MapError::NotMapped(run.va));
                };
                let first = PageTableIndex::new_truncate(run.first());
                let (mut old, mut new) =
                    ([Pte::ABSENT; PART as usize], [Pte::ABSENT; PART as usize]);
                let (old, new) =
                    (&mut old[..usize::from(run.count)], &mut new[..usize::from(run.count)]);
                guest.machine().read_entries(table, first, old)?;
                check_present(run, old)?;
                new.iter_mut().zip(&*old).for_each(|(new, old)| *new = change.of(*old));
                // SAFETY: the table is part of a loose tree: I-4 and I-5.
                unsafe { guest.machine().write_entries(table, first, new) }?;
                old.iter().for_each(|old| gone(*old));
                done += u64::from(run.count);
            }
            Ok(())
        };
        rewrite().map_err(|error| RangeError { done, error })
    }

    /// Maps `frame` at `va` in place of what is mapped there, which goes to `frames`.
    ///
    /// # Errors
    /// [`MapError::NotMapped`], and as for [`Pgd::map`]; the frame goes to `frames` then.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use hypercall::FrameSource;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let va = GuestVa::new(0x40_0000)?;
    /// pgd.map_pages(&mut tools, Pages::one(va), PteFlags::USER_RW)?;
    /// let (free, frame) = (tools.frames.source.count(), tools.frames.take().ok_or("no memory")?);
    /// pgd.replace(&mut tools, va, PteFlags::USER_RW, frame)?;
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
        let Tools { guest, frames, .. } = tools;
        let mut replace = || -> Result<Pte, MapError> {
            check_flags(flags)?;
            let flags = guest.machine().offered(flags);
            check_page(va)?;
            self.put_right(guest)?;
            frames.begin_to_release(self.counted)?;
            let mut path = Path::new(self.root());
            let old = mapped(guest, &mut path, va)?;
            let flags = flags | old.pte.flags() & SEEN;
            store(guest, old.table, old.index(), Pte::new(guest.mfn(frame.pfn())?, flags))?;
            Ok(old.pte)
        };
        match replace() {
            // INVARIANT: I-4: the frame's token has gone into the entry.
            Ok(old) => {
                release(guest, old, frames);
                Ok(())
            }
            Err(error) => {
                frames.give(frame);
                Err(error)
            }
        }
    }

    /// Moves `pages`, which all must be mapped, to the addresses from `to` on, where nothing may be
    /// mapped, with their frames and flags; tables that are missing come from `frames`.
    ///
    /// # Errors
    /// [`RangeError`] with the pages, from the first on, that have moved all the same. As for
    /// [`unmap`](Self::unmap), and [`MapError::Overlap`], [`MapError::Occupied`],
    /// [`MapError::OutOfFrames`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let (pages, to) = (Pages::one(GuestVa::new(0x40_0000)?), GuestVa::new(0x80_0000)?);
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// let before = pgd.translate(&tools.guest, pages.start)?.map(|page| page.frame);
    /// pgd.remap(&mut tools, pages, to)?;
    /// assert_eq!(pgd.translate(&tools.guest, to)?.map(|page| page.frame), before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remap<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        to: GuestVa,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        let mut done = 0;
        let (mut source, mut target) = (Path::new(self.root()), Path::new(self.root()));
        let mut remap = || -> Result<(), MapError> {
            pages.check_apart(to)?;
            self.put_right(guest)?;
            while done < pages.count {
                let va = Pages { start: to, ..pages }.at(done)?;
                let page = mapped(guest, &mut source, pages.at(done)?)?;
                let table = self.l1_table(guest, &mut target, va, frames)?;
                shift(guest, page, free(guest, Level::L1, table, va)?)?;
                done += 1;
            }
            Ok(())
        };
        remap().map_err(|error| RangeError { done, error })
    }

    /// Moves the L1 table for `from`, with all the pages in it, to `to`, where there must be none.
    /// Both are first addresses of 2 MiB. Tables above it that are missing come from `frames`.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::NotMapped`] without a table
    /// for `from`, [`MapError::Occupied`] with one for `to`, [`MapError::OutOfFrames`],
    /// [`MapError::Walk`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let (from, to) = (GuestVa::new(0x40_0000)?, GuestVa::new(0x80_0000)?);
    /// let pages = Pages { start: from, count: 512 };
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// pgd.move_table(&mut tools, from, to)?;
    /// assert!(pgd.translate(&tools.guest, to)?.is_some());
    /// assert!(pgd.translate(&tools.guest, from)?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn move_table<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        from: GuestVa,
        to: GuestVa,
    ) -> Result<(), MapError> {
        let Tools { guest, frames, .. } = tools;
        check_table(from)?;
        check_table(to)?;
        self.put_right(guest)?;
        let (mut source, mut target) = (Path::new(self.root()), Path::new(self.root()));
        let Found::Table(_) = source.seek(guest, from)? else {
            return Err(MapError::NotMapped(from));
        };
        let level = Level::L2;
        let table = source.table(level).ok_or(MapError::NotMapped(from))?;
        let pte = guest.machine().read_entry(table, level.index_of(from))?;
        let below = self.table(guest, &mut target, level, to, frames)?;
        let link = Place { va: from, level, table, pte };
        Ok(shift(guest, link, free(guest, level, below, to)?)?)
    }

    /// Maps `pages` to frames from `first` on that are nobody's memory (`DOMID_IO`): registers of
    /// devices. When they are unmapped,
    /// [`ForeignFrames::give_foreign`](crate::ForeignFrames::give_foreign) is told. Frames of a
    /// domain are mapped when the tree is pinned ([`Edit::map_foreign`](crate::Edit::map_foreign)).
    ///
    /// # Errors
    /// As for [`map_pages`](Self::map_pages); [`MapError::Own`] for a frame of the guest's,
    /// [`MapError::OnlyLive`] for another domain. Whether the guest may have a frame Xen says when
    /// the tree is pinned.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// # Safety
    /// The frames are nobody's memory. Xen checks the entries of a tree that it pins in the guest's
    /// own name, so it lets anything through that is the guest's and has no pfn: its shared page,
    /// its grant table.
    ///
    /// ```
    /// # use hypercall::{DomId, GuestVa, Mfn, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Mapped, Pages, Pgd};
    /// let mut tools = TestGuest::dom0().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let (pages, vga) = (Pages { start: GuestVa::new(0x40_0000)?, count: 8 }, Mfn::new(0xb8));
    /// // The VGA adapter's memory is a device's.
    /// unsafe { pgd.map_foreign(&mut tools, pages, PteFlags::USER_RW, vga, DomId::IO) }?;
    /// let page = pgd.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert_eq!(page.frame, Mapped::Foreign(vga));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(unsafe_code, reason = "believes that the frames are a device's")]
    pub unsafe fn map_foreign<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
        first: Mfn,
        domain: DomId,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        let mut done = 0;
        let mut path = Path::new(self.root());
        let mut fill = || -> Result<(), MapError> {
            check_flags(flags)?;
            let flags = guest.machine().offered(flags);
            self.put_right(guest)?;
            if domain != DomId::IO {
                return Err(MapError::OnlyLive(domain));
            }
            for Run { va, .. } in pages.runs(1)? {
                let mfn = first.checked_add(done).ok_or(MapError::OutOfFrames)?;
                if let Ok(own) = guest.pfn(mfn) {
                    return Err(MapError::Own(own));
                }
                let table = self.l1_table(guest, &mut path, va, frames)?;
                let place = free(guest, Level::L1, table, va)?;
                store(guest, table, place.index(), Pte::new(mfn, flags | FOREIGN))?;
                done += 1;
            }
            Ok(())
        };
        fill().map_err(|error| RangeError { done, error })
    }

    /// Lets everything behind the entry of `level` for `va` be written, and executed, or not: an
    /// upper entry's flags, of which WRITABLE and NO_EXECUTE mean something.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] if there is no table behind it, [`MapError::Flags`] without PRESENT,
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Walk`].
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{GuestVa, Level, PteFlags};
    /// # use pv_tests::guest::TestGuest;
    /// # use pvmmu::{Pages, Pgd};
    /// let mut tools = TestGuest::new().tools();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let va = GuestVa::new(0x40_0000)?;
    /// pgd.map_pages(&mut tools, Pages::one(va), PteFlags::USER_RW)?;
    /// // Nothing in these 2 MiB may be executed, whatever the entries of the pages say.
    /// let flags = PteFlags::TABLE | PteFlags::NO_EXECUTE;
    /// pgd.set_table_flags(&mut tools, Level::L2, va, flags)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_table_flags<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        self.give_table_flags(&tools.guest, level, va, flags)
    }

    pub(crate) fn give_table_flags<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        check_page(va)?;
        let flags = guest.machine().offered(flags);
        self.put_right(guest)?;
        let mut path = Path::new(self.root());
        path.seek(guest, va)?;
        let table = path.table(level).ok_or(MapError::NotMapped(va))?;
        let index = level.index_of(va);
        let roots = [Some(table), self.user_root().filter(|_| level == Level::L4)];
        for table in roots.into_iter().flatten() {
            let old = guest.machine().read_entry(table, index)?;
            store(guest, table, index, with_table_flags(level, va, old, flags)?)?;
        }
        Ok(())
    }
}

/// Moves an entry from one place to another. I-4: it is never at both. If it cannot be stored
/// anywhere, what it stands for is lost.
fn shift<M: Machine>(guest: &Guest<'_, M>, from: Place, to: Place) -> Result<(), WalkError> {
    store(guest, from.table, from.index(), Pte::ABSENT)?;
    store(guest, to.table, to.index(), from.pte).or_else(|error| {
        store(guest, from.table, from.index(), from.pte)?;
        Err(error)
    })
}

/// The present entry for `va`.
fn mapped<M: Machine>(
    guest: &Guest<'_, M>,
    path: &mut Path,
    va: GuestVa,
) -> Result<Place, MapError> {
    let Found::Table(table) = path.seek(guest, va)? else {
        return Err(MapError::NotMapped(va));
    };
    let pte = guest.machine().read_entry(table, Level::L1.index_of(va))?;
    let place = Place { va, level: Level::L1, table, pte };
    if pte.is_present() { Ok(place) } else { Err(MapError::NotMapped(va)) }
}

/// The entry for `va` in the table of `level`, which must be absent.
fn free<M: Machine>(
    guest: &Guest<'_, M>,
    level: Level,
    table: Pfn,
    va: GuestVa,
) -> Result<Place, MapError> {
    let pte = guest.machine().read_entry(table, level.index_of(va))?;
    let place = Place { va, level, table, pte };
    if pte.is_present() { Err(MapError::Occupied { va, pte }) } else { Ok(place) }
}
