//! A machine that answers nonsense now and then: what no Xen would say, and no CPU would read.
#![expect(unsafe_code, reason = "the guests of these tests exist only in the model")]

use core::cell::Cell;
use core::ops::Range;

use hypercall::memory::{Extent, MemoryOp};
use hypercall::{
    AccessError, Assist, Call, Errno, Error, FrameAccess, GuestVa, Hypercall, Hypercalls, Mfn,
    Outcome, Pfn, Pte, PteFlags,
};
use x86_64::structures::paging::PageTableIndex;

/// Returns seeds for as many machines, and prints each: of a test that fails, the last one counts.
///
/// ```
/// assert!(pv_tests::nonsense::seeds(3).eq([0, 1, 2]));
/// ```
pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
    (0..count).inspect(|seed| println!("seed {seed}"))
}

/// Wraps a machine and gives a random answer instead of its own now and then.
///
/// ```
/// use hypercall::{Assist, Hypercalls};
/// use pv_tests::nonsense::Nonsense;
///
/// let model = xen_model::Model::builder().build()?;
/// let machine = Nonsense::new(&model, 5);
/// let answers = (0..64).map(|_| machine.enable_assist(Assist::WritablePageTables).is_ok());
/// assert!((1..64).contains(&answers.filter(|it| *it).count()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Nonsense<M> {
    machine: M,
    state: Cell<u64>,
    /// How many answers there are for each that is wrong.
    odds: u64,
}

impl<M> Nonsense<M> {
    /// Makes one of which `seed` chooses which answers are wrong, and how many.
    pub const fn new(machine: M, seed: u64) -> Self {
        let odds = match seed % 5 {
            0 => 4,
            1 => 30,
            2 => 200,
            3 => 1_500,
            _ => 10_000,
        };
        Self { machine, state: Cell::new(seed), odds }
    }

    /// A random word: one near an end, or a small one, as often as any other.
    fn word(&self) -> u64 {
        // SplitMix64.
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = mixed ^ mixed >> 31;
        match word % 4 {
            0 => word >> 3,
            1 => word >> 3 & 0xfff,
            2 => u64::MAX - (word >> 3 & 0xff),
            _ => 1 << (word >> 3 & 63),
        }
    }

    fn lies(&self) -> bool {
        (self.word() >> 2 | self.word() << 9).is_multiple_of(self.odds)
    }

    #[expect(clippy::cast_possible_truncation, reason = "any word will do")]
    fn error(&self) -> Error {
        let errno = Errno::from_raw(self.word() as u32);
        Error { hypercall: Hypercall::Multicall, errno, done: self.word() as u32 }
    }

    fn access(&self, pfn: Pfn) -> AccessError {
        if self.word().is_multiple_of(2) {
            AccessError::Unmapped(pfn)
        } else {
            AccessError::ReadOnly(pfn)
        }
    }

    fn outcome(&self) -> Outcome {
        match self.word() % 3 {
            0 => Outcome::Done,
            1 => Outcome::NotIssued,
            _ => Outcome::Refused { errno: self.error().errno, done: self.error().done },
        }
    }

    fn overwrite(&self, extents: &mut [Extent]) {
        for extent in extents {
            if self.lies() {
                *extent = Extent::from_mfn(Mfn::new(self.word()));
            }
        }
    }
}

// SAFETY: there is no memory behind the guest of a test that Rust knows of; nothing else could.
unsafe impl<M: Hypercalls> Hypercalls for Nonsense<M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        if self.lies() {
            calls.iter_mut().for_each(|call| call.outcome = self.outcome());
            return if self.word().is_multiple_of(2) { Err(self.error()) } else { Ok(()) };
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.issue(calls) }?;
        if self.lies() { Err(self.error()) } else { Ok(()) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        if self.lies() {
            return if self.word().is_multiple_of(2) { Err(self.error()) } else { Ok(self.word()) };
        }
        // SAFETY: the caller's promise is handed on.
        let answer = unsafe { self.machine.memory_op(op) };
        match op {
            MemoryOp::Populate(list) | MemoryOp::Increase(list) => self.overwrite(list.extents),
            MemoryOp::Exchange(exchange) => self.overwrite(exchange.take.extents),
            _ => {}
        }
        answer
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        if self.lies() { Err(self.error()) } else { self.machine.enable_assist(assist) }
    }
}

// SAFETY: as above.
unsafe impl<M: FrameAccess> FrameAccess for Nonsense<M> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        match self.lies() {
            false => self.machine.read_entry(table, index),
            true if self.word().is_multiple_of(2) => Err(self.access(table)),
            true => Ok(Pte::from_raw(self.word() << 12 | self.word() & 0xfff)),
        }
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        if self.lies() {
            return Err(self.access(table));
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_entry(table, index, pte) }
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        if self.lies() {
            let index = PageTableIndex::new_truncate((self.word() & 511) as u16);
            return self.read_entry(table, index).map(|pte| Some((index, pte)));
        }
        self.machine.next_present(table, slots)
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        if self.lies() {
            return Err(self.access(pfn));
        }
        self.machine.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        if self.lies() {
            return Err(self.access(pfn));
        }
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.write_bytes(pfn, offset, from) }
    }

    fn missing_flags(&self) -> PteFlags {
        match self.lies() {
            true => PteFlags::from_bits_retain(self.word()),
            false => self.machine.missing_flags(),
        }
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        match self.lies() {
            true => Some(Pfn::new(self.word())),
            false => self.machine.machine_to_phys(mfn),
        }
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        match self.lies() {
            true => GuestVa::new(self.word()).map_err(|_| self.access(pfn)),
            false => self.machine.direct_map(pfn),
        }
    }
}
