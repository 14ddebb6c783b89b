//! The heap: in the image's zeroed part, so that it is there and mapped before anything else is.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use hypercall::{GuestVa, PAGE_SIZE};
use linked_list_allocator::Heap;
use spin::Mutex;

const HEAP_BYTES: usize = 4 * 1024 * 1024;

#[repr(C, align(4096))]
struct Pages<const BYTES: usize>([u8; BYTES]);

static mut HEAP: Pages<HEAP_BYTES> = Pages([0; HEAP_BYTES]);
static mut SPARE: Pages<PAGE_SIZE> = Pages([0; PAGE_SIZE]);

/// `Heap` wants `&mut`; the lock is a wrapper.
struct LockedHeap(Mutex<Heap>);

#[global_allocator]
static ALLOCATOR: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

// SAFETY: `Heap` gives out disjoint blocks of its memory, and the lock lets one caller in at a
// time. Nothing that interrupts the kernel allocates.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got the block from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(block, layout) };
        }
    }
}

/// Gives the heap its memory; called once, before the first allocation.
pub(super) fn init() {
    let start = (&raw mut HEAP).cast::<u8>();
    // SAFETY: nobody else names `HEAP`, and `kernel_main` calls this once.
    unsafe { ALLOCATOR.0.lock().init(start, HEAP_BYTES) };
}

/// A page of the image that something else may be mapped in place of, if that is an address of the
/// guest's (the linker script says so).
pub(super) fn spare_page() -> Option<GuestVa> {
    GuestVa::new((&raw const SPARE) as u64).ok()
}
