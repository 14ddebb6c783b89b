//! Two different questions about memory, for two different callers.
//!
//! *Contiguous*: do the machine frames of a buffer follow one another? A streaming mapping asks
//! nothing else. *Aligned*: is an address a multiple of a size? Only coherent memory promises that.
//! Linux once asked both in the streaming path, and ordinary buffers, which are aligned to nothing,
//! went through the bounce pool until it was full.

use hypercall::{PAGE_SIZE, Pfn};
use p2m::{P2m, P2mError};

use crate::address::BusAddr;

/// A place in the guest's memory: bytes from `offset` in the frame of `pfn` on, through the frames
/// of the pfns that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first frame.
    pub pfn: Pfn,
    /// Where in it; from 4096 on, in one that follows.
    pub offset: usize,
    /// How many bytes.
    pub len_bytes: usize,
}

impl Place {
    /// The pfn and offset of byte `at`.
    #[inline]
    pub(crate) const fn byte(&self, at: usize) -> (Pfn, usize) {
        let offset = self.offset + at;
        (Pfn::new(self.pfn.raw() + (offset / PAGE_SIZE) as u64), offset % PAGE_SIZE)
    }

    /// The same place, by the frame that its first byte is in.
    #[cold]
    const fn within_a_frame(self) -> Self {
        let frames = (self.offset / PAGE_SIZE) as u64;
        // Where the sum stops, no guest has memory.
        let pfn = Pfn::new(self.pfn.raw().saturating_add(frames));
        Self { pfn, offset: self.offset % PAGE_SIZE, ..self }
    }
}

/// Where the device sees `place`, and how many of its bytes from the beginning lie together there.
///
/// # Errors
/// The first frame is not the guest's own memory, or one of those that would follow is not.
///
/// # Hypercalls
/// None: one look-up for each frame.
///
/// ```
/// # use core::sync::atomic::AtomicU64;
/// use hypercall::Pfn;
/// use p2m::P2m;
/// use swiotlb::{Place, contiguous};
///
/// let list = [0x203, 0x204, 0x777].map(AtomicU64::new);
/// let p2m = unsafe { P2m::adopt(&list) }?;
/// let place = Place { pfn: Pfn::new(0), offset: 0x800, len_bytes: 3 * 4096 - 0x800 };
/// let (bus, len_bytes) = contiguous(&p2m, place)?;
/// assert_eq!((bus.raw(), len_bytes), (0x20_3800, 2 * 4096 - 0x800));
/// # Ok::<(), p2m::P2mError>(())
/// ```
#[inline]
pub fn contiguous(p2m: &P2m<'_>, place: Place) -> Result<(BusAddr, usize), P2mError> {
    let place = if place.offset < PAGE_SIZE { place } else { place.within_a_frame() };
    let first = p2m.mfn(place.pfn)?;
    let start = BusAddr::new(first, place.offset);
    let mut together = PAGE_SIZE - place.offset;
    let mut frames = 1;
    while together < place.len_bytes {
        let pfn = Pfn::new(place.pfn.raw() + frames);
        if p2m.mfn(pfn)?.offset_from(first) != Some(frames) {
            break;
        }
        frames += 1;
        together += PAGE_SIZE;
    }
    Ok((start, together.min(place.len_bytes)))
}

/// Whether an address is a multiple of 2^`order` pages, as 0 is of any number.
///
/// ```
/// use swiotlb::{BusAddr, is_aligned};
///
/// assert!(is_aligned(BusAddr::from_raw(0x20_0000), 9));
/// assert!(!is_aligned(BusAddr::from_raw(0x20_1000), 9));
/// ```
#[must_use]
pub const fn is_aligned(start: BusAddr, order: u32) -> bool {
    // From 2^64 bytes on, for which no bit is left, 0 is the only one.
    match (PAGE_SIZE as u64).checked_shl(order) {
        Some(bytes) => start.raw().is_multiple_of(bytes),
        None => start.raw() == 0,
    }
}

