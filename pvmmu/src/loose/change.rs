//! Changes of an address space under construction, by plain stores.
#![expect(unsafe_code, reason = "stores into tables of a loose tree (I-4, I-5)")]

use hypercall::{
    DomId, Frame, FrameSource, GuestVa, Level, Machine, Mfn, Pfn, Pte, PteFlags, Refused,
};
use x86_64::structures::paging::PageTableIndex;

use crate::entries::{Change, Clear, Flags, SEEN, check_present, with_table_flags};
use crate::frames::{OnePage, SpaceFrames};
use crate::leaf::release;
use crate::map_error::{MapError, RangeError};
use crate::marks::FOREIGN;
use crate::pages::{Pages, Run, check_page, check_table, offered};
use crate::path::{Found, Path};
use crate::pgd::{Loose, Pgd};
use crate::store::{PART, fill_run, store};
use crate::tables::Place;
use crate::tools::Tools;
use crate::verbs::State;
use p2m::{Guest, P2mError, WalkError};

impl State for Loose {
    fn map<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), Refused<Option<Frame>, MapError>> {
        let Tools { guest, frames, .. } = tools;
        let mut page = OnePage::new(frame);
        let mut one = frames.lend().with_source(&mut page);
        let filled = pgd.fill(guest, Pages::one(va), flags, &mut one);
        let frame = page.end(frames);
        filled.map_err(|RangeError { error, .. }| Refused { value: frame, error })
    }

    fn map_pages<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        pgd.fill(guest, pages, flags, frames)
    }

    fn unmap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        let counted = pgd.begin_to_release(guest, frames);
        counted.map_err(|error| RangeError { done: 0, error })?;
        pgd.rewrite(guest, pages, &Clear, &mut |old| release(guest, old, frames))
    }

    fn protect<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        flags: PteFlags,
    ) -> Result<(), RangeError> {
        let guest = &tools.guest;
        let flags =
            offered(guest, flags, pages.start).map_err(|error| RangeError { done: 0, error })?;
        pgd.rewrite(guest, pages, &Flags::of(flags), &mut |_| {})
    }

    fn replace<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        va: GuestVa,
        flags: PteFlags,
        frame: Frame,
    ) -> Result<(), MapError> {
        let Tools { guest, frames, .. } = tools;
        let mut replace = || -> Result<Pte, MapError> {
            let flags = offered(guest, flags, va)?;
            check_page(va)?;
            pgd.put_right(guest)?;
            pgd.begin_to_release(guest, frames)?;
            let mut path = Path::new(pgd.root());
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

    fn remap<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        pages: Pages,
        to: GuestVa,
    ) -> Result<(), RangeError> {
        let Tools { guest, frames, .. } = tools;
        RangeError::counting(|done| {
            pages.check_apart(to)?;
            pgd.put_right(guest)?;
            let (mut source, mut target) = (Path::new(pgd.root()), Path::new(pgd.root()));
            while *done < pages.count {
                let va = Pages { start: to, ..pages }.at(*done)?;
                let page = mapped(guest, &mut source, pages.at(*done)?)?;
                let table = pgd.table(guest, &mut target, Level::L1, va, frames)?;
                shift(guest, page, free(guest, Level::L1, table, va)?)?;
                *done += 1;
            }
            Ok(())
        })
    }

    fn move_table<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        from: GuestVa,
        to: GuestVa,
    ) -> Result<(), MapError> {
        let Tools { guest, frames, .. } = tools;
        check_table(from)?;
        check_table(to)?;
        pgd.put_right(guest)?;
        let (mut source, mut target) = (Path::new(pgd.root()), Path::new(pgd.root()));
        let Found::Table(_) = source.seek(guest, from)? else {
            return Err(MapError::NotMapped(from));
        };
        let level = Level::L2;
        let table = source.table(level).ok_or(MapError::NotMapped(from))?;
        let pte = guest.machine().read_entry(table, level.index_of(from))?;
        let below = pgd.table(guest, &mut target, level, to, frames)?;
        let link = Place { va: from, level, table, pte };
        Ok(shift(guest, link, free(guest, level, below, to)?)?)
    }

    fn set_table_flags<M: Machine, F: FrameSource>(
        pgd: &mut Pgd<Self>,
        tools: &mut Tools<'_, '_, M, F>,
        level: Level,
        va: GuestVa,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        pgd.give_table_flags(&tools.guest, level, va, flags)
    }
}

