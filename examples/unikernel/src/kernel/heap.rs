//! The heap: at first in the image's zeroed part, so that it is there and mapped before anything
//! else is; later also in extents of frames that a program lends it, and gets back when they are
//! empty.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use hypercall::{Frames, GuestVa, PAGE_SIZE};
use linked_list_allocator::Heap;

use super::lock::Mutex;

const HEAP_BYTES: usize = 4 * 1024 * 1024;
/// What stays free of it, as long as there is room in an extent: what is larger than any extent
/// goes here.
const IMAGE_RESERVE: usize = 3 * 1024 * 1024;
/// The most extents.
const EXTENTS_MAX: usize = 256;

#[repr(C, align(4096))]
struct Pages<const BYTES: usize>([u8; BYTES]);

static mut HEAP: Pages<HEAP_BYTES> = Pages([0; HEAP_BYTES]);

/// Memory that was lent.
struct Extent {
    heap: Heap,
    frames: Frames,
}

/// All of it. The image's part is asked first, up to its reserve: what the kernel keeps for ever is
/// there then, and does not keep an extent from becoming empty.
struct Heaps {
    image: Heap,
    extents: [Option<Extent>; EXTENTS_MAX],
}

/// `Heap` wants `&mut`; the lock is a wrapper.
struct LockedHeaps(Mutex<Heaps>);

#[global_allocator]
static ALLOCATOR: LockedHeaps =
    LockedHeaps(Mutex::new(Heaps { image: Heap::empty(), extents: [const { None }; EXTENTS_MAX] }));

impl Heaps {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let from = |heap: &mut Heap| heap.allocate_first_fit(layout).ok();
        if self.image.free() >= IMAGE_RESERVE.saturating_add(layout.size()) {
            return self.all().find_map(from);
        }
        let block = self.extents().find_map(from);
        block.or_else(|| from(&mut self.image))
    }

    fn extents(&mut self) -> impl Iterator<Item = &mut Heap> {
        self.extents.iter_mut().flatten().map(|extent| &mut extent.heap)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Heap> {
        let extents = self.extents.iter_mut().flatten().map(|extent| &mut extent.heap);
        core::iter::once(&mut self.image).chain(extents)
    }
}

// SAFETY: each `Heap` gives out disjoint blocks of its memory, which is its own (`init`, `extend`),
// and the lock lets one caller in at a time. Nothing that interrupts the kernel allocates.
unsafe impl GlobalAlloc for LockedHeaps {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let mut heaps = self.0.lock();
        let owner = heaps.all().find(|heap| (heap.bottom()..heap.top()).contains(&block));
        if let (Some(owner), Some(block)) = (owner, NonNull::new(block)) {
            // SAFETY: the caller got the block from `alloc` with this layout, which took it from
            // the heap that it lies in.
            unsafe { owner.deallocate(block, layout) };
        }
    }
}

/// Gives the heap its memory; called once, before the first allocation.
pub(super) fn init() {
    let start = (&raw mut HEAP).cast::<u8>();
    // SAFETY: nobody else names `HEAP`, and `kernel_main` calls this once.
    unsafe { ALLOCATOR.0.lock().image.init(start, HEAP_BYTES) };
}

/// Lends the heap `frames`, which are mapped at `start`. They come back if it has no place for
/// them.
///
/// # Safety
/// They are mapped there writable, and stay so until [`shrink`] gives them back.
pub(super) unsafe fn extend(frames: Frames, start: GuestVa) -> Result<(), Frames> {
    let mut heaps = ALLOCATOR.0.lock();
    let Some(place) = heaps.extents.iter_mut().find(|place| place.is_none()) else {
        return Err(frames);
    };
    let Ok(count) = usize::try_from(frames.count()) else { return Err(frames) };
    // SAFETY: the frames are the heap's by their token (I-1), and mapped by the caller's word.
    let heap = unsafe { Heap::new(start.addr().as_mut_ptr(), count * PAGE_SIZE) };
    *place = Some(Extent { heap, frames });
    Ok(())
}

/// An extent in which nothing is, if there is one: it is the heap's no more.
pub(super) fn shrink() -> Option<Frames> {
    let mut heaps = ALLOCATOR.0.lock();
    let is_empty =
        |place: &&mut Option<Extent>| place.as_ref().is_some_and(|extent| extent.heap.used() == 0);
    let place = heaps.extents.iter_mut().rev().find(is_empty)?;
    place.take().map(|extent| extent.frames)
}
