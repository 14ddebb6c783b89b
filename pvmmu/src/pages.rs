//! Runs of pages, cut at the borders of L1 tables.

use hypercall::{ENTRIES, GuestVa, Level, Machine, PAGE_SHIFT, PteFlags};
use p2m::Guest;

use crate::map_error::MapError;
use crate::marks::CALLERS_FLAGS;
use crate::tables::USER_SLOTS;

/// A run of pages in the user half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// The first address of the first page.
    pub start: GuestVa,
    /// The number of pages.
    pub count: u64,
}

/// The part of a run of pages that is in one L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first address of its first page.
    pub(crate) va: GuestVa,
    /// The number of pages, at least one.
    pub(crate) count: u16,
}

impl Run {
    /// Returns the index of its first entry.
    pub(crate) fn first(self) -> u16 {
        Level::L1.index_of(self.va).into()
    }

    /// Returns its parts of at most `longest` pages.
    pub(crate) fn parts(self, longest: u16) -> impl Iterator<Item = Self> {
        let pages = Pages { start: self.va, count: self.count.into() };
        pages.runs(longest).into_iter().flatten()
    }

    /// Returns the indices of its entries.
    pub(crate) fn range(self) -> core::ops::Range<usize> {
        let first = usize::from(self.first());
        first..first + usize::from(self.count)
    }
}

/// Returns the number of the page at `va`.
pub(crate) const fn page_number(va: GuestVa) -> u64 {
    va.raw() >> PAGE_SHIFT
}

impl Pages {
    /// Returns a run of the page at `va`.
    ///
    /// ```
    /// use hypercall::GuestVa;
    /// use pvmmu::Pages;
    ///
    /// let start = GuestVa::new(0x40_0000)?;
    /// assert_eq!(Pages::one(start), Pages { start, count: 1 });
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    #[must_use]
    pub const fn one(va: GuestVa) -> Self {
        Self { start: va, count: 1 }
    }

    /// Returns the address of page `index` of the run.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`] if the address is not in the user half.
    ///
    /// ```
    /// use hypercall::GuestVa;
    /// use pvmmu::Pages;
    ///
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// assert_eq!(pages.at(3)?, GuestVa::new(0x40_3000)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn at(self, index: u64) -> Result<GuestVa, MapError> {
        self.start.checked_add_pages(index).map_err(|_| MapError::KernelHalf(self.start))
    }

    /// Checks that the run is in the user half and begins at a page.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`].
    pub(crate) fn check(self) -> Result<(), MapError> {
        check_page(self.start)?;
        if self.count > 0 {
            check_page(self.at(self.count - 1)?)?;
        }
        Ok(())
    }

    /// Checks that the run and another of the same length from `to` on are in the user half, and
    /// have no page in common.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Overlap`].
    pub(crate) fn check_apart(self, to: GuestVa) -> Result<(), MapError> {
        self.check()?;
        Self { start: to, ..self }.check()?;
        if page_number(self.start).abs_diff(page_number(to)) < self.count {
            return Err(MapError::Overlap(to));
        }
        Ok(())
    }

    /// Returns the parts of the run, in order of address, each in one L1 table and of at most
    /// `longest` pages.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`].
    pub(crate) fn runs(self, longest: u16) -> Result<impl Iterator<Item = Run>, MapError> {
        self.check()?;
        let mut done = 0;
        Ok(core::iter::from_fn(move || {
            let left = self.count - done;
            // Checking both ends has checked every address of the run.
            let va = if left == 0 { None } else { self.start.checked_add_pages(done).ok() }?;
            let to_end = (ENTRIES - u16::from(Level::L1.index_of(va))).min(longest);
            let count = u16::try_from(left).map_or(to_end, |left| left.min(to_end));
            done += u64::from(count);
            Some(Run { va, count })
        }))
    }
}

/// Checks that `va` is the first address of a page in the user half.
pub(crate) fn check_page(va: GuestVa) -> Result<(), MapError> {
    if !USER_SLOTS.contains(&u16::from(Level::L4.index_of(va))) {
        Err(MapError::KernelHalf(va))
    } else if !va.is_page_aligned() {
        Err(MapError::Unaligned(va))
    } else {
        Ok(())
    }
}

/// Checks that `va` is the first address of an L1 table in the user half.
pub(crate) fn check_table(va: GuestVa) -> Result<(), MapError> {
    check_page(va)?;
    let aligned = va.raw().is_multiple_of(1 << Level::L2.shift());
    if aligned { Ok(()) } else { Err(MapError::Unaligned(va)) }
}

/// Returns those of `flags` that the machine offers, if they are present and have no bit that Xen
/// or this crate sets. They are for the pages from `va` on.
pub(crate) fn offered<M: Machine>(
    guest: &Guest<'_, M>,
    flags: PteFlags,
    va: GuestVa,
) -> Result<PteFlags, MapError> {
    check_flags(flags, va)?;
    Ok(guest.machine().offered(flags))
}

/// Refuses flags that callers may not set, and the absence of PRESENT.
fn check_flags(flags: PteFlags, va: GuestVa) -> Result<(), MapError> {
    if flags.contains(PteFlags::PRESENT) && CALLERS_FLAGS.contains(flags) {
        Ok(())
    } else {
        Err(MapError::Flags { va, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::MARKS;

    fn va(address: u64) -> GuestVa {
        GuestVa::new(address).expect("an address of the guest's")
    }

    fn runs(start: u64, count: u64) -> Vec<(u64, u16)> {
        let pages = Pages { start: va(start), count };
        pages.runs(512).expect("user half").map(|run| (run.va.raw(), run.count)).collect()
    }

    #[test]
    fn a_run_of_pages_is_cut_where_l1_tables_end() {
        assert_eq!(runs(0x20_0000, 0), []);
        assert_eq!(runs(0x20_0000, 512), [(0x20_0000, 512)]);
        assert_eq!(runs(0x3f_e000, 3), [(0x3f_e000, 2), (0x40_0000, 1)]);
        assert_eq!(runs(0x1f_f000, 514), [(0x1f_f000, 1), (0x20_0000, 512), (0x40_0000, 1)]);
    }

    #[test]
    fn a_run_can_be_cut_into_parts_of_a_length() {
        let run = Run { va: va(0x3f_0000), count: 16 };
        let parts: Vec<_> = run.parts(7).map(|part| (part.first(), part.count)).collect();
        assert_eq!(parts, [(0x1f0, 7), (0x1f7, 7), (0x1fe, 2)]);
    }

    #[test]
    fn the_last_page_of_the_user_half_is_the_last() {
        assert_eq!(runs(0x7fff_ffff_f000, 1), [(0x7fff_ffff_f000, 1)]);
        for count in [2, u64::MAX] {
            let pages = Pages { start: va(0x7fff_ffff_f000), count };
            let refused = Err(MapError::KernelHalf(pages.start));
            assert_eq!(pages.runs(512).map(drop), refused, "{count} pages");
        }
    }

    #[test]
    fn flags_that_are_not_the_callers_to_set_are_refused() {
        let check = |flags| check_flags(flags, va(0x1000));
        assert!(check(PteFlags::USER_RW | PteFlags::AVAILABLE | PteFlags::PCD).is_ok());
        assert!(check(PteFlags::KERNEL_RO).is_ok());
        let present = PteFlags::PRESENT;
        for extra in [PteFlags::GLOBAL, PteFlags::GUEST_KERNEL, PteFlags::GRANT, MARKS] {
            assert!(check(present | extra).is_err(), "{extra:?}");
        }
        assert!(check(PteFlags::WRITABLE).is_err(), "a frame that is not mapped");
    }
}
