//! The `x86_64` crate's own traits over a live address space: code written for `OffsetPageTable`
//! runs on Xen unchanged.
//!
//! **Frames are pseudo-physical here.** A `PhysFrame` or `PhysAddr` of that crate holds a pfn, the
//! guest's own numbering, never a machine frame. Entries get the frame that P2M has for it. Give
//! none of them to a device.
//!
//! Every call asks Xen at once and flushes in the same batch. `ignore` the flushes that the traits
//! return. A program that calls `MapperFlush::flush` nevertheless executes `invlpg`, for which Xen
//! gives a PV kernel a general protection fault. Its handler can continue behind the instruction,
//! with [`flush_length`]. `MapperFlushAll::flush_all` loads CR3 with its present value, which Xen
//! emulates: it works, and costs two traps.
//!
//! Pages are those of the user half. Xen PV has no huge pages: a request for one gets the trait's
//! own error. The traits' errors cannot carry a refusal of Xen's: see [`LiveMapper::refusal`]. Nor
//! can they say that a frame is in doubt because Xen refused to undo a call: see
//! [`LiveMapper::has_lost_frame`]. A page that could not be mapped may leave empty tables behind,
//! and tables with more flags.
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "implements unsafe methods of a foreign trait, whose frames are pseudo-physical here"
)]

mod sources;

