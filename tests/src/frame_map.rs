//! The frame map on lists of any length.
#![expect(unsafe_code, reason = "lists so long that only untouched memory can hold them")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use hypercall::{AccessError, FrameAccess, GuestVa, Mfn, Pfn, Pte};
use p2m::audit::Audit;
use p2m::{Guest, P2m, P2mError};
use x86_64::structures::paging::PageTableIndex;

/// A frame list, as a domain builder leaves it.
pub type List = Box<[AtomicU64]>;

/// Look-ups and changes that a function makes.
pub const TIMES: u64 = 1000;

/// Returns the list of a guest with so many pfns, all of whose words are zero: 1 TiB needs 2 GiB of
/// them, which no host has to touch.
#[must_use]
pub fn list(pfns: usize) -> List {
    let list = Box::<[AtomicU64]>::new_zeroed_slice(pfns);
    // SAFETY: all zeroes are atomic words.
    unsafe { list.assume_init() }
}

/// Pfns in no order that a CPU could foresee.
fn pfns(len: u64) -> impl Iterator<Item = Pfn> {
    (0..TIMES).map(move |step| Pfn::new(step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % len))
}

/// Takes a list over. How long it is.
///
/// # Errors
/// [`P2mError`].
pub fn adopt(list: &[AtomicU64]) -> Result<u64, P2mError> {
    // SAFETY: no memory is behind the numbers.
    unsafe { P2m::adopt(list) }.map(|p2m| p2m.len())
}

/// Returns what a look-up is held against: an index into a slice, with its bounds check.
#[must_use]
pub fn index(list: &[AtomicU64]) -> u64 {
    let len = list.len() as u64;
    pfns(len).fold(0, |sum, pfn| {
        let at = usize::try_from(pfn.raw()).unwrap_or(usize::MAX);
        sum ^ list[black_box(at)].load(Ordering::Relaxed)
    })
}

/// Looks 1000 pfns up.
///
/// # Errors
/// [`P2mError`].
pub fn look_up(list: &[AtomicU64]) -> Result<u64, P2mError> {
    // SAFETY: no memory is behind the numbers.
    let p2m = unsafe { P2m::adopt(list) }?;
    pfns(p2m.len()).try_fold(0, |sum, pfn| Ok(sum ^ p2m.mfn(black_box(pfn))?.raw()))
}

/// Gives 1000 pfns other frames, each twice.
///
/// # Errors
/// [`P2mError`].
pub fn replace(list: &[AtomicU64]) -> Result<(), P2mError> {
    // SAFETY: no memory is behind the numbers.
    let p2m = unsafe { P2m::adopt(list) }?;
    for mfn in [1, 2] {
        // SAFETY: no memory is behind the numbers.
        pfns(p2m.len()).try_for_each(|pfn| unsafe { p2m.replace(pfn, Mfn::new(mfn)) }.map(drop))?;
    }
    Ok(())
}

/// Returns the list of a guest with so many pfns, each of which has the frame of its own number.
#[must_use]
pub fn identity(pfns: usize) -> List {
    (0..pfns as u64).map(AtomicU64::new).collect()
}

/// Audits every pfn of an [`identity`] list. Whether nothing was found.
///
/// # Errors
/// [`P2mError`].
pub fn audit(list: &[AtomicU64]) -> Result<bool, P2mError> {
    // SAFETY: no memory is behind the numbers.
    let p2m = unsafe { P2m::adopt(list) }?;
    let mut places = [None; 4];
    let mut audit = Audit::begin(&mut places);
    let machine = SameNumbers(p2m.len());
    // SAFETY: no memory is behind the numbers, and no root is walked.
    audit.run(&unsafe { Guest::new(&machine, &p2m, Pfn::new(0)) });
    Ok(audit.report().is_clean())
}

/// A machine that has an M2P and nothing else: each frame up to so many has the pfn of its own
/// number.
struct SameNumbers(u64);

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for SameNumbers {
    fn read_entry(&self, table: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
        Err(AccessError::Unmapped(table))
    }

    unsafe fn write_entry(&self, table: Pfn, _: PageTableIndex, _: Pte) -> Result<(), AccessError> {
        Err(AccessError::Unmapped(table))
    }

    fn read_bytes(&self, pfn: Pfn, _: usize, _: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::Unmapped(pfn))
    }

    unsafe fn write_bytes(&self, pfn: Pfn, _: usize, _: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::Unmapped(pfn))
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        (mfn.raw() < self.0).then_some(Pfn::new(black_box(mfn.raw())))
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_what_its_name_says() {
        let zeroes = list(1 << 14);
        assert_eq!(adopt(&zeroes), Ok(1 << 14));
        assert_eq!((look_up(&zeroes), index(&zeroes)), (Ok(0), 0));
        assert_eq!(replace(&zeroes), Ok(()));
        assert_eq!(look_up(&zeroes), Ok(0), "an even number of equal frames");
        assert_eq!(audit(&identity(1 << 14)), Ok(true));
        assert_eq!(audit(&zeroes), Ok(false));
    }
}
