//! What a guest lives by while a toolstack stands above it: events, xenstore, time, and being
//! suspended. On real Xen `kernel/life.rs` does it; the tests have a toolstack of their own.

mod survives;

use core::fmt;
use core::ops::{Add, Sub};

use alloc::string::String;

use hypercall::shared_info::ArchSharedInfo;

pub(crate) use survives::{Survives, survives};

use crate::store::ring::StoreRing;

/// Nanoseconds of Xen's clock, since it started. It is another clock after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanoseconds(pub(crate) u64);

impl Add for Nanoseconds {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// The time between two times.
impl Sub for Nanoseconds {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// How a guest came back from a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, target_os = "none")),
    expect(dead_code, reason = "the model has no toolstack")
)]
pub(crate) enum Return {
    /// In another domain: every frame has another number, and xenstore knows nothing of it.
    Restored,
    /// Where it was.
    Cancelled,
}

/// Why a guest could not be suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, target_os = "none")),
    expect(dead_code, reason = "the model has no toolstack")
)]
pub(crate) enum SuspendError {
    /// It goes on as before.
    NotSuspended(String),
    /// It came back and cannot go on: what Xen shares with it is out of reach.
    Lost(String),
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSuspended(reason) => write!(f, "not suspended: {reason}"),
            Self::Lost(reason) => write!(f, "back from a suspend without Xen's page: {reason}"),
        }
    }
}

/// When a guest was suspended last, in ticks of its CPU: when it began to stop, just before it
/// asked Xen, and just behind. The last need not be of the same CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Away {
    pub(crate) begun: u64,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// For good.
    Poweroff,
    /// To be started again.
    Reboot,
    /// To be looked at.
    Crash,
}

/// The toolstack's side of a running guest.
///
/// All that a suspend takes away is borrowed from this, and a suspend borrows it exclusively.
pub(crate) trait Life {
    /// The words in `shared_info` that a toolstack reads.
    fn shared_info(&self) -> &ArchSharedInfo;

    /// The rings to xenstored.
    fn ring(&self) -> &StoreRing;

    /// Tells xenstored that the rings have changed.
    fn notify_store(&self);

    /// The time.
    fn now(&self) -> Nanoseconds;

    /// Sleeps until something happens, at most until `deadline`. The caller looks at everything
    /// afterwards.
    fn wait(&self, deadline: Nanoseconds);

    /// Lets the toolstack stop the guest, save it, and let it go on wherever that is.
    ///
    /// # Errors
    /// [`SuspendError`].
    fn suspend(&mut self) -> Result<Return, SuspendError>;

    /// When it was suspended last.
    fn away(&self) -> Away;

    /// How the guest shall end when its program is through.
    fn end(&self, way: Way);
}