use hypercall::{
    Batch, Frame, FrameSource, GuestVa, Level, Machine, PAGE_SHIFT, Pfn, PteFlags, Refused,
};
use x86_64::structures::paging::mapper::{
    FlagUpdateError, MapToError, MappedFrame, Mapper, MapperFlush, MapperFlushAll, Translate,
    TranslateError, TranslateResult, UnmapError,
};
use x86_64::structures::paging::{
    FrameAllocator, Page, PageTableFlags, PhysFrame, Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::entries::TABLE_FLAGS;
use crate::frames::OnePage;
use crate::map_error::MapError;
use crate::pages::Pages;
use crate::pgd::{Pgd, Pinned};
use crate::tools::Tools;
use crate::walk::{Mapped, Mapping};
use p2m::{Guest, walk};

use sources::Noting;

/// The levels of tables above the last.
const UPPER: [Level; 3] = [Level::L4, Level::L3, Level::L2];

/// An address space as a `Mapper<Size4KiB>` and `Translate`.
#[derive(Debug)]
pub struct LiveMapper<'a, 'b, M> {
    guest: Guest<'a, M>,
    pgd: &'a mut Pgd<Pinned>,
    batch: &'a mut Batch<'b>,
    refusal: Option<MapError>,
    has_lost_frame: bool,
    uncertain: u64,
}

impl<'a, 'b, M: Machine> LiveMapper<'a, 'b, M> {
    /// Maps and translates in `pgd`. The batch must have room for a
    /// [`Room::SMALLEST`](crate::Room::SMALLEST).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Pages, mapper::LiveMapper};
    /// use x86_64::{VirtAddr, structures::paging::Translate};
    ///
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let mapper = LiveMapper::new(tools.guest, &mut pgd, &mut tools.batch);
    /// assert!(mapper.translate_addr(VirtAddr::new(0x40_0123)).is_some());
    /// assert!(mapper.refusal().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(
        guest: Guest<'a, M>,
        pgd: &'a mut Pgd<Pinned>,
        batch: &'a mut Batch<'b>,
    ) -> Self {
        Self { guest, pgd, batch, refusal: None, has_lost_frame: false, uncertain: 0 }
    }

    /// Returns why the last call failed, if it did: the traits' errors cannot say everything. A
    /// page whose mapping Xen refused to undo counts as mapped, but its refusal is here.
    #[must_use]
    pub const fn refusal(&self) -> Option<MapError> {
        self.refusal
    }

    /// Returns whether the last call failed to map a frame and did not return it, because Xen
    /// refused to undo a part of the call ([`MapError::NotUndone`]). Nobody may use the frame,
    /// which is one of the [`uncertain`](Self::uncertain) ones.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Pages, mapper::LiveMapper};
    ///
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let mapper = LiveMapper::new(tools.guest, &mut pgd, &mut tools.batch);
    /// assert!(!mapper.has_lost_frame());
    /// assert_eq!(mapper.uncertain(), 0); // nothing was refused
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn has_lost_frame(&self) -> bool {
        self.has_lost_frame
    }

    /// Returns the number of frames, tables included, that calls of this mapper left in doubt
    /// because Xen refused an undo. Nobody may use them any more, and nobody can get them.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Pages, mapper::LiveMapper};
    ///
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let mapper = LiveMapper::new(tools.guest, &mut pgd, &mut tools.batch);
    /// assert_eq!(mapper.uncertain(), 0); // nothing was refused
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn uncertain(&self) -> u64 {
        self.uncertain
    }

    /// Runs an operation with tables and frames from `frames`, and keeps its error.
    fn with<F, T, O>(&mut self, frames: &mut F, operation: O) -> Result<T, MapError>
    where
        F: FrameSource,
        O: FnOnce(&mut Pgd<Pinned>, &mut Tools<'_, '_, M, Noting<'_, F>>) -> Result<T, MapError>,
    {
        let mut frames = Noting { frames, uncertain: &mut self.uncertain };
        let mut tools = Tools::new(self.guest, &mut frames).with_batch(self.batch.lend());
        let result = operation(self.pgd, &mut tools);
        self.refusal = result.as_ref().err().copied();
        self.has_lost_frame = false;
        result
    }

    fn mapping(&self, va: VirtAddr) -> Option<Mapping> {
        let va = GuestVa::new(va.as_u64()).ok()?;
        self.pgd.translate(&self.guest, va).ok().flatten()
    }

    /// Makes the missing tables above `page`, with exactly the flags of `parents`. Adds those flags
    /// to the other tables. Does nothing where they have them.
    fn prepare<A: FrameAllocator<Size4KiB> + ?Sized>(
        &mut self,
        page: Page,
        parents: PageTableFlags,
        frames: &mut Allocator<'_, A>,
    ) -> Result<(), MapError> {
        let (guest, root) = (self.guest, self.pgd.root());
        self.with(frames, |pgd, tools| {
            let va = guest_va(page)?;
            let wanted = PteFlags::from_bits_retain(parents.bits());
            check_table_flags(wanted, guest_va(page)?)?;
            let wanted = guest.machine().offered(wanted);
            let before = walk(&guest, root, va)?;
            if let Some((_, pte)) = before.leaf().filter(|(_, pte)| pte.is_present()) {
                return Err(MapError::Occupied { va, pte });
            }
            let was = |level| before.at(level).filter(|step| step.pte.is_present());
            let flags = |level| was(level).map_or(wanted, |was| was.pte.flags().union(wanted));
            let is_right = |level| {
                let now = was(level).map_or(PteFlags::TABLE, |was| was.pte.flags());
                now & TABLE_FLAGS == flags(level) & TABLE_FLAGS
            };
            if UPPER.into_iter().all(is_right) {
                return Ok(());
            }
            // Before the page is mapped: no frame must be taken back if Xen refuses this.
            let prepare = |edit: &mut crate::Edit<'_, '_, '_, M, _>| {
                edit.make_l1_table(va)?;
                for level in UPPER.into_iter().filter(|level| !is_right(*level)) {
                    edit.set_table_flags(level, va, flags(level))?;
                }
                Ok(())
            };
            pgd.edit(tools, prepare).map_err(|refused| refused.error)
        })
    }

    /// Repairs what a refusal left, because the trait's caller has the frame again. Returns whether
    /// the page maps the frame nevertheless.
    #[cold]
    fn stays_mapped(&mut self, page: Page, frame: Pfn) -> bool {
        if let Err(error) = self.pgd.put_right(&self.guest).map_err(MapError::from) {
            log::error!("pfn {frame} may be known to a TLB still: {error}");
        }
        let mapping = self.mapping(page.start_address());
        mapping.and_then(|mapping| mapping.frame.pfn()) == Some(frame)
    }

    /// Unmaps a page. Returns the frame that it mapped.
    fn unmap_page(&mut self, page: Page) -> Result<Option<Frame>, MapError> {
        let mut freed = OnePage::default();
        self.with(&mut freed, |pgd, tools| {
            pgd.unmap(tools, Pages::one(guest_va(page)?)).map_err(|refused| refused.error)
        })?;
        Ok(freed.take())
    }

    fn set_table_flags(
        &mut self,
        level: Level,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        let set = self.with(&mut OnePage::default(), |pgd, tools| {
            let va = guest_va(page)?;
            let set = |edit: &mut crate::Edit<'_, '_, '_, M, _>| {
                edit.set_table_flags(level, va, pte_flags(flags))
            };
            pgd.edit(tools, set).map_err(|refused| refused.error)
        });
        set.map(|()| MapperFlushAll::new()).map_err(|_| FlagUpdateError::PageNotMapped)
    }
}

