//! Gets what real Xen needs, once, into `target/xen-host`: QEMU, hypervisors, and for the domU role
//! a Linux dom0 with Xen's toolstack. Nothing needs root and nothing outside that folder changes:
//! apt downloads with lists of its own and checks the signatures, `dpkg-deb` unpacks.
//!
//! Each part is a file or folder that appears whole (made elsewhere, then renamed) and is left
//! alone once it is there.

mod apt;
pub(crate) mod linux;
mod mirror;
pub(crate) mod qemu;
pub(crate) mod rust_target;
pub(crate) mod xen;

use anyhow::Error;

/// Turns the reason why something could not be had into one paragraph that says what to do.
/// `advice` begins the sentence that goes on with `on Debian`.
fn missing(what: &str, advice: &str, reason: &Error) -> Error {
    Error::msg(format!(
        "{what} is missing and cannot be fetched: {reason:#}. {advice} on Debian with its package \
         mirror in reach (no root needed; PVMMU_DEBIAN_MIRROR names a mirror if apt's own \
         configuration does not). `cargo xtask run --on model` works without it."
    ))
}
