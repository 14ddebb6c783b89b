//! What a guest needs from Xen besides memory: a voice, faults, events, an end.
//!
//! Nothing here crosses the seam: the crates above do not use it, the unikernel does.

use super::trap::hypercall;
use super::{Xen, number};
use crate::error::{Errno, Error, Hypercall};

/// Release of the running Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// 4 of 4.17.
    pub major: u16,
    /// 17 of 4.17.
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
    /// Crash, for the toolstack to keep a dump of.
    Crash = 3,
}

/// A handler for an exception (`struct trap_info`). A table of them ends with [`TrapInfo::END`].
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

    /// Exception `vector` goes to `handler`; user code may not raise it by itself.
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
const XENVER_EXTRAVERSION: u64 = 1;
const XENVER_GET_FEATURES: u64 = 6;
const SCHEDOP_YIELD: u64 = 0;
const SCHEDOP_SHUTDOWN: u64 = 2;
const EVTCHNOP_SEND: u64 = 4;

pub(super) fn result(number: u32, rax: i64) -> Result<u64, Error> {
    let hypercall = Hypercall::Other(number);
    Errno::check(rax).map_err(|errno| Error { hypercall, errno, done: 0 })
}

impl Xen {
    /// Prints on Xen's own console (`console_io`). Needs no machine: the panic handler calls it.
    ///
    /// # Errors
    /// `EPERM` for a domU, unless Xen is a debug build.
    pub fn console_write(text: &[u8]) -> Result<(), Error> {
        let arguments = [CONSOLEIO_WRITE, text.len() as u64, text.as_ptr() as u64, 0, 0];
        // SAFETY: Xen reads the bytes of a live slice.
        let rax = unsafe { hypercall(number::CONSOLE_IO, arguments) };
        result(number::CONSOLE_IO, rax).map(drop)
    }

    /// Ends the guest (`SCHEDOP_shutdown`). If Xen refuses, or the guest is resumed, yields for
    /// ever.
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

    /// Wakes the other side of an event channel (`EVTCHNOP_send`).
    ///
    /// # Errors
    /// `EINVAL` if the port is none of the guest's.
    pub fn notify(port: u32) -> Result<(), Error> {
        let arguments = [EVTCHNOP_SEND, &raw const port as u64, 0, 0, 0];
        // SAFETY: Xen reads the port.
        let rax = unsafe { hypercall(number::EVENT_CHANNEL_OP, arguments) };
        result(number::EVENT_CHANNEL_OP, rax).map(drop)
    }

    /// The running release (`XENVER_version`).
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

    /// What follows major and minor in the release's name (`XENVER_extraversion`): zero-terminated
    /// text.
    ///
    /// # Errors
    /// As Xen says; no release refuses it.
    pub fn extra_version() -> Result<[u8; 16], Error> {
        let mut text = [0u8; 16];
        let arguments = [XENVER_EXTRAVERSION, text.as_mut_ptr() as u64, 0, 0, 0];
        // SAFETY: Xen fills at most 16 bytes.
        let rax = unsafe { hypercall(number::XEN_VERSION, arguments) };
        result(number::XEN_VERSION, rax).map(|_| text)
    }

    /// What this Xen offers this guest (`XENVER_get_features`, submap 0).
    ///
    /// # Errors
    /// As Xen says; no release refuses it.
    pub fn features() -> Result<Features, Error> {
        let mut argument = [0u32; 2];
        let arguments = [XENVER_GET_FEATURES, argument.as_mut_ptr() as u64, 0, 0, 0];
        // SAFETY: Xen reads the index and fills the word behind it.
        let rax = unsafe { hypercall(number::XEN_VERSION, arguments) };
        result(number::XEN_VERSION, rax).map(|_| Features(argument[1]))
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
        let rax = unsafe { hypercall(number::SET_TRAP_TABLE, arguments) };
        result(number::SET_TRAP_TABLE, rax).map(drop)
    }
}
