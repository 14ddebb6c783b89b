//! Machines around machines. Each implements the traits that it wraps, so it works on real Xen and
//! on the model.

mod accesses;
mod counting;
mod fail_access;
mod fail_each;
mod fail_nth;
mod timed;
mod traced;

pub use accesses::Accessed;
pub use counting::{Counting, Counts};
pub use fail_each::{Asked, FailEach, Refusal, Refusals};
pub use fail_nth::FailNth;
pub use timed::Timed;
pub use traced::{TRACE_HEADER, Traced, trace_start, trace_sum};

use x86_64::structures::paging::PageTableIndex;

use crate::call::Call;
use crate::error::Error;
use crate::frame::{Mfn, Pfn};
use crate::machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls};
use crate::memory::MemoryOp;
use crate::pte::Pte;
use crate::va::GuestVa;

/// Forwards [`FrameAccess`] to the machine inside: each access behind a call of the first method
/// named, with its name and frame, or of the second if it writes.
macro_rules! forward_frame_access {
    (
        [$($generics:tt)*] $wrapper:ty, $self:ident => $inner:expr
        $(, behind $reach:ident and $write:ident)?
    ) => {
        #[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
        // SAFETY: every call goes to the machine inside, whose answer is handed on.
        unsafe impl<$($generics)*> FrameAccess for $wrapper {
            // The inner loops of walks: a call would cost more than the read.
            #[inline(always)]
            fn read_entry(
                &$self,
                table: Pfn,
                index: PageTableIndex,
            ) -> Result<Pte, AccessError> {
                $($self.$reach("read_entry", table)?;)?
                $inner.read_entry(table, index)
            }

            #[inline(always)]
            unsafe fn write_entry(
                &$self,
                table: Pfn,
                index: PageTableIndex,
                pte: Pte,
            ) -> Result<(), AccessError> {
                $($self.$write("write_entry", table)?;)?
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.write_entry(table, index, pte) }
            }

            fn read_entries(
                &$self,
                table: Pfn,
                first: PageTableIndex,
                into: &mut [Pte],
            ) -> Result<(), AccessError> {
                $($self.$reach("read_entries", table)?;)?
                $inner.read_entries(table, first, into)
            }

            fn next_present(
                &$self,
                table: Pfn,
                slots: core::ops::Range<u16>,
            ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
                $($self.$reach("next_present", table)?;)?
                $inner.next_present(table, slots)
            }

            unsafe fn write_entries(
                &$self,
                table: Pfn,
                first: PageTableIndex,
                from: &[Pte],
            ) -> Result<(), AccessError> {
                $($self.$write("write_entries", table)?;)?
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.write_entries(table, first, from) }
            }

            fn read_bytes(
                &$self,
                pfn: Pfn,
                offset: usize,
                into: &mut [u8],
            ) -> Result<(), AccessError> {
                $($self.$reach("read_bytes", pfn)?;)?
                $inner.read_bytes(pfn, offset, into)
            }

            unsafe fn write_bytes(
                &$self,
                pfn: Pfn,
                offset: usize,
                from: &[u8],
            ) -> Result<(), AccessError> {
                $($self.$write("write_bytes", pfn)?;)?
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.write_bytes(pfn, offset, from) }
            }

            unsafe fn clear_frame(&$self, pfn: Pfn) -> Result<(), AccessError> {
                $($self.$write("clear_frame", pfn)?;)?
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.clear_frame(pfn) }
            }

            fn missing_flags(&$self) -> $crate::PteFlags {
                $inner.missing_flags()
            }

            fn machine_to_phys(&$self, mfn: Mfn) -> Option<Pfn> {
                $inner.machine_to_phys(mfn)
            }

            fn direct_map(&$self, pfn: Pfn) -> Result<GuestVa, AccessError> {
                $($self.$reach("direct_map", pfn)?;)?
                $inner.direct_map(pfn)
            }
        }
    };
}
use forward_frame_access;

/// Forwards [`Cpu`] to the machine inside.
macro_rules! forward_cpu {
    ([$($generics:tt)*] $wrapper:ty, $self:ident => $inner:expr) => {
        #[expect(unsafe_code, reason = "forwards stores with the promises of their callers")]
        // SAFETY: every call goes to the machine inside, whose answer is handed on.
        unsafe impl<$($generics)*> Cpu for $wrapper {
            fn load(&$self, va: GuestVa) -> Result<u64, Fault> {
                $inner.load(va)
            }

            unsafe fn store(&$self, va: GuestVa, value: u64) -> Result<(), Fault> {
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.store(va, value) }
            }

            unsafe fn compare_exchange(
                &$self,
                va: GuestVa,
                current: u64,
                new: u64,
            ) -> Result<u64, Fault> {
                // SAFETY: the caller's promise is handed on.
                unsafe { $inner.compare_exchange(va, current, new) }
            }

            fn ticks(&$self) -> u64 {
                $inner.ticks()
            }
        }
    };
}
use forward_cpu;

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls + ?Sized> Hypercalls for &M {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { (**self).issue(calls) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: the caller's promise is handed on.
        unsafe { (**self).memory_op(op) }
    }

    unsafe fn memory_op_counted(
        &self,
        op: &mut MemoryOp<'_>,
    ) -> (Result<u64, Error>, Result<u64, Error>) {
        // SAFETY: the caller's promise is handed on.
        unsafe { (**self).memory_op_counted(op) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        (**self).enable_assist(assist)
    }
}

forward_frame_access!([M: FrameAccess + ?Sized] &M, self => (**self));
forward_cpu!([M: Cpu + ?Sized] &M, self => (**self));
