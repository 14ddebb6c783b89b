//! A program written for `OffsetPageTable` runs on Xen as it is.
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "uses the unsafe methods and the frames of the x86_64 crate, as such programs do"
)]

#[macro_use]
mod common;

use common::{Pool, TestGuest, build, destroy, guest, page, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, FrameSource as _, GuestVa, Machine};
use p2m::{Guest, walk};
use pvmmu::mapper::LiveMapper;
use pvmmu::{MapError, Pgd, Pinned, Shares, TablePool, Tools};
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
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut frames = frames_of(&mut pool, 64);
    // The one line that changes.
    let mut mapper = LiveMapper::new(guest, &mut pgd, &mut batch);
    let seen = program(&mut mapper, &mut frames);
    assert_eq!(seen, on_offset_page_table());
    test.check();
    let loose = pgd.unpin(&guest, &mut batch).expect("unpinned");
    destroy(&guest, loose, &mut pool);
    test.check();
}

#[test]
fn a_huge_page_gets_the_traits_own_errors() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut mapper = LiveMapper::new(guest, &mut pgd, &mut batch);
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
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut mapper = LiveMapper::new(guest, &mut pgd, &mut batch);
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(0x4444_4444_0000));
    let strange = PhysFrame::containing_address(PhysAddr::new(0x7_0000_0000));
    // SAFETY: there is no such frame; it must be refused.
    let mapped =
        unsafe { mapper.map_to(page, strange, PageTableFlags::PRESENT, &mut Frames(Vec::new())) };
    assert!(matches!(mapped, Err(MapToError::FrameAllocationFailed)));
    assert!(matches!(mapper.refusal(), Some(MapError::Walk(_) | MapError::OutOfFrames)));
}

/// Whether the entries of levels 4, 3 and 2 for `va` let the pages behind them be written.
fn writable_tables<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>, va: VirtAddr) -> Vec<bool> {
    let va = GuestVa::new(va.as_u64()).expect("user half");
    let walk = walk(guest, pgd.root(), va).expect("readable");
    walk.steps().take(3).map(|step| step.pte.is_writable()).collect()
}

/// Maps a page at `address` under tables with `parents`.
fn map_under<M: Machine>(
    guest: Guest<'_, M>,
    pgd: &mut Pgd<Pinned>,
    address: u64,
    parents: PageTableFlags,
    frames: &mut Frames,
) -> Result<(), Option<MapError>> {
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let mut mapper = LiveMapper::new(guest, pgd, &mut batch);
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(address));
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    let frame = frames.allocate_frame().expect("memory");
    // SAFETY: the frame is free.
    match unsafe { mapper.map_to_with_table_flags(page, frame, flags, parents, frames) } {
        Ok(flush) => {
            flush.ignore();
            Ok(())
        }
        Err(_) => {
            let refusal = mapper.refusal();
            frames.0.push(frame);
            Err(refusal)
        }
    }
}

fn frames_of(pool: &mut Pool, count: usize) -> Frames {
    let frame = |pfn: hypercall::Pfn| PhysFrame::containing_address(PhysAddr::new(pfn.raw() << 12));
    let free = core::iter::from_fn(|| pool.take()).take(count);
    Frames(free.map(|free| frame(free.pfn())).collect())
}

const READ_ONLY: PageTableFlags = PageTableFlags::PRESENT;
const WRITABLE: PageTableFlags = READ_ONLY.union(PageTableFlags::WRITABLE);

#[test]
fn tables_get_the_flags_that_are_asked_for_and_lose_none_by_it() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut frames = frames_of(&mut pool, 30);
    const AT: u64 = 0x4444_4000_0000;
    let steps = [
        // All tables are new; one is, beside one that has the right; it gets it, too.
        (0, READ_ONLY, [false, false, false]),
        (1 << 21, WRITABLE, [true, true, true]),
        (0x1000, WRITABLE, [true, true, true]),
        (1 << 22, READ_ONLY, [true, true, false]),
    ];
    for (offset, parents, expected) in steps {
        map_under(guest, &mut pgd, AT + offset, parents, &mut frames).expect("mapped");
        let tables = writable_tables(&guest, &pgd, VirtAddr::new(AT + offset));
        assert_eq!(tables, expected, "{offset:#x}");
        test.check();
    }
    let absent = map_under(guest, &mut pgd, AT, PageTableFlags::WRITABLE, &mut frames);
    let va = GuestVa::new(AT).expect("user half");
    let wrong = MapError::Flags { va, flags: hypercall::PteFlags::WRITABLE };
    assert_eq!(absent, Err(Some(wrong)), "tables that are not there");
    let loose = pgd.unpin(&guest, &mut batch).expect("unpinned");
    destroy(&guest, loose, &mut pool);
    test.check();
}

