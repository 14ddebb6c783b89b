//! Whether the machine frames of a buffer follow one another.
//!
//! A streaming mapping asks nothing else. Alignment is another question
//! ([`BusAddr::is_aligned`]), which only coherent memory answers. Linux once asked both in the
//! streaming path: ordinary buffers, which are not aligned, filled its bounce pool.

use hypercall::{PAGE_SIZE, Pfn};
use p2m::{P2m, P2mError};

use crate::address::BusAddr;

/// Bytes in the guest's memory: from `offset` in the frame of `pfn` on, into the frames of the next
/// pfns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestBytes {
    /// The first frame.
    pub pfn: Pfn,
    /// The first byte's offset in it; 4096 or more is in a later frame.
    pub offset: usize,
    /// The number of bytes.
    pub len_bytes: usize,
}

impl GuestBytes {
    /// Returns the pfn and offset of byte `at`.
    #[inline]
    pub(crate) const fn byte(&self, at: usize) -> (Pfn, usize) {
        let offset = self.offset + at;
        (Pfn::new(self.pfn.raw() + (offset / PAGE_SIZE) as u64), offset % PAGE_SIZE)
    }

    /// Returns the same place, with the pfn of its first byte.
    #[cold]
    const fn within_a_frame(self) -> Self {
        let frames = (self.offset / PAGE_SIZE) as u64;
        // Where the sum stops, no guest has memory.
        let pfn = Pfn::new(self.pfn.raw().saturating_add(frames));
        Self { pfn, offset: self.offset % PAGE_SIZE, ..self }
    }

    /// Returns the device's address of the first byte, and how many bytes from there on are
    /// contiguous. Looks each frame up once.
    ///
    /// # Errors
    /// One of the frames is not the guest's own memory.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::Pfn;
    /// use p2m::P2m;
    /// use swiotlb::GuestBytes;
    ///
    /// let list = [0x203, 0x204, 0x777].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let bytes = GuestBytes { pfn: Pfn::new(0), offset: 0x800, len_bytes: 3 * 4096 - 0x800 };
    /// let (bus, len_bytes) = bytes.contiguous(&p2m)?;
    /// assert_eq!((bus.raw(), len_bytes), (0x20_3800, 2 * 4096 - 0x800));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    #[inline]
    pub fn contiguous(self, p2m: &P2m<'_>) -> Result<(BusAddr, usize), P2mError> {
        let Self { pfn, offset, len_bytes } =
            if self.offset < PAGE_SIZE { self } else { self.within_a_frame() };
        let first = p2m.mfn(pfn)?;
        let mut together = PAGE_SIZE - offset;
        let mut frames = 1;
        while together < len_bytes {
            if p2m.mfn(Pfn::new(pfn.raw() + frames))?.offset_from(first) != Some(frames) {
                break;
            }
            frames += 1;
            together += PAGE_SIZE;
        }
        Ok((BusAddr::new(first, offset), together.min(len_bytes)))
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
        let at = |pfn, offset, len_bytes| GuestBytes { pfn: Pfn::new(pfn), offset, len_bytes };
        let start = BusAddr::from_raw(0x70_0010);
        assert_eq!(at(0, 0x10, 0x1ff0).contiguous(&p2m), Ok((start, 0x1ff0)));
        assert_eq!(at(0, 0x10, 0x1ff1).contiguous(&p2m), Ok((start, 0x1ff0)));
        assert_eq!(at(2, 0, 0x2000).contiguous(&p2m).map(|found| found.1), Ok(0x2000));
        assert!(at(3, 1, 0x1000).contiguous(&p2m).is_err(), "it leaves the map");
    }

    #[test]
    fn an_offset_past_the_frame_is_one_in_a_frame_behind_it() {
        let list = [0x700, 0x703, 0x704].map(AtomicU64::new);
        // SAFETY: no memory is behind these numbers.
        let p2m = unsafe { P2m::adopt(&list) }.expect("a list");
        let at = |pfn, offset, len_bytes| GuestBytes { pfn: Pfn::new(pfn), offset, len_bytes };
        for (offset, start) in [(0x1000, 0x70_3000), (0x1388, 0x70_3388), (0x2fff, 0x70_4fff)] {
            let found = at(0, offset, 1).contiguous(&p2m);
            assert_eq!(found, Ok((BusAddr::from_raw(start), 1)), "offset {offset:#x}");
        }
        let found = at(0, 0x1010, 0x1800).contiguous(&p2m);
        assert_eq!(found, Ok((BusAddr::from_raw(0x70_3010), 0x1800)), "across two frames");
        for (pfn, offset) in [(0, 0x3000), (0, usize::MAX), (2, 0x1000), (u64::MAX, usize::MAX)] {
            assert!(at(pfn, offset, 1).contiguous(&p2m).is_err(), "it is behind the map");
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
            let place =
                GuestBytes { pfn: Pfn::new(pfn), offset, len_bytes: u.int_in_range(1..=room)? };
            let bus = |at: usize| {
                let (pfn, offset) = place.byte(at);
                p2m.mfn(pfn).map(|mfn| BusAddr::new(mfn, offset).raw())
            };
            let start = bus(0).expect("in the map");
            let together =
                (0..place.len_bytes).take_while(|at| bus(*at) == Ok(start + *at as u64)).count();
            // Alignment has no part in it: any offset will do.
            assert_eq!(place.contiguous(&p2m), Ok((BusAddr::from_raw(start), together)));
            Ok(())
        });
    }
}