#[cfg(all(test, not(loom)))]
#[expect(unsafe_code, reason = "maps over numbers, with no memory behind them")]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn the_first_break_in_the_machine_ends_what_is_contiguous() {
        let list = [0x700, 0x701, 0x703, 0x704].map(AtomicU64::new);
        // SAFETY: no memory is behind these numbers.
        let p2m = unsafe { P2m::adopt(&list) }.expect("a list");
        let at = |pfn, offset, len_bytes| Place { pfn: Pfn::new(pfn), offset, len_bytes };
        let start = BusAddr::from_raw(0x70_0010);
        assert_eq!(contiguous(&p2m, at(0, 0x10, 0x1ff0)), Ok((start, 0x1ff0)));
        assert_eq!(contiguous(&p2m, at(0, 0x10, 0x1ff1)), Ok((start, 0x1ff0)));
        assert_eq!(contiguous(&p2m, at(2, 0, 0x2000)).map(|found| found.1), Ok(0x2000));
        assert!(contiguous(&p2m, at(3, 1, 0x1000)).is_err(), "it leaves the map");
    }

    #[test]
    fn an_offset_past_the_frame_is_one_in_a_frame_behind_it() {
        let list = [0x700, 0x703, 0x704].map(AtomicU64::new);
        // SAFETY: no memory is behind these numbers.
        let p2m = unsafe { P2m::adopt(&list) }.expect("a list");
        let at = |pfn, offset, len_bytes| Place { pfn: Pfn::new(pfn), offset, len_bytes };
        for (offset, start) in [(0x1000, 0x70_3000), (0x1388, 0x70_3388), (0x2fff, 0x70_4fff)] {
            let found = contiguous(&p2m, at(0, offset, 1));
            assert_eq!(found, Ok((BusAddr::from_raw(start), 1)), "offset {offset:#x}");
        }
        let found = contiguous(&p2m, at(0, 0x1010, 0x1800));
        assert_eq!(found, Ok((BusAddr::from_raw(0x70_3010), 0x1800)), "across two frames");
        for (pfn, offset) in [(0, 0x3000), (0, usize::MAX), (2, 0x1000), (u64::MAX, usize::MAX)] {
            assert!(contiguous(&p2m, at(pfn, offset, 1)).is_err(), "it is behind the map");
        }
    }

    #[test]
    fn only_address_0_is_a_multiple_of_what_no_word_holds() {
        let at = BusAddr::from_raw;
        assert!(is_aligned(at(1 << 63), 51) && !is_aligned(at(1 << 62), 51));
        for order in [52, 63, 64, 65, u32::MAX] {
            assert!(is_aligned(at(0), order), "order {order}");
            for address in [1, 0x1000, 1 << 63, u64::MAX] {
                assert!(!is_aligned(at(address), order), "{address:#x}, order {order}");
            }
        }
    }

    #[test]
    fn property_contiguity_is_what_a_byte_by_byte_reference_says() {
        arbtest::arbtest(|u| {
            let steps: [bool; 12] = u.arbitrary()?;
            let mut mfn = 0x800;
            let list = steps.map(|jump| {
                mfn += if jump { 5 } else { 1 };
                AtomicU64::new(mfn)
            });
            // SAFETY: no memory is behind these numbers.
            let p2m = unsafe { P2m::adopt(&list) }.expect("a list");
            let pfn = u.int_in_range(0..=11u64)?;
            let offset = u.int_in_range(0..=4095usize)?;
            let room = (12 - usize::try_from(pfn).expect("small")) * PAGE_SIZE - offset;
            let place = Place { pfn: Pfn::new(pfn), offset, len_bytes: u.int_in_range(1..=room)? };
            let bus = |at: usize| {
                let (pfn, offset) = place.byte(at);
                p2m.mfn(pfn).map(|mfn| BusAddr::new(mfn, offset).raw())
            };
            let start = bus(0).expect("in the map");
            let together =
                (0..place.len_bytes).take_while(|at| bus(*at) == Ok(start + *at as u64)).count();
            // Alignment has no part in it: any offset will do.
            assert_eq!(contiguous(&p2m, place), Ok((BusAddr::from_raw(start), together)));
            Ok(())
        })
        .budget_ms(500);
    }
}
