//! A machine that answers nonsense: whatever it says, nothing panics, and everything ends.
#![cfg(not(loom))]

mod common;

use common::{Guest, Places, gather_with, reinstate_on, scatter_on};
use pv_tests::nonsense::{Nonsense, seeds};
use swiotlb::direction::Bidirectional;
use swiotlb::{Bounce, Device, Dma, DmaMask, Segment};

#[test]
fn regions_and_mappings_are_made_or_refused_whatever_a_machine_says() {
    for seed in seeds(60) {
        let guest = Guest::new();
        let nonsense = Nonsense::new(&guest.model, seed);
        let around = guest.on(&nonsense);
        let made = gather_with::<_, 64>(&guest, &nonsense, guest.frames(0, 128), 5, DmaMask::ALL);
        let region = match made {
            Ok(region) => Some(region),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                if let Some(stranded) = error.stranded {
                    let _ = reinstate_on(&guest, &nonsense, stranded);
                }
                error.made
            }
        };
        if let Some(region) = region {
            let _ = scatter_on(&guest, &nonsense, region).map_err(|error| error.to_string());
        }
        let places = Places::new(2, 2);
        let pool = places.pool();
        let frames = guest.frames(128, 64);
        let region = common::gather_on(&guest, &guest.model, frames, Segment::ORDER, DmaMask::ALL);
        let Ok(region) = region else { continue };
        let _ = pool.grow(guest.p2m, region);
        let dma = Dma { guest: around, pool: &pool, vcpu: 1 };
        let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::ALL) };
        for (frame, pages) in (0..40).zip((0..9).cycle()) {
            let buffer = guest.buffer(frame, 100, 5_000);
            if let Ok(mapping) = dma.map::<Bidirectional>(&device, buffer) {
                let _ = dma.sync_for_device(&mapping, 10..20);
                let mut mapping = Some(mapping);
                for _ in 0..3 {
                    let Some(held) = mapping.take() else { break };
                    mapping = dma.unmap(held).err().map(|refused| refused.value);
                }
            }
            if let Ok(pages) = dma.coherent(pages, DmaMask::bits(33)) {
                let _ = dma.free_coherent(pages);
            }
        }
    }
}