impl Pgd<Loose> {
    /// Maps `pages` to frames from `first` on that are nobody's memory (`DOMID_IO`): registers of
    /// devices. [`ForeignFrames::give_foreign`](crate::ForeignFrames::give_foreign) learns when
    /// they are unmapped. Frames of a domain can be mapped once the tree is pinned
    /// ([`Edit::map_foreign`](crate::Edit::map_foreign)).
    ///
    /// # Errors
    /// As for [`map_pages`](Pgd::map_pages); [`MapError::Own`] for a frame of the guest's,
    /// [`MapError::OnlyLive`] for another domain. Xen checks whether the guest may have a frame
    /// when the tree is pinned.
    ///
    /// # Safety
    /// The frames are nobody's memory. Xen checks the entries of a tree that it pins in the guest's
    /// own name. So it accepts anything that is the guest's and has no pfn: its shared page, its
    /// grant table.
    ///
    /// ```
    /// # use pv_tests::examples::*;
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
        RangeError::counting(|done| {
            let flags = offered(guest, flags, pages.start)?;
            self.put_right(guest)?;
            if domain != DomId::IO {
                return Err(MapError::OnlyLive(domain));
            }
            let mut path = Path::new(self.root());
            for Run { va, .. } in pages.runs(1)? {
                let mfn = first.checked_add(*done).ok_or(P2mError::NoFrame(first))?;
                if let Ok(own) = guest.pfn(mfn) {
                    return Err(MapError::Own(own));
                }
                let table = self.table(guest, &mut path, Level::L1, va, frames)?;
                let place = free(guest, Level::L1, table, va)?;
                store(guest, table, place.index(), Pte::new(mfn, flags | FOREIGN))?;
                *done += 1;
            }
            Ok(())
        })
    }

    fn fill<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        pages: Pages,
        flags: PteFlags,
        frames: &mut SpaceFrames<'_, impl FrameSource>,
    ) -> Result<(), RangeError> {
        RangeError::counting(|done| {
            let flags = offered(guest, flags, pages.start)?;
            self.put_right(guest)?;
            let mut path = Path::new(self.root());
            for run in pages.runs(PART)? {
                let table = self.table(guest, &mut path, Level::L1, run.va, frames)?;
                *done += fill_run(guest, table, run, flags, frames)?;
            }
            Ok(())
        })
    }

    /// Replaces every entry of `pages` by what `change` makes of it, and releases the old ones.
    fn rewrite<M: Machine, C: Change>(
        &mut self,
        guest: &Guest<'_, M>,
        pages: Pages,
        change: &C,
        gone: &mut impl FnMut(Pte),
    ) -> Result<(), RangeError> {
        RangeError::counting(|done| {
            self.put_right(guest)?;
            let mut path = Path::new(self.root());
            for run in pages.runs(PART)? {
                let Found::Table(table) = path.seek(guest, run.va)? else {
                    return Err(MapError::NotMapped(run.va));
                };
                let first = PageTableIndex::new_truncate(run.first());
                let mut buffer = [Pte::ABSENT; PART as usize];
                let old = &mut buffer[..usize::from(run.count)];
                guest.machine().read_entries(table, first, old)?;
                check_present(run, old)?;
                let mut buffer = [Pte::ABSENT; PART as usize];
                let new = &mut buffer[..usize::from(run.count)];
                new.iter_mut().zip(&*old).for_each(|(new, old)| *new = change.of(*old));
                // SAFETY: the table is part of a loose tree: I-4 and I-5.
                unsafe { guest.machine().write_entries(table, first, new) }?;
                old.iter().for_each(|old| gone(*old));
                *done += u64::from(run.count);
            }
            Ok(())
        })
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

/// Returns the present entry for `va`.
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

/// Returns the entry for `va` in the table of `level`, which must be absent.
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
