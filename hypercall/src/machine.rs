//! The seam: the two traits through which everything above reaches the machine.
//!
//! Real Xen (`hypercall::xen::Xen`, on bare metal targets), the model (crate `xen-model`) and the
//! middlewares of this crate implement them. Operations take a machine as an argument; no data
//! structure holds one. All methods take `&self`, because a hypercall has exclusive access to
//! nothing but Xen.
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

/// Answers hypercalls.
///
/// # Safety
/// The implementer puts requests to the Xen that the guest runs on, or to something that behaves as
/// Xen does, and reports the outcome truthfully. A request that it reports as done is done. One
/// that it reports as refused has changed nothing except the elements reported as done. Owners of
/// frames believe this, and claim frames back because of it (I-1, I-4).
pub unsafe trait Hypercalls {
    /// Puts `calls` to Xen in order: nothing for no call, a direct hypercall for one, one multicall
    /// for several. Stores the outcome in each call.
    ///
    /// A multicall is not atomic and goes on after a refused entry. A call that needs an earlier
    /// one to have worked belongs in a later `issue`.
    ///
    /// # Errors
    /// Only if the multicall as a whole was refused: more than [`CALLS_MAX`](crate::CALLS_MAX)
    /// calls (`E2BIG`, nothing issued), or entries that Xen could not read. Calls whose outcome is
    /// still `NotIssued` did not run. Refusals of single calls are in their outcomes.
    ///
    /// # Hypercalls
    /// One for 1 to `CALLS_MAX` calls.
    ///
    /// # Safety
    /// The requests change what virtual addresses mean and which frames are tables. The caller must
    /// own every frame and every virtual page whose meaning changes, in the sense of
    /// docs/soundness.md (I-1, I-2).
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error>;

    /// Puts a `memory_op` to Xen and returns its answer (see [`MemoryOp`]).
    ///
    /// Operations on extents answer how many extents they completed. That may be fewer than
    /// requested, without an error.
    ///
    /// # Errors
    /// Xen's errno. After a refused exchange, `done` is the number of given extents that were
    /// exchanged nevertheless.
    ///
    /// # Hypercalls
    /// One `memory_op`.
    ///
    /// # Safety
    /// As for [`issue`](Self::issue): the caller owns the frames that it gives up, and no Rust
    /// object lives in them.
    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error>;

    /// Puts a `memory_op` to Xen, and asks in the same trap how many frames the guest then has
    /// (`XENMEM_current_reservation`). Each part takes place whatever becomes of the other.
    ///
    /// # Errors
    /// Each part as for [`memory_op`](Self::memory_op).
    ///
    /// # Hypercalls
    /// One multicall on real Xen; by default one hypercall for each part.
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

/// One of Xen's assists (`VMASST_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assist {
    /// Xen emulates plain writes to live L1 tables.
    WritablePageTables = 2,
    /// Xen uses all of cr3 on 32-bit; on 64-bit it changes nothing but a feature bit.
    PaeExtendedCr3 = 3,
    /// User mode cannot read M2P.
    M2pStrict = 32,
}

/// Gives access to the guest's own frames, by pfn.
///
/// # Safety
/// The implementer reads what is in the requested frame, writes there and nowhere else, and names
/// frames as Xen does: tokens are claimed on the strength of the table entries that it reads (I-3,
/// I-4). An access that fails has written nothing: a frame is one page, which is writable or is
/// not.
pub unsafe trait FrameAccess {
    /// Reads an entry of a frame that serves as a page table.
    ///
    /// # Errors
    /// [`AccessError::Unmapped`] if the frame cannot be reached.
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError>;

    /// Writes an entry by a plain store.
    ///
    /// # Errors
    /// [`AccessError`] if the frame cannot be reached, or is read-only, as every live table is.
    ///
    /// # Safety
    /// The caller owns the frame, and it is not part of a live tree (I-1).
    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError>;

    /// Reads entries of a table from `first` on, as many as fit in `into`.
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

    /// Returns the first present entry of a table among `slots`, with its index.
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

    /// Returns the flags that entries may not have on this machine because its CPU lacks them:
    /// NO_EXECUTE, or none. Xen refuses an entry that has one (`EINVAL`).
    fn missing_flags(&self) -> PteFlags {
        PteFlags::empty()
    }

    /// Returns those of `flags` that an entry may have. Code that makes entries asks here, and so
    /// leaves out those that are [missing](Self::missing_flags).
    fn offered(&self, flags: PteFlags) -> PteFlags {
        flags.difference(self.missing_flags())
    }

    /// Returns what M2P says of `mfn`: a guess, which only the frame map can confirm.
    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn>;

    /// Returns the kernel's address of the frame, in the direct mapping.
    ///
    /// # Errors
    /// [`AccessError::Unmapped`] if the direct mapping does not have the frame.
    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError>;
}

/// Returns the indices of `count` entries of `table` from `first` on.
fn indices(
    table: Pfn,
    first: PageTableIndex,
    count: usize,
) -> Result<impl Iterator<Item = PageTableIndex>, AccessError> {
    check_run(table, first, count)?;
    Ok((u16::from(first)..ENTRIES).map(PageTableIndex::new_truncate).take(count))
}

/// Checks that the `count` entries from `first` on are all in the table.
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

/// Loads and stores of the running CPU. They go through the loaded tables and may fault, and Xen
/// emulates writes to live L1 tables. Tests and demonstrations use them; the crates above do not.
///
/// # Safety
/// The implementer makes the requested access, once and nowhere else, and says whether it took
/// place.
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
    /// None. But a write to a live L1 table, which is mapped read-only, faults into Xen, which
    /// emulates it.
    ///
    /// # Safety
    /// If the write succeeds, the memory at the address is the caller's (I-1), and not a Rust
    /// object.
    unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault>;

    /// Writes `new` if the word is `current`, in one step (`lock cmpxchg`), and returns the old
    /// word.
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

    /// Reads the time-stamp counter.
    fn ticks(&self) -> u64;
}

/// An access faulted: the address is not mapped, the mapping does not allow the access, or Xen
/// refused the entry that was written.
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
    /// The bytes are not all in the frame.
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
