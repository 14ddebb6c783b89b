//! I-10, I-11: a device gets runs that are contiguous, and bytes that nobody else uses.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use hypercall::FrameAccess;
use swiotlb::direction::ToDevice;
use swiotlb::{Buffer, BusAddr, Coherent, Dma, GuestBytes};

fn a_buffer_is_claimed_by_unsafe_code_alone(place: GuestBytes) -> Buffer {
    owed!(Buffer::claim(place)) //~ E0133
}

fn a_mapping_without_its_value_ends_by_unsafe_code_alone<M: FrameAccess>(
    dma: &Dma<'_, '_, M>,
    bus: BusAddr,
    place: GuestBytes,
) {
    let _ = owed!(dma.unmap_at::<ToDevice>(bus, place)); //~ E0133
}

fn coherent_pages_without_their_value_end_by_unsafe_code_alone<M: FrameAccess>(
    dma: &Dma<'_, '_, M>,
    pages: &Coherent,
) {
    let _ = owed!(dma.free_coherent_at(pages.bus(), pages.pages())); //~ E0133
}

hidden! {
    use hypercall::{Frames, Uncertain};
    use swiotlb::region::{Region, RegionError, Stranded};

    fn frames_that_are_perhaps_not_mapped_are_no_frames(error: RegionError) -> Option<Frames> {
        error.stranded //~ E0308
    }

    fn what_somebody_else_is_uncertain_of_is_not_reinstated(frames: Uncertain) -> Stranded {
        Stranded(frames) //~ E0423
    }

    fn a_buffer_is_not_made_of_a_place(place: GuestBytes) -> Buffer {
        Buffer(place) //~ E0423
    }

    fn a_buffer_is_not_copied(buffer: Buffer) -> [Buffer; 2] {
        [buffer.clone(), buffer] //~ E0599
    }

    fn runs_do_not_become_longer(region: &mut Region) {
        region.order = 9; //~ E0616
    }

    fn coherent_pages_are_not_copied(pages: Coherent) -> [Coherent; 2] {
        [pages.clone(), pages] //~ E0599
    }
}
