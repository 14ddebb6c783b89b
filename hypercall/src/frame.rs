//! Frame numbers: the guest's name for a page, and Xen's and the CPU's.
//!
//! Under PV every page of RAM has two numbers. The guest counts its own pages from zero (`Pfn`);
//! page tables hold the machine's numbers (`Mfn`). Only the frame map (crate `p2m`) and Xen's M2P
//! convert between them: there is no arithmetic and no `From`. Xen's interface also says "gmfn" and
//! "gfn". For a PV guest both are the mfn, so there is no third type.

use core::fmt;

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: usize = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Entries in a page table of any level.
pub const ENTRIES: u16 = 512;

macro_rules! frame_number {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes the frame number `number`.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// Returns the number itself.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Returns the frame `count` frames further on, if that number exists.
            ///
            /// ```
            /// use hypercall::Mfn;
            ///
            /// assert_eq!(Mfn::new(7).checked_add(2), Some(Mfn::new(9)));
            /// ```
            #[must_use]
            pub const fn checked_add(self, count: u64) -> Option<Self> {
                match self.0.checked_add(count) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Returns how many frames `self` is behind `start`, unless it is in front of it.
            ///
            /// ```
            /// use hypercall::Pfn;
            ///
            /// assert_eq!(Pfn::new(9).offset_from(Pfn::new(7)), Some(2));
            /// assert_eq!(Pfn::new(7).offset_from(Pfn::new(9)), None);
            /// ```
            #[must_use]
            pub const fn offset_from(self, start: Self) -> Option<u64> {
                self.0.checked_sub(start.0)
            }
        }

        /// Prints bare hexadecimal of at least five digits, as in Xen's log lines.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:05x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self)
            }
        }
    };
}

frame_number! {
    /// Pseudo-physical frame number: the guest's own numbering, dense from zero.
    Pfn, "pfn"
}

frame_number! {
    /// Machine frame number: what page tables, hypercalls and the CPU use.
    Mfn, "mfn"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_numbers_print_like_a_xen_log() {
        assert_eq!(Mfn::new(0xb1d89).to_string(), "b1d89");
        assert_eq!(Pfn::new(0xa0).to_string(), "000a0");
        assert_eq!(format!("{:?}", Mfn::new(0x8d_f82b)), "mfn 8df82b");
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Pfn::new(u64::MAX).checked_add(1), None);
        assert_eq!(Pfn::new(3).offset_from(Pfn::new(4)), None);
        assert_eq!(Pfn::new(7).offset_from(Pfn::new(4)), Some(3));
    }
}