/// Returns the frame by its pseudo-physical number, or the machine address if it has none.
fn phys_frame(frame: Mapped) -> Result<PhysFrame, PhysAddr> {
    match frame {
        Mapped::Own(pfn) | Mapped::Shared(pfn) => {
            Ok(PhysFrame::containing_address(PhysAddr::new(pfn.raw() << PAGE_SHIFT)))
        }
        Mapped::Foreign(mfn) => Err(PhysAddr::new(mfn.raw() << PAGE_SHIFT)),
    }
}

/// Refuses flags that tables cannot have: their absence.
fn check_table_flags(flags: PteFlags, va: GuestVa) -> Result<(), MapError> {
    if flags.contains(PteFlags::PRESENT) { Ok(()) } else { Err(MapError::Flags { va, flags }) }
}

const fn pfn(frame: PhysFrame) -> Pfn {
    Pfn::new(frame.start_address().as_u64() >> PAGE_SHIFT)
}

fn guest_va(page: Page) -> Result<GuestVa, MapError> {
    let address = page.start_address().as_u64();
    // An address of Xen's is not in the user half either.
    let nowhere = GuestVa::new(0).map_err(|_| MapError::OutOfFrames)?;
    GuestVa::new(address).map_err(|_| MapError::KernelHalf(nowhere))
}

/// Returns the flags for this crate. GLOBAL is Xen's to set. The CPU need not mark a page later
/// that was never touched.
const fn pte_flags(flags: PageTableFlags) -> PteFlags {
    let kept = PteFlags::from_bits_retain(flags.bits()).difference(PteFlags::GLOBAL);
    kept.union(PteFlags::ACCESSED).union(PteFlags::DIRTY)
}

/// A frame allocator of the `x86_64` crate as a source of tables.
struct Allocator<'a, A: ?Sized>(&'a mut A);

impl<A: FrameAllocator<Size4KiB> + ?Sized> FrameSource for Allocator<'_, A> {
    fn take(&mut self) -> Option<Frame> {
        let frame = self.0.allocate_frame()?;
        // SAFETY: `FrameAllocator` promises that the frame is unused, and gives it away (I-1).
        Some(unsafe { Frame::claim(pfn(frame)) })
    }

    fn give(&mut self, frame: Frame) {
        // The trait has no way back.
        log::warn!("{frame:?} was taken for a table that Xen refused: it is lost");
    }
}

