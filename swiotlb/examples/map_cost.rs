//! What a mapping costs beside the copy: for `cargo xtask test`, which counts instructions.
//!
//! `map_cost bounce|direct|none TIMES`: maps and unmaps 2 KiB so often, on a machine whose copies
//! do nothing. `map_cost threads TIMES`: what two threads do in the time of one, for people.
#![expect(unsafe_code, reason = "claims frames that exist only as numbers")]

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use hypercall::{AccessError, FrameAccess, Frames, GuestVa, Mfn, Pfn, Pte};
use p2m::P2m;
use swiotlb::{
    Area, Buffer, Device, Dma, DmaMask, Path, Place, Pool, Region, SEGMENT_ORDER, Segment, ToDevice,
};
use x86_64::structures::paging::PageTableIndex;

/// Segments of the pool: 64 MiB.
const SEGMENTS: u64 = 256;

/// A machine without memory.
struct Nothing;

impl FrameAccess for Nothing {
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

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (what, times) = match words.as_slice() {
        [what, times] => (what.as_str(), times.parse::<u64>().unwrap_or(0)),
        _ => ("", 0),
    };
    // A guest whose frames follow one another, from 4 GiB up.
    let list: Vec<AtomicU64> =
        (1 << 20..(1 << 20) + SEGMENTS * 64 + 64).map(AtomicU64::new).collect();
    let p2m = P2m::adopt(&list).expect("a list");
    let segments: Vec<Segment> = (0..SEGMENTS).map(|_| Segment::new()).collect();
    let areas = [Area::new(), Area::new()];
    let pool = Pool::new(&segments, &areas).expect("it has places");
    // SAFETY: no frame stands behind the numbers.
    let frames = unsafe { Frames::claim(Pfn::new(64), SEGMENTS * 64) };
    let region = Region::adopt(&p2m, frames, SEGMENT_ORDER, DmaMask::ALL).expect("contiguous");
    pool.grow(&p2m, region).expect("there are places");
    let dma = Dma { machine: &Nothing, p2m: &p2m, pool: &pool, vcpu: 0 };
    match what {
        "none" => (0..times).map(buffer).for_each(|buffer| {
            black_box(buffer);
        }),
        "direct" => maps(dma, Path::Shortest, times),
        "bounce" => maps(dma, Path::Bounce, times),
        "threads" => threads(dma, times),
        _ => eprintln!("map_cost bounce|direct|none|threads TIMES"),
    }
}

fn buffer(at: u64) -> Buffer {
    let place = Place { pfn: Pfn::new(at % 64), offset: 0, len_bytes: 2048 };
    // SAFETY: no frame stands behind the number.
    unsafe { Buffer::claim(place) }
}

fn maps(dma: Dma<'_, '_, Nothing>, path: Path, times: u64) {
    let device = black_box(Device { path, ..Device::new(DmaMask::ALL) });
    for at in 0..times {
        let mapping = dma.map::<ToDevice>(&device, black_box(buffer(at))).expect("mapped");
        black_box(mapping.bus());
        black_box(dma.unmap(mapping).expect("unmapped"));
    }
}

/// What two threads do in the time of one: in an area each, and in one area. It is counted in time
/// on a CPU, so that others on this machine do not count.
fn threads(dma: Dma<'_, '_, Nothing>, times: u64) {
    // Mappings in a second on a CPU, summed over the threads.
    let rate = |vcpus: &[usize]| -> f64 {
        std::thread::scope(|scope| {
            let run = |vcpu| scope.spawn(move || one_thread(Dma { vcpu, ..dma }, times));
            let threads: Vec<_> = vcpus.iter().copied().map(run).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        })
    };
    let one = rate(&[0]);
    let ratio = |two: f64| two / one;
    println!("one thread: {:.1} million mappings in a second", one / 1e6);
    println!("two threads, an area each: {:.2} times as many", ratio(rate(&[0, 1])));
    println!("two threads in one area:   {:.2} times as many", ratio(rate(&[0, 2])));
}

/// Mappings in a second that this thread was on a CPU.
fn one_thread(dma: Dma<'_, '_, Nothing>, times: u64) -> f64 {
    let before = on_cpu();
    maps(dma, Path::Bounce, times);
    let microseconds = u32::try_from(((on_cpu() - before) / 1000).max(1)).unwrap_or(u32::MAX);
    f64::from(u32::try_from(times).unwrap_or(u32::MAX)) * 1e6 / f64::from(microseconds)
}

/// Nanoseconds that this thread was on a CPU (Linux).
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
