//! A small program that was written for the `x86_64` crate's `OffsetPageTable`, on Xen: one line
//! has changed, the one that makes the mapper.
//!
//! `cargo run -p pvmmu --example offset_page_table`
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "the x86_64 crate's own interface, as a program for a bare machine uses it"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Pool, TestGuest};
use hypercall::{BatchStorage, FrameSource as _};
use pvmmu::mapper::LiveMapper;
use pvmmu::{Pgd, Tools};
use x86_64::structures::paging::mapper::{MapToError, MapperAllSizes, Translate};
use x86_64::structures::paging::{
    FrameAllocator, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

// On Xen every change is flushed when it is made. A program that calls `flush` where this one
// calls `ignore` executes `invlpg`, which is a general protection fault to a kernel under Xen PV:
// its handler goes on behind the instruction, with `pvmmu::mapper::flush_length`.

const HEAP_START: u64 = 0x4444_4444_0000;
const HEAP_PAGES: u64 = 25;

/// The program: it maps a heap. There is no word about Xen in it.
fn init_heap(
    mapper: &mut (impl MapperAllSizes + Translate),
    frames: &mut impl FrameAllocator<Size4KiB>,
) -> Result<u64, MapToError<Size4KiB>> {
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::NO_EXECUTE;
    let start = Page::<Size4KiB>::containing_address(VirtAddr::new(HEAP_START));
    for page in Page::range(start, start + HEAP_PAGES) {
        let frame = frames.allocate_frame().ok_or(MapToError::FrameAllocationFailed)?;
        // SAFETY: the frame is free, and nothing is mapped at the page.
        unsafe { mapper.map_to(page, frame, flags, frames) }?.ignore();
    }
    // Huge pages where there are any; where not, the trait has an error for it.
    let huge = Page::<Size2MiB>::containing_address(VirtAddr::new(HEAP_START + (1 << 30)));
    let frame = PhysFrame::<Size2MiB>::containing_address(PhysAddr::new(0));
    // SAFETY: nobody uses what is mapped there.
    match unsafe { mapper.map_to(huge, frame, flags, frames) } {
        Ok(flush) => flush.ignore(),
        Err(MapToError::FrameAllocationFailed) => {}
        Err(error) => panic!("{error:?}"),
    }
    let is_mapped = |page: u64| mapper.translate_addr(VirtAddr::new(HEAP_START + page * 4096));
    Ok((0..HEAP_PAGES + 5).filter(|page| is_mapped(*page).is_some()).count() as u64)
}

/// Free frames, by their pseudo-physical addresses.
struct Frames<'p>(&'p mut Pool);

// SAFETY: every frame leaves the pool once.
unsafe impl FrameAllocator<Size4KiB> for Frames<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let pfn = self.0.take()?.pfn();
        Some(PhysFrame::containing_address(PhysAddr::new(pfn.raw() * 4096)))
    }
}

fn main() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let guest = common::guest(&test, &test.model, &p2m);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");

    // Before: let mut mapper = unsafe { OffsetPageTable::new(table, offset) };
    let mut mapper = LiveMapper::new(guest, &mut pgd, &mut batch);
    let on_xen = init_heap(&mut mapper, &mut Frames(&mut pool)).expect("frames enough");
    println!("on Xen:            {on_xen} pages are mapped; the huge page: {:?}", mapper.refusal());
    test.check();

    let on_bare_machine = on_bare_machine();
    println!("on a bare machine: {on_bare_machine} pages are mapped");
    assert_eq!((on_xen, on_bare_machine), (HEAP_PAGES, HEAP_PAGES));
}

/// The program in its own habitat: tables in this process's memory.
fn on_bare_machine() -> u64 {
    struct Next(u64);
    // SAFETY: every frame is handed out once.
    unsafe impl FrameAllocator<Size4KiB> for Next {
        fn allocate_frame(&mut self) -> Option<PhysFrame> {
            self.0 += 1;
            Some(PhysFrame::containing_address(PhysAddr::new(self.0 * 4096)))
        }
    }
    let mut memory: Vec<PageTable> = (0..64).map(|_| PageTable::new()).collect();
    let offset = VirtAddr::from_ptr(memory.as_ptr());
    // SAFETY: the first table; the others are reached through addresses only.
    let root = unsafe { &mut *memory.as_mut_ptr() };
    // SAFETY: physical address 0 is the first table, and all memory lies behind it.
    let mut mapper = unsafe { OffsetPageTable::new(root, offset) };
    init_heap(&mut mapper, &mut Next(0)).expect("frames enough")
}

#[test]
fn it_runs() {
    main();
}
