//! A program written for `OffsetPageTable` runs on Xen as it is.
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "uses the unsafe methods and the frames of the x86_64 crate, as such programs do"
)]

mod common;

use common::{Guest, context, destroy};
use hypercall::BatchStorage;
use pvmmu::mapper::LiveMapper;
use pvmmu::{FrameSource as _, MapError, Pgd};
use x86_64::structures::paging::mapper::{
    FlagUpdateError, MapToError, Mapper, MapperAllSizes, Translate, TranslateError, UnmapError,
};
use x86_64::structures::paging::{
    FrameAllocator, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// Hands out frames one after the other.
struct Frames(Vec<PhysFrame>);

// SAFETY: every frame is in the list once, and used by nobody else.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        self.0.pop()
    }
}

/// A heap of 20 pages, as a small kernel maps it, with a page taken out and one made read-only;
/// what it saw of it. There is no word about Xen in it.
fn program(mapper: &mut (impl MapperAllSizes + Translate), frames: &mut Frames) -> Vec<String> {
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    let start = VirtAddr::new(0x4444_4444_0000);
    let page = |number: u64| Page::<Size4KiB>::containing_address(start + number * 4096);
    let mut seen = Vec::new();
    let mut heap = Vec::new();
    for number in 0..20 {
        let frame = frames.allocate_frame().expect("memory");
        heap.push(frame);
        // SAFETY: the frame is free.
        unsafe { mapper.map_to(page(number), frame, flags, frames) }.expect("mapped").ignore();
    }
    for (number, frame) in (0..).zip(&heap) {
        let address = frame.start_address() + 5u64;
        assert_eq!(mapper.translate_addr(page(number).start_address() + 5), Some(address));
        assert_eq!(mapper.translate_page(page(number)).expect("mapped"), *frame);
    }
    // SAFETY: as above; it must be refused.
    let again = unsafe { mapper.map_to(page(3), heap[4], flags, frames) };
    let Err(MapToError::PageAlreadyMapped(there)) = again else { panic!("mapped twice") };
    seen.push(format!("page 3 is taken, not for {}", there == heap[4]));

    let (frame, flush) = mapper.unmap(page(3)).expect("unmapped");
    flush.ignore();
    seen.push(format!("its own frame comes back: {}", frame == heap[3]));
    seen.push(format!("again: {:?}", mapper.unmap(page(3)).expect_err("gone")));
    seen.push(format!("and read: {:?}", mapper.translate_page(page(3)).expect_err("gone")));
    // SAFETY: nobody writes to the page.
    unsafe { mapper.update_flags(page(4), PageTableFlags::PRESENT) }.expect("changed").ignore();
    // SAFETY: as above.
    let gone = unsafe { mapper.update_flags(page(3), flags) }.expect_err("gone");
    seen.push(format!("flags of nothing: {gone:?}"));
    seen.push(format!("an empty GiB: {:?}", mapper.translate_addr(VirtAddr::new(0x1000))));
    // SAFETY: the heap is not used any more.
    unsafe { mapper.set_flags_p2_entry(page(0), flags) }.expect("a table is there").ignore();
    seen
}

/// On the page tables of a bare machine: the program's own habitat.
fn on_offset_page_table() -> Vec<String> {
    const FRAMES: u64 = 64;
    let mut memory: Vec<PageTable> = (0..=FRAMES).map(|_| PageTable::new()).collect();
    let offset = VirtAddr::from_ptr(memory.as_ptr());
    let frame = |number| PhysFrame::containing_address(PhysAddr::new(number * 4096));
    let mut frames = Frames((1..FRAMES).map(frame).collect());
    // SAFETY: the first table; the others are reached through addresses only.
    let root = unsafe { &mut *memory.as_mut_ptr() };
    // SAFETY: physical address 0 is the first table, and all memory lies behind it.
    let mut mapper = unsafe { OffsetPageTable::new(root, offset) };
    program(&mut mapper, &mut frames)
}

#[test]
fn a_program_for_offset_page_table_sees_the_same_on_xen() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&context, &mut pool).expect("a root");
    let mut pgd = pgd.pin(&context, &mut batch).expect("pinned");
    let free = core::iter::from_fn(|| pool.take()).take(64);
    let frame = |pfn: hypercall::Pfn| PhysFrame::containing_address(PhysAddr::new(pfn.raw() << 12));
    let mut frames = Frames(free.map(|free| frame(free.pfn())).collect());
    // The one line that changes.
    let mut mapper = LiveMapper::new(context, &mut pgd, &mut batch);
    let seen = program(&mut mapper, &mut frames);
    assert_eq!(seen, on_offset_page_table());
    guest.check();
    let loose = pgd.unpin(&context, &mut batch).expect("unpinned");
    destroy(&context, loose, &mut pool);
    guest.check();
}

#[test]
fn a_huge_page_gets_the_traits_own_errors() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&context, &mut pool).expect("a root");
    let mut pgd = pgd.pin(&context, &mut batch).expect("pinned");
    let mut mapper = LiveMapper::new(context, &mut pgd, &mut batch);
    let page = Page::<Size2MiB>::containing_address(VirtAddr::new(0x4444_4440_0000));
    let frame = PhysFrame::<Size2MiB>::containing_address(PhysAddr::new(0));
    let flags = PageTableFlags::PRESENT;
    // SAFETY: it must be refused.
    let mapped = unsafe { mapper.map_to(page, frame, flags, &mut Frames(Vec::new())) };
    assert!(matches!(mapped, Err(MapToError::FrameAllocationFailed)));
    assert!(matches!(mapper.unmap(page), Err(UnmapError::PageNotMapped)));
    // SAFETY: as above.
    let changed = unsafe { mapper.update_flags(page, flags) };
    assert!(matches!(changed, Err(FlagUpdateError::PageNotMapped)));
    assert!(matches!(mapper.translate_page(page), Err(TranslateError::PageNotMapped)));
}

#[test]
fn what_the_traits_errors_cannot_say_is_kept() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&context, &mut pool).expect("a root");
    let mut pgd = pgd.pin(&context, &mut batch).expect("pinned");
    let mut mapper = LiveMapper::new(context, &mut pgd, &mut batch);
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(0x4444_4444_0000));
    let strange = PhysFrame::containing_address(PhysAddr::new(0x7_0000_0000));
    // SAFETY: there is no such frame; it must be refused.
    let mapped =
        unsafe { mapper.map_to(page, strange, PageTableFlags::PRESENT, &mut Frames(Vec::new())) };
    assert!(matches!(mapped, Err(MapToError::FrameAllocationFailed)));
    assert!(matches!(mapper.refusal(), Some(MapError::Walk(_) | MapError::OutOfFrames)));
}
