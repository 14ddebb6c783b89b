//! Addresses as devices see them.
//!
//! Without an IOMMU, a device's address is a machine address. It comes from an mfn, never from a
//! pfn, and a buffer that is contiguous to the guest may be scattered for the device.

use core::fmt;

use hypercall::{Mfn, PAGE_SHIFT, PAGE_SIZE};

/// An address on the bus: the machine address of a byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BusAddr(u64);

impl BusAddr {
    /// Returns the address of byte `offset` of a frame.
    #[must_use]
    pub const fn new(mfn: Mfn, offset: usize) -> Self {
        Self(mfn.raw() << PAGE_SHIFT | (offset & (PAGE_SIZE - 1)) as u64)
    }

    /// Returns an address that a device or a driver reports. Nothing is known of it yet.
    #[must_use]
    pub const fn from_raw(address: u64) -> Self {
        Self(address)
    }

    /// Returns the address as a number, which a driver hands to its device.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns the address `bytes` further on, unless it overflows.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Returns the address's frame.
    #[must_use]
    pub(crate) const fn mfn(self) -> Mfn {
        Mfn::new(self.0 >> PAGE_SHIFT)
    }

    /// Returns the offset in the frame.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "below 4096")]
    pub(crate) const fn offset_in_frame(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// Returns whether the address is a multiple of 2^`order` pages. 0 always is.
    ///
    /// ```
    /// use swiotlb::BusAddr;
    ///
    /// assert!(BusAddr::from_raw(0x20_0000).is_aligned(9));
    /// assert!(!BusAddr::from_raw(0x20_1000).is_aligned(9));
    /// ```
    #[must_use]
    pub const fn is_aligned(self, order: u32) -> bool {
        // From 2^64 bytes on, only 0 is a multiple.
        match (PAGE_SIZE as u64).checked_shl(order) {
            Some(bytes) => self.0.is_multiple_of(bytes),
            None => self.0 == 0,
        }
    }

    /// Returns the distance from `start` in bytes, unless `self` is before it.
    #[must_use]
    pub const fn offset_from(self, start: Self) -> Option<u64> {
        self.0.checked_sub(start.0)
    }
}

impl fmt::Display for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bus {self}")
    }
}

/// The addresses that a device reaches: bytes `0..2^bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmaMask {
    bits: u8,
}

impl DmaMask {
    /// The mask of a device that reaches everything.
    pub const ALL: Self = Self { bits: 64 };

    /// Returns the mask of a device with `bits` address bits. More than 64 count as 64.
    ///
    /// ```
    /// use hypercall::Mfn;
    /// use swiotlb::{BusAddr, DmaMask};
    ///
    /// let mask = DmaMask::bits(32);
    /// assert!(mask.reaches(BusAddr::new(Mfn::new(0xf_ffff), 0), 4096));
    /// assert!(!mask.reaches(BusAddr::new(Mfn::new(0xf_ffff), 0), 4097));
    /// ```
    #[must_use]
    pub const fn bits(bits: u8) -> Self {
        Self { bits: if bits > 64 { 64 } else { bits } }
    }

    /// Returns the last address that the device can name.
    #[must_use]
    pub const fn last(self) -> u64 {
        match self.bits {
            0 => 0,
            bits => u64::MAX >> (64 - bits),
        }
    }

    /// Returns whether the device reaches all of `len_bytes` bytes from `start`.
    #[must_use]
    #[inline]
    pub const fn reaches(self, start: BusAddr, len_bytes: u64) -> bool {
        match start.0.checked_add(len_bytes.saturating_sub(1)) {
            Some(end) => end <= self.last(),
            None => false,
        }
    }

    /// Returns the flags that tell `XENMEM_exchange` the addresses wanted
    /// (`XENMEMF_address_bits`): 0 for any.
    pub(crate) const fn reservation_flags(self) -> u32 {
        if self.bits < 64 { self.bits as u32 } else { 0 }
    }
}

impl fmt::Display for DmaMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "below 2^{}", self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_reaches_up_to_its_last_byte_and_no_further() {
        let mask = DmaMask::bits(28);
        assert_eq!(mask.last(), 0x0fff_ffff);
        assert!(mask.reaches(BusAddr::from_raw(0x0fff_f000), 4096));
        assert!(!mask.reaches(BusAddr::from_raw(0x0fff_f001), 4096));
        assert!(!mask.reaches(BusAddr::from_raw(u64::MAX), 2), "the sum does not wrap");
        assert!(DmaMask::ALL.reaches(BusAddr::from_raw(u64::MAX - 1), 2));
        assert_eq!((mask.reservation_flags(), DmaMask::ALL.reservation_flags()), (28, 0));
        assert_eq!(DmaMask::bits(70), DmaMask::ALL);
    }

    #[test]
    fn a_bus_address_is_that_of_the_frame() {
        assert_eq!(BusAddr::new(Mfn::new(0x203), 0x10).raw(), 0x20_3010);
        assert_eq!(BusAddr::from_raw(5).offset_from(BusAddr::from_raw(6)), None);
    }

    #[test]
    fn only_address_0_is_a_multiple_of_what_no_word_holds() {
        let at = BusAddr::from_raw;
        assert!(at(1 << 63).is_aligned(51) && !at(1 << 62).is_aligned(51));
        for order in [52, 63, 64, 65, u32::MAX] {
            assert!(at(0).is_aligned(order), "order {order}");
            for address in [1, 0x1000, 1 << 63, u64::MAX] {
                assert!(!at(address).is_aligned(order), "{address:#x}, order {order}");
            }
        }
    }
}
