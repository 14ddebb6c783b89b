//! Hypercalls and accesses as bare numbers, for tests that must be able to be wrong.
//!
//! The typed traits cannot express a list in Xen's range, an unknown hypercall or a store
//! of two bytes. A test of Xen's answer to such things needs them. All addresses are guest virtual
//! addresses. What they point to must be in frames that the machine knows as the guest's: on a
//! model, Rust's own memory is not.
#![expect(unsafe_code, reason = "declares the methods whose callers owe everything")]

/// Hypercalls by number.
pub trait RawHypercalls {
    /// Makes hypercall `number` and returns what it leaves in `rax`.
    ///
    /// # Safety
    /// The caller's ownership must allow everything that the hypercall does to memory and to the
    /// meaning of addresses (I-1, I-2).
    unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64;
}

/// How [`RawCpu::write`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawWrite {
    /// A store of the low byte.
    Store1,
    /// A store of the two low bytes.
    Store2,
    /// A store of the four low bytes.
    Store4,
    /// A store of all eight, at any address.
    Store8,
    /// `xchg`: returns the word that was there.
    Exchange,
    /// `lock or`.
    Or,
    /// `lock cmpxchg16b` of two zeroes with the value and zero; the address is a multiple of 16.
    CompareExchange16,
}

/// What the running CPU can do besides reading and writing words.
pub trait RawCpu {
    /// Writes `value` at `address` as `how` says. Returns the old word if the instruction gives it,
    /// and 0 if not; `None` if it faulted, and then nothing was written.
    ///
    /// # Safety
    /// As for [`Cpu::store`](crate::Cpu::store).
    unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64>;

    /// Loads `selector` into a data segment register that nothing uses. Returns false if that
    /// faulted.
    ///
    /// # Safety
    /// If the selector's descriptor can be loaded, it is that of a data segment.
    unsafe fn load_selector(&self, selector: u16) -> bool;
}
