//! Look-ups and audits to be counted under valgrind: `lookup_cost WHAT PFNS TIMES` does one kind of
//! thing TIMES times on a map of PFNS pfns. The difference between two runs is what one costs.
#![expect(unsafe_code, reason = "a list so long that only untouched memory can hold it")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use hypercall::{AccessError, FrameAccess, GuestVa, Mfn, Pfn, Pte};
use p2m::{Audit, P2m};
use x86_64::structures::paging::PageTableIndex;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, what, pfns, times] = words.as_slice() else {
        panic!("lookup_cost slice|p2m|nothing|audit PFNS TIMES");
    };
    let number = |word: &String| word.parse::<usize>().expect("a number");
    let (pfns, times) = (number(pfns).next_power_of_two(), number(times));
    let list = Box::<[AtomicU64]>::new_zeroed_slice(pfns);
    // SAFETY: all zeroes are atomic words.
    let list = unsafe { list.assume_init() };
    let sum = match what.as_str() {
        "slice" => of_slice(&list, times),
        "p2m" => of_p2m(&P2m::adopt(&list).expect("not empty"), times),
        "nothing" => of_nothing(&list, times),
        _ => audits(&list, times),
    };
    println!("{}", black_box(sum));
}

/// Pfns in no order that a compiler or a CPU could foresee.
fn next(state: &mut u64, pfns: u64) -> u64 {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    *state >> 20 & (pfns - 1)
}

#[inline(never)]
fn of_slice(list: &[AtomicU64], times: usize) -> u64 {
    let (mut state, mut sum) = (1, 0u64);
    for _ in 0..times {
        let pfn = next(&mut state, list.len() as u64);
        sum ^= list[usize::try_from(black_box(pfn)).expect("64 bits")].load(Ordering::Relaxed);
    }
    sum
}

#[inline(never)]
fn of_p2m(p2m: &P2m<'_>, times: usize) -> u64 {
    let (mut state, mut sum) = (1, 0u64);
    let pfns = p2m.len();
    for _ in 0..times {
        let pfn = next(&mut state, pfns);
        match p2m.mfn(Pfn::new(black_box(pfn))) {
            Ok(mfn) => sum ^= mfn.raw(),
            Err(error) => panic!("{error}"),
        }
    }
    sum
}

#[inline(never)]
fn of_nothing(list: &[AtomicU64], times: usize) -> u64 {
    let (mut state, mut sum) = (1, 0u64);
    for _ in 0..times {
        sum ^= black_box(next(&mut state, list.len() as u64));
    }
    sum
}

/// Each audit looks at every pfn.
#[inline(never)]
fn audits(list: &[AtomicU64], times: usize) -> u64 {
    for (pfn, word) in (0..).zip(list) {
        word.store(pfn, Ordering::Relaxed);
    }
    let p2m = P2m::adopt(list).expect("not empty");
    let mut clean = 0;
    for _ in 0..times {
        let mut places = [None; 4];
        let mut audit = Audit::begin(&mut places);
        audit.run(&M2p(list), &p2m);
        clean += u64::from(audit.report().is_clean());
    }
    assert_eq!(clean, times as u64, "the map is true");
    clean
}

/// A machine that has an M2P: the same numbers, as every pfn has the mfn of its number here.
struct M2p<'a>(&'a [AtomicU64]);

impl FrameAccess for M2p<'_> {
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
        let word = self.0.get(usize::try_from(mfn.raw()).ok()?)?;
        Some(Pfn::new(word.load(Ordering::Relaxed)))
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}
