//! The frame list over maps of every length that it can describe, on a machine that is a few pages.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "claims frames that exist only in the test")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hypercall::{AccessError, Frame, FrameAccess, FrameSource, GuestVa, Mfn, PAGE_SIZE, Pfn, Pte};
use p2m::{FrameList, Guest, Leaves, ListError, P2m, P2mError, Pfns};
use pv_tests::frame_map::{List, list};
use x86_64::structures::paging::PageTableIndex;

/// Pfns in a page of the linear list, and pages of it in a page of the frame list.
const PER_PAGE: u64 = 512;
const GIB: u64 = PER_PAGE * PER_PAGE;
/// Frames that the guest has: its page `k` is frame `k` more than this.
const FIRST_MFN: u64 = 0x1000;
const FRAMES: u64 = 1 + PER_PAGE;

/// The guest's pages, as far as they were written.
#[derive(Default)]
struct Pages(RefCell<BTreeMap<Pfn, Box<[u8; PAGE_SIZE]>>>);

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for Pages {
    fn read_entry(&self, table: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
        Err(AccessError::Unmapped(table))
    }

    unsafe fn write_entry(&self, table: Pfn, _: PageTableIndex, _: Pte) -> Result<(), AccessError> {
        Err(AccessError::Unmapped(table))
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        let pages = self.0.borrow();
        let page = pages.get(&pfn).ok_or(AccessError::Unmapped(pfn))?;
        into.copy_from_slice(&page[offset..][..into.len()]);
        Ok(())
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        let mut pages = self.0.borrow_mut();
        let page = pages.entry(pfn).or_insert_with(|| Box::new([0; PAGE_SIZE]));
        page[offset..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        mfn.raw().checked_sub(FIRST_MFN).filter(|pfn| *pfn < FRAMES).map(Pfn::new)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}

/// Page `index` of the linear list is in this frame and as many more.
struct Linear(Cell<u64>);

impl Linear {
    fn frame(&self, index: u64) -> Mfn {
        Mfn::new(self.0.get() + index)
    }
}

// SAFETY: no toolstack reads the list.
unsafe impl Leaves for Linear {
    fn leaf<M: FrameAccess>(&self, guest: &Guest<'_, M>, index: u64) -> Result<Mfn, P2mError> {
        assert!(index < guest.p2m().len().div_ceil(PER_PAGE), "there is no page {index}");
        Ok(self.frame(index))
    }
}

/// Frames for pages of the list: as many as there are left, from this one on.
struct Frames(u64, u64);

impl FrameSource for Frames {
    fn take(&mut self) -> Option<Frame> {
        self.1 = self.1.checked_sub(1)?;
        self.0 += 1;
        // SAFETY: nobody else has it.
        Some(unsafe { Frame::claim(Pfn::new(self.0 - 1)) })
    }

    fn give(&mut self, frame: Frame) {
        panic!("{frame:?} is given back");
    }
}

/// The list of a guest of so many pfns, the first of which have memory.
fn words(pfns: u64) -> List {
    let list = list(usize::try_from(pfns).expect("fits"));
    for (word, mfn) in list.iter().zip(FIRST_MFN..FIRST_MFN + FRAMES) {
        word.store(mfn, Ordering::Relaxed);
    }
    list
}

/// That guest.
fn guest<'a>(machine: &'a Pages, p2m: &'a P2m<'a>) -> Guest<'a, Pages> {
    // SAFETY: the guest exists only in the test, and its root is not walked.
    unsafe { Guest::new(machine, p2m, Pfn::new(0)) }
}

