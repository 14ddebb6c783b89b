//! A buffer that a device does not reach, and what becomes of it: on the model, in a second.
//!
//! `cargo run -p swiotlb --example bounce`

use std::error::Error;

use hypercall::memory::Extent;
use hypercall::middleware::Counting;
use hypercall::{BatchStorage, Mfn, Pfn};
use p2m::P2m;
use swiotlb::direction::Bidirectional;
use swiotlb::region::{Scratch, gather};
use swiotlb::{Area, Device, Dma, DmaMask, GuestBytes, Pool, Segment};

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn Error>> {
    let guest = common::Guest::new();
    let machine = Counting::new(&guest.model);

    // 1. Memory for a pool: 512 KiB, scattered in the machine, become two runs of 256 KiB.
    let frames = guest.frames(512, 128);
    println!("frames are {:?} in the machine before", mfns(guest.p2m, frames.start()));
    let mut storage = BatchStorage::<512, 1>::new();
    let mut extents = [Extent::default(); 1024];
    let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
    let region = gather(&guest.on(&machine), frames, Segment::ORDER, DmaMask::ALL, &mut scratch)?;
    println!("and {:?} after {}", mfns(guest.p2m, region.start()), machine.counts().hypercalls);

    // 2. A pool, in places that this program owns.
    let segments = [Segment::new(), Segment::new()];
    let areas = [Area::new()];
    let pool = Pool::new(&segments, &areas)?;
    pool.grow(guest.p2m, region)?;

    // 3. A buffer over two frames, which are no neighbours: the device gets slots.
    let dma = Dma { guest: guest.on(&machine), pool: &pool, vcpu: 0 };
    let place = GuestBytes { pfn: Pfn::new(common::ARENA), offset: 4000, len_bytes: 200 };
    guest.write(place, &[1; 200]);
    let device = Device::new(DmaMask::ALL);
    let mapping = dma.map::<Bidirectional>(&device, guest.buffer(0, 4000, 200))?;
    println!("the device gets {} (bounced: {})", mapping.bus(), mapping.is_bounced());
    guest.device_writes(mapping.bus(), &[2; 150]);
    dma.unmap(mapping)?;
    let bytes = guest.read(place);
    println!("150 bytes are the device's, the rest is as it was: {:?}", &bytes[148..152]);
    println!("{:?}", pool.counters());
    assert_eq!((bytes[149], bytes[150]), (2, 1));
    Ok(())
}

/// The first frames of a run.
fn mfns(p2m: &P2m<'_>, first: Pfn) -> Vec<Option<Mfn>> {
    (0..4).map(|at| p2m.mfn(Pfn::new(first.raw() + at)).ok()).collect()
}
