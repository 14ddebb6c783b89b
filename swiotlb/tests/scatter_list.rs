//! Scatter lists on the model: which buffers become one run, and what a failure leaves.

mod common;

use common::{ARENA, gather_on, with_pool};
use hypercall::Pfn;
use swiotlb::direction::Bidirectional;
use swiotlb::scatter_list::{BusRun, Item, ItemError};
use swiotlb::{Bounce, Device, DmaError, DmaMask, GuestBytes, Segment};

/// Bounces everything.
const BOUNCE: Device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::ALL) };

fn place(frame: u64, offset: usize, len_bytes: usize) -> GuestBytes {
    GuestBytes { pfn: Pfn::new(ARENA + frame), offset, len_bytes }
}

#[test]
fn neighbours_of_a_scatter_list_become_one_run() {
    with_pool(|guest, dma| {
        let frames = guest.frames(0, 64);
        let region = gather_on(guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
        let start = swiotlb::BusAddr::new(region.mfn(dma.guest.p2m(), 0).expect("memory"), 0).raw();
        let mut items = [(0, 4096), (1, 4096), (2, 100), (3, 50), (70, 8192)]
            .map(|(frame, len)| Item::<Bidirectional>::Buffer(guest.buffer(frame, 0, len)));
        let mut runs = [BusRun::EMPTY; 5];
        let device = Device::new(DmaMask::ALL);
        assert_eq!(dma.map_list(&device, &mut items, &mut runs), Ok(3));
        assert_eq!((runs[0].start.raw(), runs[0].len_bytes), (start, 8292));
        assert_eq!((runs[1].start.raw(), runs[1].len_bytes), (start + 3 * 4096, 50));
        assert_eq!(runs[2].len_bytes, 8192, "the scattered one, bounced");
        dma.unmap_list(&mut items).expect("unmapped");
        let limited = Device { run_bytes_max: core::num::NonZeroU64::new(8192), ..device };
        assert_eq!(dma.map_list(&limited, &mut items, &mut runs), Ok(4));
        dma.unmap_list(&mut items).expect("unmapped");
    });
}

#[test]
fn a_scatter_list_that_fails_is_not_mapped_at_all() {
    with_pool(|guest, dma| {
        let mut items = [(0, 100), (1, Segment::BYTES), (66, Segment::BYTES), (2, 5)]
            .map(|(frame, len)| Item::<Bidirectional>::Buffer(guest.buffer(frame, 0, len)));
        guest.write(place(0, 0, 100), &[7; 100]);
        let mut runs = [BusRun::EMPTY; 4];
        let full = dma.map_list(&BOUNCE, &mut items, &mut runs).expect_err("full");
        assert!(full.item == 2 && matches!(full.error, DmaError::PoolFull { .. }), "{full}");
        assert!(items.iter().all(|item| matches!(item, Item::Buffer(_))));
        assert_eq!(guest.read(place(0, 0, 100)), [7; 100]);
        let mut few = [Item::<Bidirectional>::Empty, Item::Buffer(guest.buffer(80, 0, 5))];
        let too_few = dma.map_list(&BOUNCE, &mut few, &mut []);
        assert_eq!(too_few, Err(ItemError { item: 1, error: DmaError::RunsFull { runs: 0 } }));
        assert!(matches!(few[1], Item::Buffer(_)));
    });
}

#[test]
fn a_mapping_that_a_list_begins_with_is_not_the_lists_to_cancel() {
    with_pool(|guest, dma| {
        let mut items =
            [2, 80].map(|frame| Item::<Bidirectional>::Buffer(guest.buffer(frame, 0, 100)));
        let mut runs = [BusRun::EMPTY; 2];
        dma.map_list(&BOUNCE, &mut items[..1], &mut runs).expect("mapped");
        let Item::Mapped(mapping) = &items[0] else { panic!("mapped above") };
        let address = mapping.bus();
        // The device writes; then the list is mapped once more, without room for its runs.
        guest.device_writes(address, &[9; 100]);
        let again = dma.map_list(&BOUNCE, &mut items, &mut []);
        assert_eq!(again, Err(ItemError { item: 0, error: DmaError::MappedAlready { address } }));
        assert!(matches!(items, [Item::Mapped(_), Item::Buffer(_)]));
        dma.unmap_list(&mut items).expect("unmapped");
        assert_eq!(guest.read(place(2, 0, 100)), [9; 100], "what the device wrote arrived");
    });
}