#[test]
fn a_list_describes_every_page_up_to_512_gib() {
    for len in [1, 512, 513, GIB - 1, GIB, GIB + 1, 3 * GIB - 511, FrameList::PFNS_MAX] {
        let (words, machine, linear) = (words(len), Pages::default(), Linear(Cell::new(1 << 30)));
        // SAFETY: the guest exists only in the model.
        let p2m = unsafe { P2m::adopt(&words) }.expect("not empty");
        let guest = guest(&machine, &p2m);
        let gibs = len.div_ceil(GIB);
        let mut frames = Frames(0, 1 + gibs.min(len - 1));
        let mut middles: Vec<_> = (0..gibs).map(|_| None).collect();
        let top = frames.take().expect("the first");
        let mut list = FrameList::new(top, &mut middles);
        let built = list.build(&guest, &linear, &mut frames);
        if len == 1 {
            assert_eq!(built, Err(ListError::OutOfFrames(Pfn::new(0))));
            continue;
        }
        assert_eq!(built, Ok(()));
        assert_eq!((list.top(&p2m), frames.1), (Ok(Mfn::new(FIRST_MFN)), 0));
        let last = len.div_ceil(PER_PAGE) - 1;
        for index in 0..=last {
            let found = list.lookup(&guest, index);
            assert_eq!(found, Ok(Some(linear.frame(index))), "page {index} of {len} pfns");
        }
        // What leads on behind the end leads to a page of the list all the same.
        for index in [last + 1, gibs * PER_PAGE, GIB - 1].map(|index| index.min(GIB - 1)) {
            let found = list.lookup(&guest, index).expect("readable").expect("its own");
            let pages = linear.frame(0)..=linear.frame(last);
            assert!(pages.contains(&found), "page {index} of {len} pfns is {found}");
        }
    }
}

#[test]
fn a_longer_map_is_refused_and_nothing_is_written() {
    let len = FrameList::PFNS_MAX + 1;
    let (words, machine, linear) = (words(len), Pages::default(), Linear(Cell::new(1 << 30)));
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&words) }.expect("not empty");
    let guest = guest(&machine, &p2m);
    let mut frames = Frames(0, FRAMES);
    let mut middles: Vec<_> = (0..FRAMES).map(|_| None).collect();
    let top = frames.take().expect("the first");
    let mut list = FrameList::new(top, &mut middles);
    let refused = Err(ListError::Capacity { pfns: len, capacity: FrameList::PFNS_MAX });
    assert_eq!(list.build(&guest, &linear, &mut frames), refused);
    for pfns in [p2m.all(), Pfns::new(Pfn::new(len - 1), 1)] {
        assert_eq!(list.refresh(&guest, &linear, pfns, &mut frames), refused);
    }
    assert!(machine.0.borrow().is_empty());
    // What lies before the end can be written all the same.
    let pfns = Pfns::new(Pfn::new(len - 2), 1);
    assert_eq!(list.refresh(&guest, &linear, pfns, &mut frames), Ok(()));
    assert_eq!(frames.1, FRAMES - 2);
}

#[test]
fn a_refresh_writes_the_gibs_that_it_is_told_and_no_other() {
    let len = 4 * GIB - 100;
    let (words, machine, linear) = (words(len), Pages::default(), Linear(Cell::new(1 << 30)));
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&words) }.expect("not empty");
    let guest = guest(&machine, &p2m);
    let mut frames = Frames(0, 5);
    let mut middles = [const { None }; 4];
    let top = frames.take().expect("the first");
    let mut list = FrameList::new(top, &mut middles);
    list.build(&guest, &linear, &mut frames).expect("built");
    for (first, count, written) in [
        (0, 1, 0..1),
        (GIB - 1, 1, 0..1),
        (GIB - 1, 2, 0..2),
        (GIB, GIB, 1..2),
        (GIB + 7, GIB, 1..3),
        (3 * GIB, u64::MAX - 3 * GIB, 3..4),
        (4 * GIB, 5, 0..0),
    ] {
        let old = linear.0.get();
        linear.0.set(old + (1 << 20));
        let pfns = Pfns::new(Pfn::new(first), count);
        list.refresh(&guest, &linear, pfns, &mut frames).expect("refreshed");
        for gib in 0..4 {
            let index = gib * PER_PAGE + 3;
            let found = list.lookup(&guest, index).expect("readable").expect("its own");
            let is_new = found == linear.frame(index);
            assert_eq!(is_new, written.contains(&gib), "GiB {gib} of {count} from {first}");
        }
        list.build(&guest, &linear, &mut frames).expect("built");
    }
}

#[test]
fn a_list_without_places_says_how_many_it_has() {
    let (words, machine, linear) = (words(GIB + 1), Pages::default(), Linear(Cell::new(1 << 30)));
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&words) }.expect("not empty");
    let guest = guest(&machine, &p2m);
    let mut frames = Frames(0, 5);
    let mut middles = [const { None }; 1];
    let top = frames.take().expect("the first");
    let mut list = FrameList::new(top, &mut middles);
    let refused = Err(ListError::NoPlace { places: 1 });
    assert_eq!(list.build(&guest, &linear, &mut frames), refused);
}
