//! The seam: the two traits through which everything above reaches the machine.
//!
//! Real Xen (`hypercall::xen::Xen`, on bare metal targets), the model (crate `xen-model`) and the
//! middlewares in this crate implement them. Machines are handed to operations as arguments; no
//! data structure holds one. All methods take `&self`: a hypercall has no exclusive access to
//! anything but Xen.
#![expect(unsafe_code, reason = "declares the methods whose callers owe ownership")]

use core::fmt;
use core::ops::Range;

use x86_64::structures::paging::PageTableIndex;

use crate::call::Call;
use crate::error::Error;
use crate::frame::{ENTRIES, Mfn, PAGE_SIZE, Pfn};
use crate::memory::MemoryOp;
use crate::op::DomId;
use crate::pte::{Pte, PteFlags};
use crate::va::GuestVa;

/// Something that answers hypercalls.
///
/// # Safety
/// The implementer puts what it is asked to the Xen that the guest runs on, or to something that
/// behaves as Xen does, and answers with the outcome: what it calls done is done, what it calls
/// refused has changed nothing but the elements that it calls done. Whoever owns frames believes
/// that, and claims them back on the strength of it (I-1, I-4).
pub unsafe trait Hypercalls {
    /// Puts `calls` to Xen in order: none for none, a direct hypercall for one, one multicall for
    /// several. Each call's outcome says what became of it.
    ///
    /// A multicall is not atomic and goes on after a refused entry; a call that needs an earlier
    /// one to have worked belongs into a later `issue`.
    ///
    /// # Errors
    /// Only if the multicall as a whole was refused: more than [`CALLS_MAX`](crate::CALLS_MAX)
    /// calls (`E2BIG`, nothing issued), or entries that Xen could not read. Calls whose outcome
    /// is still `NotIssued` were not run. Refusals of single calls are in their outcomes.
    ///
    /// # Hypercalls
    /// One for any number of calls from 1 to `CALLS_MAX`.
    ///
    /// # Safety
    /// The requests change what virtual addresses mean and which frames are tables. The caller must
    /// own every frame and every virtual page whose meaning changes, in the sense of
    /// docs/soundness.md (I-1, I-2).
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error>;

    /// Puts a `memory_op` to Xen and returns what the operation answers (see [`MemoryOp`]).
    ///
    /// Operations on extents answer how many were done, which may be fewer than asked, without an
    /// error.
    ///
    /// # Errors
    /// Xen's errno; for an exchange `done` is the number of given extents that were exchanged all
    /// the same.
    ///
    /// # Hypercalls
    /// One `memory_op`.
    ///
    /// # Safety
    /// As for [`issue`](Self::issue): the caller owns the frames given up, and no Rust object lives
    /// in them.
    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error>;

    /// Puts a `memory_op` to Xen and asks in the same trap how many frames the guest has then
    /// (`XENMEM_current_reservation`). What becomes of the one does not hinder the other.
    ///
    /// # Errors
    /// Each part as for [`memory_op`](Self::memory_op).
    ///
    /// # Hypercalls
    /// One multicall on real Xen; here, one hypercall for each part.
    ///
    /// # Safety
    /// As for [`memory_op`](Self::memory_op).
    unsafe fn memory_op_counted(
        &self,
        op: &mut MemoryOp<'_>,
    ) -> (Result<u64, Error>, Result<u64, Error>) {
        // SAFETY: the caller's promise is handed on.
        let answer = unsafe { self.memory_op(op) };
        // SAFETY: it only reports.
        let count = unsafe { self.memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) };
        (answer, count)
    }

    /// Enables one of Xen's assists for the whole guest (`vm_assist`, `VMASST_CMD_enable`).
    ///
    /// # Errors
    /// `EINVAL` if this Xen does not know the assist.
    ///
    /// # Hypercalls
    /// One `vm_assist`.
    fn enable_assist(&self, assist: Assist) -> Result<(), Error>;
}