/// Returns the length of the instruction that begins with `bytes`, if it flushes one page
/// (`invlpg`). A handler of general protection faults can continue behind it, since what is mapped
/// here is flushed already. Fifteen bytes are always enough.
///
/// ```
/// use pvmmu::mapper::flush_length;
///
/// assert_eq!(flush_length([0x0f, 0x01, 0x38]), Some(3)); // invlpg [rax]
/// assert_eq!(flush_length([0x90]), None);
/// ```
#[must_use]
pub fn flush_length(bytes: impl IntoIterator<Item = u8>) -> Option<u64> {
    let mut bytes = bytes.into_iter().peekable();
    let rex = u64::from(bytes.next_if(|byte| byte & 0xf0 == 0x40).is_some());
    if (bytes.next()?, bytes.next()?) != (0x0f, 0x01) {
        return None;
    }
    let form = bytes.next()?;
    let (kind, operation, base) = (form >> 6, form >> 3 & 7, form & 7);
    if kind == 3 || operation != 7 {
        return None;
    }
    let scaled = u64::from(base == 4);
    let base = if base == 4 { bytes.next()? & 7 } else { base };
    let distance = match kind {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(rex + 3 + scaled + distance)
}

impl<M: Machine> Mapper<Size4KiB> for LiveMapper<'_, '_, M> {
    unsafe fn map_to_with_table_flags<A>(
        &mut self,
        page: Page,
        frame: PhysFrame,
        flags: PageTableFlags,
        parent_table_flags: PageTableFlags,
        frame_allocator: &mut A,
    ) -> Result<MapperFlush<Size4KiB>, MapToError<Size4KiB>>
    where
        A: FrameAllocator<Size4KiB> + ?Sized,
    {
        let frames = &mut Allocator(frame_allocator);
        let mut has_lost_frame = false;
        let mapped = self.prepare(page, parent_table_flags, frames).and_then(|()| {
            self.with(frames, |pgd, tools| {
                let va = guest_va(page)?;
                // SAFETY: the caller vouches that the frame is free to be mapped (I-1).
                let frame = unsafe { Frame::claim(pfn(frame)) };
                let mapped = pgd.map(tools, va, pte_flags(flags), frame);
                mapped.map_err(|Refused { value: frame, error }| {
                    has_lost_frame = frame.is_none();
                    error
                })
            })
        });
        // A page that is mapped nevertheless has its frame.
        let stays = mapped.is_err() && self.stays_mapped(page, pfn(frame));
        self.has_lost_frame = has_lost_frame && !stays;
        match mapped {
            Ok(()) => Ok(MapperFlush::new(page)),
            // The frame to map, as `OffsetPageTable` reports it.
            Err(MapError::Occupied { .. }) => Err(MapToError::PageAlreadyMapped(frame)),
            Err(_) if stays => Ok(MapperFlush::new(page)),
            Err(_) => Err(MapToError::FrameAllocationFailed),
        }
    }

    fn unmap(&mut self, page: Page) -> Result<(PhysFrame, MapperFlush<Size4KiB>), UnmapError> {
        let mapping = self.mapping(page.start_address()).ok_or(UnmapError::PageNotMapped)?;
        let frame = phys_frame(mapping.frame).map_err(UnmapError::InvalidFrameAddress)?;
        if let Mapped::Shared(pfn) = mapping.frame {
            // Others map the frame, too: it cannot be handed out.
            self.refusal = Some(MapError::CannotShare(pfn));
            return Err(UnmapError::InvalidFrameAddress(frame.start_address()));
        }
        let freed = self.unmap_page(page).map_err(|_| UnmapError::PageNotMapped)?;
        debug_assert_eq!(freed.map(|frame| frame.pfn()), Some(pfn(frame)));
        Ok((frame, MapperFlush::new(page)))
    }

    unsafe fn update_flags(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlush<Size4KiB>, FlagUpdateError> {
        let changed = self.with(&mut OnePage::default(), |pgd, tools| {
            let pages = Pages::one(guest_va(page)?);
            pgd.protect(tools, pages, pte_flags(flags)).map_err(|refused| refused.error)
        });
        changed.map(|()| MapperFlush::new(page)).map_err(|_| FlagUpdateError::PageNotMapped)
    }

    unsafe fn set_flags_p4_entry(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        self.set_table_flags(Level::L4, page, flags)
    }

    unsafe fn set_flags_p3_entry(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        self.set_table_flags(Level::L3, page, flags)
    }

    unsafe fn set_flags_p2_entry(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        self.set_table_flags(Level::L2, page, flags)
    }

    fn translate_page(&self, page: Page) -> Result<PhysFrame, TranslateError> {
        let mapping = self.mapping(page.start_address()).ok_or(TranslateError::PageNotMapped)?;
        phys_frame(mapping.frame).map_err(TranslateError::InvalidFrameAddress)
    }
}

impl<M: Machine> Translate for LiveMapper<'_, '_, M> {
    fn translate(&self, addr: VirtAddr) -> TranslateResult {
        let Some(mapping) = self.mapping(addr) else { return TranslateResult::NotMapped };
        match phys_frame(mapping.frame) {
            Ok(frame) => TranslateResult::Mapped {
                frame: MappedFrame::Size4KiB(frame),
                offset: u64::from(addr.page_offset()),
                flags: PageTableFlags::from_bits_truncate(mapping.flags.bits()),
            },
            Err(address) => TranslateResult::InvalidFrameAddress(address),
        }
    }
}

/// Huge pages, of which there are none: none can be made, and none is ever found.
macro_rules! no_huge_pages {
    ($($size:ty)*) => { $(
        impl<M: Machine> Mapper<$size> for LiveMapper<'_, '_, M> {
            unsafe fn map_to_with_table_flags<A>(
                &mut self,
                _: Page<$size>,
                _: PhysFrame<$size>,
                _: PageTableFlags,
                _: PageTableFlags,
                _: &mut A,
            ) -> Result<MapperFlush<$size>, MapToError<$size>>
            where
                A: FrameAllocator<Size4KiB> + ?Sized,
            {
                Err(MapToError::FrameAllocationFailed)
            }

            fn unmap(
                &mut self,
                _: Page<$size>,
            ) -> Result<(PhysFrame<$size>, MapperFlush<$size>), UnmapError> {
                Err(UnmapError::PageNotMapped)
            }

            unsafe fn update_flags(
                &mut self,
                _: Page<$size>,
                _: PageTableFlags,
            ) -> Result<MapperFlush<$size>, FlagUpdateError> {
                Err(FlagUpdateError::PageNotMapped)
            }

            unsafe fn set_flags_p4_entry(
                &mut self,
                _: Page<$size>,
                _: PageTableFlags,
            ) -> Result<MapperFlushAll, FlagUpdateError> {
                Err(FlagUpdateError::PageNotMapped)
            }

            unsafe fn set_flags_p3_entry(
                &mut self,
                _: Page<$size>,
                _: PageTableFlags,
            ) -> Result<MapperFlushAll, FlagUpdateError> {
                Err(FlagUpdateError::PageNotMapped)
            }

            unsafe fn set_flags_p2_entry(
                &mut self,
                _: Page<$size>,
                _: PageTableFlags,
            ) -> Result<MapperFlushAll, FlagUpdateError> {
                Err(FlagUpdateError::PageNotMapped)
            }

            fn translate_page(
                &self,
                _: Page<$size>,
            ) -> Result<PhysFrame<$size>, TranslateError> {
                Err(TranslateError::PageNotMapped)
            }
        }
    )* };
}

no_huge_pages!(Size2MiB Size1GiB);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invlpg_is_known_by_its_bytes_in_every_form() {
        let forms: [&[u8]; 7] = [
            // [rdi], [r12], [rbp + 0], [rax + disp32], [rip + disp32], [disp32], [rsp + disp8]
            &[0x0f, 0x01, 0x3f],
            &[0x41, 0x0f, 0x01, 0x3c, 0x24],
            &[0x0f, 0x01, 0x7d, 0x00],
            &[0x0f, 0x01, 0xb8, 1, 2, 3, 4],
            &[0x0f, 0x01, 0x3d, 1, 2, 3, 4],
            &[0x0f, 0x01, 0x3c, 0x25, 1, 2, 3, 4],
            &[0x0f, 0x01, 0x7c, 0x24, 0x08],
        ];
        for form in forms {
            let more = form.iter().copied().chain([0x90; 8]);
            assert_eq!(flush_length(more), Some(form.len() as u64), "{form:x?}");
        }
    }

    #[test]
    fn what_is_no_invlpg_is_not_skipped() {
        // swapgs, lgdt, mov cr3, a truncated one.
        let others: [&[u8]; 4] =
            [&[0x0f, 0x01, 0xf8], &[0x0f, 0x01, 0x10], &[0x0f, 0x22, 0xd8], &[0x0f, 0x01]];
        for other in others {
            assert_eq!(flush_length(other.iter().copied()), None, "{other:x?}");
        }
    }
}
