//! The kernel's lock: whoever has to wait for it lets another vCPU run, the holder perhaps.

use hypercall::xen::Xen;
use spin::mutex::SpinMutex;
use spin::relax::RelaxStrategy;

/// A lock that yields to Xen while it waits.
pub(super) type Mutex<T> = SpinMutex<T, Yield>;

/// Waits by `SCHEDOP_yield`.
pub(super) struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        Xen::yield_now();
    }
}