/// An assist of Xen (`VMASST_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assist {
    /// Plain writes to live L1 tables are emulated.
    WritablePageTables = 2,
    /// The whole of cr3 is used on 32-bit; changes nothing on 64-bit but a feature bit.
    PaeExtendedCr3 = 3,
    /// M2P is not readable from user mode.
    M2pStrict = 32,
}

/// Access to the guest's own frames, by the names the guest has for them.
///
/// # Safety
/// The implementer reads what stands in the frame that it is asked for, writes there and nowhere
/// else, and names frames as Xen does: a table entry that it reads decides what a token is claimed
/// for (I-3, I-4). An access that fails has written nothing: a frame is one page, which can be
/// written or not.
pub unsafe trait FrameAccess {
    /// Reads an entry of a frame that serves as a page table.
    ///
    /// # Errors
    /// [`AccessError::Unmapped`] if the frame cannot be reached.
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError>;

    /// Writes an entry by a plain store.
    ///
    /// # Errors
    /// [`AccessError`] if the frame cannot be reached, or is read-only as every live table is.
    ///
    /// # Safety
    /// The caller owns the frame, and it is not part of a live tree (I-1).
    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError>;

    /// Reads the entries of a table from `first` on, as many as `into` has places.
    ///
    /// # Errors
    /// As for [`read_entry`](Self::read_entry), and [`AccessError::OutsideFrame`] if they pass the
    /// table's end.
    fn read_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        into: &mut [Pte],
    ) -> Result<(), AccessError> {
        for (index, pte) in indices(table, first, into.len())?.zip(into) {
            *pte = self.read_entry(table, index)?;
        }
        Ok(())
    }

    /// The first present entry of a table among `slots`, and its index.
    ///
    /// # Errors
    /// As for [`read_entry`](Self::read_entry).
    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        for index in slots.start..slots.end.min(ENTRIES) {
            let index = PageTableIndex::new_truncate(index);
            let pte = self.read_entry(table, index)?;
            if pte.is_present() {
                return Ok(Some((index, pte)));
            }
        }
        Ok(None)
    }

    /// Writes the entries of a table from `first` on by plain stores.
    ///
    /// # Errors
    /// As for [`write_entry`](Self::write_entry), and [`AccessError::OutsideFrame`] if they pass
    /// the table's end.
    ///
    /// # Safety
    /// As for [`write_entry`](Self::write_entry).
    unsafe fn write_entries(
        &self,
        table: Pfn,
        first: PageTableIndex,
        from: &[Pte],
    ) -> Result<(), AccessError> {
        for (index, pte) in indices(table, first, from.len())?.zip(from) {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.write_entry(table, index, *pte) }?;
        }
        Ok(())
    }

    /// Copies bytes out of a frame.
    ///
    /// # Errors
    /// [`AccessError`] if the frame cannot be reached or the bytes cross its end.
    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError>;

    /// Copies bytes into a frame.
    ///
    /// # Errors
    /// [`AccessError`] if the frame cannot be reached or written, or the bytes cross its end.
    ///
    /// # Safety
    /// The caller owns the frame (I-1).
    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError>;

    /// Fills a frame with zeroes.
    ///
    /// # Errors
    /// [`AccessError`] if the frame cannot be reached or written.
    ///
    /// # Safety
    /// The caller owns the frame (I-1).
    unsafe fn clear_frame(&self, pfn: Pfn) -> Result<(), AccessError> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.write_bytes(pfn, 0, &[0; PAGE_SIZE]) }
    }

    /// The flags that no entry may have on this machine, as its CPU lacks them: NO_EXECUTE, or
    /// none. Xen refuses an entry that has one (`EINVAL`).
    fn missing_flags(&self) -> PteFlags {
        PteFlags::empty()
    }

    /// Those of `flags` that an entry may have: what makes an entry asks here, so that it goes
    /// without those that are [missing](Self::missing_flags).
    fn offered(&self, flags: PteFlags) -> PteFlags {
        flags.difference(self.missing_flags())
    }

    /// What M2P says of `mfn`: a guess, which only the frame map can confirm.
    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn>;

    /// Where the kernel sees the frame: the address of its direct mapping.
    ///
    /// # Errors
    /// [`AccessError::Unmapped`] if the frame has none.
    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError>;
}

