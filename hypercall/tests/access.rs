//! What `FrameAccess` provides beyond what a machine has to, over a machine of one frame; and
//! references to machines.
#![expect(unsafe_code, reason = "writing entries is unsafe; the frame is an array")]

use std::cell::{Cell, RefCell};

use hypercall::memory::MemoryOp;
use hypercall::{
    AccessError, Assist, Call, ENTRIES, Error, FrameAccess, GuestVa, Hypercalls, Mfn, PAGE_SIZE,
    Pfn, Pte,
};
use x86_64::structures::paging::PageTableIndex;

const FRAME: Pfn = Pfn::new(3);

/// A machine of one frame.
struct Frame(RefCell<[Pte; ENTRIES as usize]>, Cell<Option<Assist>>);

impl Frame {
    /// With entry `k` being `k << 12`, all of them absent.
    fn new() -> Self {
        let entries = core::array::from_fn(|at| Pte::from_raw((at as u64) << 12));
        Self(RefCell::new(entries), Cell::new(None))
    }

    fn raw(&self, at: usize) -> u64 {
        self.0.borrow()[at].raw()
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for Frame {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        if table != FRAME {
            return Err(AccessError::Unmapped(table));
        }
        Ok(self.0.borrow()[usize::from(index)])
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        self.read_entry(table, index)?;
        self.0.borrow_mut()[usize::from(index)] = pte;
        Ok(())
    }

    fn read_bytes(&self, pfn: Pfn, _: usize, _: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::Unmapped(pfn))
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        if (pfn, offset) != (FRAME, 0) || from.len() != PAGE_SIZE {
            return Err(AccessError::OutsideFrame { pfn, offset, len_bytes: from.len() });
        }
        let word = |at: usize| from[at * 8..][..8].try_into().expect("eight bytes");
        let entry = |at| Pte::from_raw(u64::from_le_bytes(word(at)));
        *self.0.borrow_mut() = core::array::from_fn(entry);
        Ok(())
    }

    fn machine_to_phys(&self, _: Mfn) -> Option<Pfn> {
        None
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        Err(AccessError::Unmapped(pfn))
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Hypercalls for Frame {
    unsafe fn issue(&self, _: &mut [Call<'_>]) -> Result<(), Error> {
        unreachable!("nothing is issued")
    }

    unsafe fn memory_op(&self, _: &mut MemoryOp<'_>) -> Result<u64, Error> {
        unreachable!("nothing is asked")
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.1.set(Some(assist));
        Ok(())
    }
}

fn index(number: u16) -> PageTableIndex {
    PageTableIndex::new(number)
}

#[test]
fn a_run_of_entries_ends_with_the_table() {
    let frame = Frame::new();
    for (first, count) in [(0, 1), (0, 512), (509, 3), (511, 1), (0, 0), (511, 0)] {
        let mut entries = vec![Pte::ABSENT; count];
        assert_eq!(frame.read_entries(FRAME, index(first), &mut entries), Ok(()));
        let expected: Vec<_> = (0..count as u64).map(|at| (u64::from(first) + at) << 12).collect();
        assert_eq!(entries.iter().map(|entry| entry.raw()).collect::<Vec<_>>(), expected);
    }
    for (first, count) in [(0_u16, 513), (510, 3), (511, 2)] {
        let offset = usize::from(first) * 8;
        let outside = Err(AccessError::OutsideFrame { pfn: FRAME, offset, len_bytes: count * 8 });
        let mut entries = vec![Pte::ABSENT; count];
        assert_eq!(frame.read_entries(FRAME, index(first), &mut entries), outside);
        // SAFETY: the frame is the test's.
        assert_eq!(unsafe { frame.write_entries(FRAME, index(first), &entries) }, outside);
        assert_eq!(frame.raw(511), 511 << 12, "nothing is written");
    }
}

#[test]
fn entries_are_written_from_the_first_on() {
    let frame = Frame::new();
    let entries = [Pte::from_raw(7), Pte::from_raw(9)];
    // SAFETY: the frame is the test's.
    assert_eq!(unsafe { frame.write_entries(FRAME, index(510), &entries) }, Ok(()));
    assert_eq!([509, 510, 511].map(|at| frame.raw(at)), [509 << 12, 7, 9]);
    let elsewhere = Err(AccessError::Unmapped(Pfn::new(4)));
    // SAFETY: as above.
    assert_eq!(unsafe { frame.write_entries(Pfn::new(4), index(0), &entries) }, elsewhere);
    assert_eq!(frame.read_entries(Pfn::new(4), index(0), &mut [Pte::ABSENT]), elsewhere);
    // SAFETY: as above.
    assert_eq!(unsafe { frame.clear_frame(FRAME) }, Ok(()));
    assert!((0..512).all(|at| frame.raw(at) == 0));
}

#[test]
fn the_next_present_entry_is_the_first_among_the_slots() {
    let frame = Frame::new();
    assert_eq!(frame.next_present(FRAME, 0..ENTRIES), Ok(None));
    let present = [(5, Pte::from_raw(0x5001)), (511, Pte::from_raw(0x6001))];
    for (at, pte) in present {
        // SAFETY: the frame is the test's.
        assert_eq!(unsafe { frame.write_entry(FRAME, index(at), pte) }, Ok(()));
    }
    let [(low, low_pte), (high, high_pte)] = present.map(|(at, pte)| (index(at), pte));
    assert_eq!(frame.next_present(FRAME, 0..600), Ok(Some((low, low_pte))));
    assert_eq!(frame.next_present(FRAME, 5..6), Ok(Some((low, low_pte))));
    assert_eq!(frame.next_present(FRAME, 6..600), Ok(Some((high, high_pte))));
    assert_eq!(frame.next_present(FRAME, 6..511), Ok(None));
}

#[test]
fn a_reference_to_a_machine_is_one() {
    let frame = Frame::new();
    assert_eq!(Hypercalls::enable_assist(&&frame, Assist::M2pStrict), Ok(()));
    assert_eq!(frame.1.get(), Some(Assist::M2pStrict));
}
