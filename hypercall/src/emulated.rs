//! Stores that may fault, at addresses of live L1 tables.
//!
//! With the assist [`WritablePageTables`](crate::Assist::WritablePageTables), and for dom0 always,
//! Xen carries out a plain store to a live L1 table as if it were an update: it validates, adjusts
//! and stores, or lets the guest have the page fault. No crate of ours relies on it; the
//! conformance program shows what it does.
#![expect(unsafe_code, reason = "declares the methods whose callers owe ownership")]

use core::fmt;

use crate::va::GuestVa;

/// How many bytes a store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// One.
    Byte = 1,
    /// Two.
    Word = 2,
    /// Four.
    Double = 4,
    /// Eight.
    Quad = 8,
}

impl Width {
    /// The number.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self as usize
    }
}

/// The store faulted, and changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulted;

impl fmt::Display for Faulted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store raised a page fault")
    }
}

impl core::error::Error for Faulted {}

/// Single instructions that store to an address, whatever comes of it.
pub trait EmulatedWrites {
    /// Stores the low bytes of `value`.
    ///
    /// # Errors
    /// [`Faulted`].
    ///
    /// # Safety
    /// The caller owns what the bytes mean: the frame, or the entry and what it maps (I-1, I-2).
    unsafe fn store(&self, va: GuestVa, value: u64, width: Width) -> Result<(), Faulted>;

    /// Compares the eight bytes there with `expected`, stores `new` if they are equal (a locked
    /// `cmpxchg`), and answers what was there.
    ///
    /// # Errors
    /// [`Faulted`].
    ///
    /// # Safety
    /// As for [`store`](Self::store).
    unsafe fn compare_exchange(&self, va: GuestVa, expected: u64, new: u64)
    -> Result<u64, Faulted>;
}