/// The indices of `count` entries of `table` from `first` on.
fn indices(
    table: Pfn,
    first: PageTableIndex,
    count: usize,
) -> Result<impl Iterator<Item = PageTableIndex>, AccessError> {
    check_run(table, first, count)?;
    Ok((u16::from(first)..ENTRIES).map(PageTableIndex::new_truncate).take(count))
}

/// Checks that `count` entries from `first` on are all in the table.
pub(crate) fn check_run(
    table: Pfn,
    first: PageTableIndex,
    count: usize,
) -> Result<(), AccessError> {
    if count > usize::from(ENTRIES - u16::from(first)) {
        let offset = usize::from(first) * size_of::<Pte>();
        let len_bytes = count.saturating_mul(size_of::<Pte>());
        return Err(AccessError::OutsideFrame { pfn: table, offset, len_bytes });
    }
    Ok(())
}

/// Loads and stores of the running CPU, which may fault: through the tables that are loaded, with
/// Xen's emulation of writes to live L1 tables. Tests and demonstrations use it; the crates above
/// do not.
///
/// # Safety
/// The implementer makes the access that it is asked for, once and nowhere else, and says whether
/// it took place.
pub unsafe trait Cpu {
    /// Reads a word.
    ///
    /// # Errors
    /// [`Fault`].
    fn load(&self, va: GuestVa) -> Result<u64, Fault>;

    /// Writes a word.
    ///
    /// # Errors
    /// [`Fault`]; nothing was written.
    ///
    /// # Hypercalls
    /// None, but if the page is a live L1 table mapped read-only Xen is asked by the fault and
    /// emulates the write.
    ///
    /// # Safety
    /// If the write succeeds, the memory behind the address is the caller's (I-1), and no Rust
    /// object.
    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault>;

    /// Writes `new` if the word is `current`, in one step (`lock cmpxchg`), and returns the word
    /// that was there.
    ///
    /// # Errors
    /// [`Fault`]; nothing was written.
    ///
    /// # Hypercalls
    /// As for [`store`](Self::store).
    ///
    /// # Safety
    /// As for [`store`](Self::store).
    unsafe fn compare_exchange(&self, va: GuestVa, current: u64, new: u64) -> Result<u64, Fault>;

    /// The time-stamp counter.
    fn ticks(&self) -> u64;
}

/// An access faulted: nothing is mapped there, or not so, or Xen refused the entry that was
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub GuestVa);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the access to {} faulted", self.0)
    }
}

impl core::error::Error for Fault {}

/// Both halves of the seam.
pub trait Machine: Hypercalls + FrameAccess {}

impl<M: Hypercalls + FrameAccess + ?Sized> Machine for M {}

/// Why a frame could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// The frame is not in the direct mapping.
    Unmapped(Pfn),
    /// The frame is mapped read-only: it is a table, or protected as one.
    ReadOnly(Pfn),
    /// The bytes do not all lie in the frame.
    OutsideFrame {
        /// The frame.
        pfn: Pfn,
        /// Offset of the first byte.
        offset: usize,
        /// How many bytes.
        len_bytes: usize,
    },
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmapped(pfn) => write!(f, "pfn {pfn} is not in the direct mapping"),
            Self::ReadOnly(pfn) => write!(f, "pfn {pfn} is mapped read-only"),
            Self::OutsideFrame { pfn, offset, len_bytes } => {
                write!(f, "{len_bytes} bytes at offset {offset:#x} leave the frame of pfn {pfn}")
            }
        }
    }
}

impl core::error::Error for AccessError {}
