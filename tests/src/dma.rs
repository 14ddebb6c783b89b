//! A pool for the examples of `swiotlb`; and a mapping for a device and its end, on a machine whose
//! copies do nothing: what there is beside the moving of bytes.
#![expect(unsafe_code, reason = "claims frames that exist only as numbers")]

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use hypercall::memory::Extent;
use hypercall::{AccessError, FrameAccess, Frames, GuestVa, Mfn, Pfn, Pte};
use p2m::{Guest, P2m};
use swiotlb::direction::ToDevice;
use swiotlb::region::{Region, Scratch, gather};
use swiotlb::{Area, Bounce, Buffer, Device, Dma, DmaMask, GuestBytes, Pool, Segment};
use x86_64::structures::paging::PageTableIndex;

use crate::guest::TestGuest;

/// Segments of the pool: 64 MiB.
const SEGMENTS: u64 = 256;
/// The frame of the first pfn: 4 GiB. The others follow.
const FIRST_MFN: u64 = 1 << 20;

/// A machine without memory.
#[derive(Debug)]
pub struct Nothing;

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for Nothing {
    fn read_entry(&self, _: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
        Ok(Pte::ABSENT)
    }

    unsafe fn write_entry(&self, _: Pfn, _: PageTableIndex, _: Pte) -> Result<(), AccessError> {
        Ok(())
    }

    fn read_bytes(&self, _: Pfn, _: usize, _: &mut [u8]) -> Result<(), AccessError> {
        Ok(())
    }

    unsafe fn write_bytes(&self, _: Pfn, _: usize, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }

    fn machine_to_phys(&self, _: Mfn) -> Option<Pfn> {
        None
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}

/// Returns a guest on the model, a pool of 256 KiB in its memory, and the first of four free pages.
///
/// # Panics
/// Never: the guest is large enough.
#[must_use]
pub fn a_guest_and_its_pool() -> (TestGuest, Pool<'static>, Pfn) {
    let mut guest = TestGuest::new();
    let frames = guest.frames.take_run(1 << Segment::ORDER);
    let mut extents = [Extent::default(); 2 << Segment::ORDER];
    let mut scratch = Scratch { batch: guest.batch(), extents: &mut extents };
    let region = gather(&guest.guest, frames, Segment::ORDER, DmaMask::ALL, &mut scratch);
    let segments: &[Segment] = Box::leak(Box::new([Segment::new()]));
    let pool = Pool::new(segments, Box::leak(Box::new([Area::new()]))).expect("it has places");
    pool.grow(guest.p2m, region.expect("Xen has memory")).expect("there is a place");
    let pages = guest.frames.take_run(4);
    (guest, pool, pages.start())
}

/// What maps, for as long as the program runs, and how often it is to map.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// What maps.
    pub dma: Dma<'static, 'static, Nothing>,
    /// How often.
    pub times: u64,
}

/// Returns a guest whose frames follow one another, with a pool of 64 MiB in two areas.
///
/// # Panics
/// Never: the pool has places for what it is given.
#[must_use]
pub fn ready(times: u64) -> Ready {
    let list: Vec<AtomicU64> =
        (FIRST_MFN..FIRST_MFN + SEGMENTS * 64 + 64).map(AtomicU64::new).collect();
    // SAFETY: no memory is behind the numbers.
    let p2m = Box::leak(Box::new(unsafe { P2m::adopt(list.leak()) }.expect("a list")));
    let segments: Vec<Segment> = (0..SEGMENTS).map(|_| Segment::new()).collect();
    let areas = vec![Area::new(), Area::new()].leak();
    let pool = Box::leak(Box::new(Pool::new(segments.leak(), areas).expect("it has places")));
    // SAFETY: no frame stands behind the numbers.
    let frames = unsafe { Frames::claim(Pfn::new(64), SEGMENTS * 64) };
    let region = Region::adopt(p2m, frames, Segment::ORDER, DmaMask::ALL).expect("contiguous");
    pool.grow(p2m, region).expect("there are places");
    // SAFETY: the guest exists only as numbers, and no table of it is read.
    let guest = unsafe { Guest::new(&Nothing, p2m, Pfn::new(0)) };
    Ready { dma: Dma { guest, pool, vcpu: 0 }, times }
}

/// Maps 2 KiB and unmaps them, so often: as they are, or through the pool. The sum of what the
/// device was told.
///
/// # Panics
/// Never: the pool is large enough.
#[must_use]
pub fn maps(ready: &Ready, bounce: Bounce) -> u64 {
    let device = black_box(Device { bounce, ..Device::new(DmaMask::ALL) });
    let mut sum = 0u64;
    for at in 0..ready.times {
        let place = GuestBytes { pfn: Pfn::new(at % 64), offset: 0, len_bytes: 2048 };
        // SAFETY: no frame stands behind the number.
        let buffer = unsafe { Buffer::claim(black_box(place)) };
        let mapping = ready.dma.map::<ToDevice>(&device, buffer).expect("mapped");
        sum = sum.wrapping_add(black_box(mapping.bus()).raw());
        black_box(ready.dma.unmap(mapping).expect("unmapped"));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_path_tells_the_device_where_the_buffer_is_and_the_other_does_not() {
        let first = FIRST_MFN << hypercall::PAGE_SHIFT;
        assert_eq!(maps(&ready(1), Bounce::IfNeeded), first);
        assert!(maps(&ready(1), Bounce::Always) >= first + (64 << hypercall::PAGE_SHIFT));
    }
}