#[test]
fn a_page_whose_tables_cannot_get_their_flags_is_not_mapped() {
    let mut refusals = 0;
    for request in 0..8 {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let plain = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let mut storage = BatchStorage::<16, 4>::new();
        let mut batch = storage.batch();
        let pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
        let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
        let mut frames = frames_of(&mut pool, 10);
        let refusal = Refusal { request, errno: Errno::ENOMEM, done: 0 };
        let machine = FailNth::new(&test.model, refusal);
        let around = guest(&test, &machine, &p2m);
        let at = 0x4444_4000_0000;
        let mapped = map_under(around, &mut pgd, at, READ_ONLY, &mut frames);
        assert_eq!(mapped.is_err(), machine.has_refused(), "{refusal:?}");
        let there = pgd.translate(&plain, GuestVa::new(at).expect("user half"));
        assert_eq!(there.expect("readable").is_some(), mapped.is_ok(), "{refusal:?}");
        if let Err(reason) = mapped {
            refusals += 1;
            assert!(reason.is_some(), "the reason is kept");
        }
        let loose = pgd.unpin(&plain, &mut batch).expect("unpinned");
        destroy(&plain, loose, &mut pool);
        test.check();
    }
    assert!(refusals > 3, "{refusals}");
}

#[test]
fn a_frame_that_others_map_too_is_not_handed_out() {
    scene!(test, guest, pool);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 1, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let child = pgd.fork(&mut with).expect("forked");
    let mut storage = BatchStorage::<16, 4>::new();
    let mut own_batch = storage.batch();
    let mut mapper = LiveMapper::new(guest, &mut pgd, &mut own_batch);
    let shared = Page::<Size4KiB>::containing_address(VirtAddr::new(page(0).raw()));
    let refused = Mapper::<Size4KiB>::unmap(&mut mapper, shared).map(|(frame, _)| frame);
    assert!(matches!(refused, Err(UnmapError::InvalidFrameAddress(_))), "{refused:?}");
    assert!(matches!(mapper.refusal(), Some(MapError::CannotShare(_))));
    assert!(mapper.translate_addr(shared.start_address()).is_some(), "it is still there");
    child.destroy(&mut with).expect("destroyed");
    pgd.destroy(&mut with).expect("destroyed");
    assert!(counts.iter().all(|count| *count == 0));
    test.check();
}

/// A page under tables whose flags change, with each two requests refused: the caller keeps the
/// frame of a page that could not be mapped, or is told that it has not got it.
#[test]
fn a_frame_that_could_not_be_mapped_is_mapped_nowhere_or_said_to_be_lost() {
    let (mut refusals, mut lost) = (0, 0);
    let at = 0x4444_4000_0000;
    let there = GuestVa::new(at).expect("user half");
    for (first, second) in (0..9).flat_map(|first| (first + 1..9).map(move |next| (first, next))) {
        for beside in [false, true] {
            let test = TestGuest::new();
            let p2m = test.p2m();
            let plain = guest(&test, &test.model, &p2m);
            let mut pool = test.pool();
            let mut storage = BatchStorage::<16, 4>::new();
            let mut batch = storage.batch();
            let pgd = Pgd::with_user_root(&mut Tools::new(plain, &mut pool)).expect("two roots");
            let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
            let mut frames = frames_of(&mut pool, 20);
            if beside {
                let page = at + 0x1000;
                map_under(plain, &mut pgd, page, READ_ONLY, &mut frames).expect("mapped");
            }
            let frame = frames.allocate_frame().expect("memory");
            let refuse = |request| Refusal { request, errno: Errno::ENOMEM, done: 1 };
            let machine = FailNth::new(&test.model, refuse(first));
            let machine = FailNth::new(&machine, refuse(second));
            let around = guest(&test, &machine, &p2m);
            let mut mapper = LiveMapper::new(around, &mut pgd, &mut batch);
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(at));
            // SAFETY: the frame is free.
            let mapped = unsafe {
                mapper.map_to_with_table_flags(page, frame, WRITABLE, WRITABLE, &mut frames)
            };
            let is_mapped = mapped.map(|flush| flush.ignore()).is_ok();
            let (refusal, has_lost) = (mapper.refusal(), mapper.has_lost_frame());
            let uncertain = mapper.uncertain();
            let shown = pgd.translate(&plain, there).expect("readable").is_some();
            let what = format!("{first}, {second}, {beside}: {refusal:?}, {uncertain} uncertain");
            assert!(is_mapped || refusal.is_some(), "{what}");
            assert_eq!(shown, is_mapped, "{what}");
            assert!(!has_lost || !shown && uncertain > 0, "lost, and nobody counts it: {what}");
            refusals += u32::from(!is_mapped);
            lost += u32::from(has_lost);
        }
    }
    assert!(refusals > 10 && lost > 0, "{refusals} refused, {lost} lost");
}

/// Xen is asked no more than for the page where its tables are as they must be.
#[test]
fn a_page_under_tables_with_the_usual_flags_takes_one_request() {
    scene!(test, machine, guest, pool);
    let mut storage = BatchStorage::<16, 4>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut frames = frames_of(&mut pool, 20);
    for address in [0x4444_4000_0000, 0x4444_4000_1000] {
        let before = machine.counts().hypercalls;
        map_under(guest, &mut pgd, address, WRITABLE, &mut frames).expect("mapped");
        assert_eq!(machine.counts().hypercalls, before + 1, "{address:#x}");
    }
    // One that is taken has its tables left alone.
    let taken = map_under(guest, &mut pgd, 0x4444_4000_0000, READ_ONLY, &mut frames);
    assert!(matches!(taken, Err(Some(MapError::Occupied { .. }))), "{taken:?}");
    test.check();
}
