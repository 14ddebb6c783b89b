//! What a guest needs from Xen besides memory: output, faults, events, an end.
//!
//! Nothing here crosses the seam. The crates above do not use it; the unikernel does.

use super::trap::hypercall;
use super::{Xen, number};
use crate::error::{Errno, Error, Hypercall};

/// Release of the running Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// 4, in 4.17.
    pub major: u16,
    /// 17, in 4.17.
    pub minor: u16,
}

/// The first word of `XENVER_get_features`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub u32);

/// Why the guest ends (`SHUTDOWN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// Power off.
    Poweroff = 0,
    /// Reboot.
    Reboot = 1,
    /// Crash; the toolstack keeps a dump.
    Crash = 3,
}

/// A handler for an exception (`struct trap_info`). A table of handlers ends with
/// [`TrapInfo::END`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TrapInfo {
    vector: u8,
    flags: u8,
    cs: u16,
    address: u64,
}

const _: () = assert!(size_of::<TrapInfo>() == size_of::<xen_sys::trap_info>());

/// The kernel's code segment: Xen's flat ring 3 one (`FLAT_KERNEL_CS`).
pub(super) const KERNEL_CS: u16 = 0xe033;

impl TrapInfo {
    /// The end of a table.
    pub const END: Self = Self { vector: 0, flags: 0, cs: 0, address: 0 };

    /// Sends exception `vector` to `handler`. User code may not raise it itself.
    #[must_use]
    pub const fn new(vector: u8, handler: u64) -> Self {
        Self { vector, flags: 0, cs: KERNEL_CS, address: handler }
    }

    pub(super) const fn vector(self) -> u8 {
        self.vector
    }

    pub(super) const fn is_end(self) -> bool {
        self.address == 0
    }
}

const CONSOLEIO_WRITE: u64 = 0;
const XENVER_VERSION: u64 = 0;
const XENVER_GET_FEATURES: u64 = 6;
const SCHEDOP_YIELD: u64 = 0;
pub(super) const SCHEDOP_SHUTDOWN: u64 = 2;
const PHYSDEVOP_SET_IOPL: u64 = 6;

/// Makes a hypercall, and returns its answer. A refusal names it by `name`.
///
/// # Safety
/// As for [`hypercall`].
pub(super) unsafe fn ask(
    number: u32,
    name: &'static str,
    arguments: [u64; 5],
) -> Result<u64, Error> {
    // SAFETY: the caller's promise is handed on.
    let rax = unsafe { hypercall(number, arguments) };
    let hypercall = Hypercall::Other(name);
    Errno::check(rax).map_err(|errno| Error { hypercall, errno, done: 0 })
}

impl Xen {
    /// Prints on Xen's own console (`console_io`). It needs no machine, so that the panic handler
    /// can call it.
    ///
    /// # Errors
    /// `EPERM` for a domU, unless Xen is a debug build.
    pub fn console_write(text: &[u8]) -> Result<(), Error> {
        let arguments = [CONSOLEIO_WRITE, text.len() as u64, text.as_ptr() as u64, 0, 0];
        // SAFETY: Xen reads the bytes of a live slice.
        unsafe { ask(number::CONSOLE_IO, "console_io(write)", arguments) }.map(drop)
    }

    /// Ends the guest (`SCHEDOP_shutdown`). If Xen refuses, or the guest is resumed, yields
    /// forever.
    pub fn shutdown(reason: ShutdownReason) -> ! {
        let argument = reason as u32;
        let arguments = [SCHEDOP_SHUTDOWN, &raw const argument as u64, 0, 0, 0];
        loop {
            // SAFETY: Xen reads the argument, then nothing of the guest runs.
            let _ = unsafe { hypercall(number::SCHED_OP, arguments) };
            Self::yield_now();
        }
    }

    /// Lets others run (`SCHEDOP_yield`).
    pub fn yield_now() {
        // SAFETY: changes nothing of the guest's.
        let _ = unsafe { hypercall(number::SCHED_OP, [SCHEDOP_YIELD, 0, 0, 0, 0]) };
    }

    /// Lets the guest's kernel use I/O ports on this vCPU (`PHYSDEVOP_set_iopl`). Xen carries the
    /// instructions out, for the ports that the domain has.
    ///
    /// # Errors
    /// `EINVAL` for a level above 3; no release refuses this one.
    pub fn allow_ports() -> Result<(), Error> {
        let level = 1u32;
        let arguments = [PHYSDEVOP_SET_IOPL, &raw const level as u64, 0, 0, 0];
        // SAFETY: Xen reads the level; which ports the domain has does not change.
        unsafe { ask(number::PHYSDEV_OP, "physdev_op(set_iopl)", arguments) }.map(drop)
    }

    /// Returns the running release (`XENVER_version`).
    #[must_use]
    pub fn version() -> Version {
        // SAFETY: only reports.
        let word = unsafe { hypercall(number::XEN_VERSION, [XENVER_VERSION, 0, 0, 0, 0]) };
        let [low0, low1, high0, high1, ..] = word.to_le_bytes();
        Version {
            major: u16::from_le_bytes([high0, high1]),
            minor: u16::from_le_bytes([low0, low1]),
        }
    }

    /// Returns what this Xen offers this guest (`XENVER_get_features`, submap 0).
    ///
    /// # Errors
    /// As Xen says; no release refuses it.
    pub fn features() -> Result<Features, Error> {
        let mut argument = [0u32; 2];
        let arguments = [XENVER_GET_FEATURES, argument.as_mut_ptr() as u64, 0, 0, 0];
        // SAFETY: Xen reads the index and fills the word behind it.
        unsafe { ask(number::XEN_VERSION, "xen_version(get_features)", arguments) }
            .map(|_| Features(argument[1]))
    }

    /// Installs exception handlers (`set_trap_table`).
    ///
    /// # Errors
    /// `EFAULT` or `EINVAL` if the table is not one.
    ///
    /// # Safety
    /// The table ends with [`TrapInfo::END`], and each handler can take its exception as Xen
    /// delivers it.
    pub unsafe fn set_trap_table(table: &[TrapInfo]) -> Result<(), Error> {
        let arguments = [table.as_ptr() as u64, 0, 0, 0, 0];
        // SAFETY: the caller vouches for the table.
        unsafe { ask(number::SET_TRAP_TABLE, "set_trap_table", arguments) }.map(drop)
    }
}
