//! The `x86_64` crate's own traits over a live address space, so that code written for
//! `OffsetPageTable` runs on Xen as it is.
//!
//! **Frames are pseudo-physical here.** A `PhysFrame` or `PhysAddr` of that crate holds a pfn, the
//! guest's own numbering, never a machine frame; what is stored in the tables is looked up in P2M.
//! Give none of them to a device.
//!
//! Every call asks Xen at once and flushes in the same batch: the flushes that the traits hand back
//! may be ignored. Pages are those of the user half. There are no huge pages under Xen PV: a
//! request for one gets the trait's own error. The traits' errors cannot carry a refusal of Xen's,
//! so that is kept beside them: [`LiveMapper::refusal`].
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "implements unsafe methods of a foreign trait, whose frames are pseudo-physical here"
)]

use hypercall::{Batch, Entry, Frame, GuestVa, Level, Machine, PAGE_SHIFT, Pfn, Pte, PteFlags};
use x86_64::structures::paging::mapper::{
    FlagUpdateError, MapToError, MappedFrame, Mapper, MapperFlush, MapperFlushAll, Translate,
    TranslateError, TranslateResult, UnmapError,
};
use x86_64::structures::paging::{
    FrameAllocator, Page, PageTableFlags, PhysFrame, Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::context::Context;
use crate::edit::{Presence, Tools};
use crate::error::MapError;
use crate::flush::Reach;
use crate::frames::FrameSource;
use crate::pages::Pages;
use crate::pgd::{Pgd, Pinned};
use crate::pool::TablePool;
use crate::walk::walk;

/// An address space as a `Mapper<Size4KiB>` and `Translate`.
#[derive(Debug)]
pub struct LiveMapper<'a, 'b, M> {
    context: Context<'a, M>,
    pgd: &'a mut Pgd<Pinned>,
    batch: &'a mut Batch<'b>,
    refusal: Option<MapError>,
}

impl<'a, 'b, M: Machine> LiveMapper<'a, 'b, M> {
    /// Maps and translates in `pgd`. The batch must have room for a
    /// [`SMALLEST_BATCH`](crate::SMALLEST_BATCH).
    pub const fn new(
        context: Context<'a, M>,
        pgd: &'a mut Pgd<Pinned>,
        batch: &'a mut Batch<'b>,
    ) -> Self {
        Self { context, pgd, batch, refusal: None }
    }

    /// Why the last call failed, if it did: the traits' errors cannot say it all.
    #[must_use]
    pub const fn refusal(&self) -> Option<MapError> {
        self.refusal
    }

    /// Runs an operation with tables and frames from `frames`, and keeps its error.
    fn with<F, T, O>(&mut self, frames: &mut F, operation: O) -> Result<T, MapError>
    where
        F: FrameSource,
        O: FnOnce(&mut Pgd<Pinned>, &mut Tools<'_, 'b, '_, M, F>) -> Result<T, MapError>,
    {
        let mut tools = Tools {
            context: self.context,
            batch: &mut *self.batch,
            tables: &mut TablePool::new([&mut [], &mut [], &mut []]),
            frames,
            reach: Reach::Everywhere,
            presence: Presence::Steady,
        };
        let result = operation(self.pgd, &mut tools);
        self.refusal = result.as_ref().err().copied();
        result
    }

    fn leaf(&self, va: VirtAddr) -> Option<Pte> {
        let va = GuestVa::new(va.as_u64()).ok()?;
        let leaf = walk(&self.context, self.pgd.root(), va).ok()?.leaf();
        leaf.map(|(_, pte)| pte).filter(|pte| pte.is_present())
    }

    /// The frame that an entry maps, by its pseudo-physical number, or the machine address that has
    /// none.
    fn frame(&self, pte: Pte) -> Result<PhysFrame, PhysAddr> {
        let pfn = self.context.p2m.pfn(self.context.machine, pte.mfn());
        pfn.map(phys_frame).map_err(|_| PhysAddr::new(pte.mfn().raw() << PAGE_SHIFT))
    }

    fn set_table_flags(
        &mut self,
        (level, page): (Level, Page),
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        let set = self.with(&mut Nothing, |pgd, tools| {
            let va = guest_va(page)?;
            let set = |edit: &mut crate::Edit<'_, '_, '_, '_, M, _>| {
                edit.set_table_flags((level, va), pte_flags(flags))
            };
            pgd.edit(tools, set).map_err(|refused| refused.error)
        });
        set.map(|()| MapperFlushAll::new()).map_err(|_| FlagUpdateError::PageNotMapped)
    }
}

fn phys_frame(pfn: Pfn) -> PhysFrame {
    PhysFrame::containing_address(PhysAddr::new(pfn.raw() << PAGE_SHIFT))
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

/// The flags as this crate takes them: GLOBAL is Xen's to set, and a page that was never touched
/// need not be marked so by the CPU later.
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

/// No frames; takes one back.
struct One(Option<Frame>);

impl FrameSource for One {
    fn take(&mut self) -> Option<Frame> {
        None
    }

    fn give(&mut self, frame: Frame) {
        self.0 = Some(frame);
    }
}

/// No frames.
struct Nothing;

impl FrameSource for Nothing {
    fn take(&mut self) -> Option<Frame> {
        None
    }

    fn give(&mut self, frame: Frame) {
        log::error!("{frame:?} came back from an operation that frees none: it is lost");
    }
}

impl<M: Machine> Mapper<Size4KiB> for LiveMapper<'_, '_, M> {
    unsafe fn map_to_with_table_flags<A>(
        &mut self,
        page: Page,
        frame: PhysFrame,
        flags: PageTableFlags,
        _: PageTableFlags,
        frame_allocator: &mut A,
    ) -> Result<MapperFlush<Size4KiB>, MapToError<Size4KiB>>
    where
        A: FrameAllocator<Size4KiB> + ?Sized,
    {
        let mapped = self.with(&mut Allocator(frame_allocator), |pgd, tools| {
            // SAFETY: the caller vouches that the frame is free to be mapped (I-1).
            let frame = unsafe { Frame::claim(pfn(frame)) };
            let mapped = pgd.map(tools, (guest_va(page)?, pte_flags(flags)), frame);
            mapped.map_err(|failed| failed.error)
        });
        match mapped {
            Ok(()) => Ok(MapperFlush::new(page)),
            // The frame that was to be mapped, as `OffsetPageTable` says it.
            Err(MapError::Occupied { .. }) => Err(MapToError::PageAlreadyMapped(frame)),
            Err(_) => Err(MapToError::FrameAllocationFailed),
        }
    }

    fn unmap(&mut self, page: Page) -> Result<(PhysFrame, MapperFlush<Size4KiB>), UnmapError> {
        let leaf = self.leaf(page.start_address()).ok_or(UnmapError::PageNotMapped)?;
        let frame = self.frame(leaf).map_err(UnmapError::InvalidFrameAddress)?;
        let mut freed = One(None);
        let unmapped = self.with(&mut freed, |pgd, tools| {
            pgd.unmap(tools, Pages::one(guest_va(page)?)).map_err(|refused| refused.error)
        });
        unmapped.map_err(|_| UnmapError::PageNotMapped)?;
        debug_assert_eq!(freed.0.map(|frame| frame.pfn()), Some(pfn(frame)));
        Ok((frame, MapperFlush::new(page)))
    }

    unsafe fn update_flags(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlush<Size4KiB>, FlagUpdateError> {
        let changed = self.with(&mut Nothing, |pgd, tools| {
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
        self.set_table_flags((Level::L4, page), flags)
    }

    unsafe fn set_flags_p3_entry(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        self.set_table_flags((Level::L3, page), flags)
    }

    unsafe fn set_flags_p2_entry(
        &mut self,
        page: Page,
        flags: PageTableFlags,
    ) -> Result<MapperFlushAll, FlagUpdateError> {
        self.set_table_flags((Level::L2, page), flags)
    }

    fn translate_page(&self, page: Page) -> Result<PhysFrame, TranslateError> {
        let leaf = self.leaf(page.start_address()).ok_or(TranslateError::PageNotMapped)?;
        self.frame(leaf).map_err(TranslateError::InvalidFrameAddress)
    }
}

impl<M: Machine> Translate for LiveMapper<'_, '_, M> {
    fn translate(&self, addr: VirtAddr) -> TranslateResult {
        let Some(leaf) = self.leaf(addr) else { return TranslateResult::NotMapped };
        debug_assert!(matches!(leaf.decode(Level::L1), Entry::Leaf(_)));
        match self.frame(leaf) {
            Ok(frame) => TranslateResult::Mapped {
                frame: MappedFrame::Size4KiB(frame),
                offset: u64::from(addr.page_offset()),
                flags: PageTableFlags::from_bits_truncate(leaf.flags().bits()),
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
