//! The atomics of this crate, which a model checker may replace: build with `--cfg loom`
//! (docs/testing.md).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use hypercall::ArchSharedInfo;

/// The words of `shared_info` that this crate writes, as atomics that can be replaced.
#[cfg(loom)]
#[derive(Debug, Default)]
#[allow(unreachable_pub, reason = "in the place of a public one")]
pub struct ArchSharedInfo {
    pub max_pfn: AtomicU64,
    pub frame_list_list: AtomicU64,
    pub p2m_cr3: AtomicU64,
    pub p2m_vaddr: AtomicU64,
    pub p2m_generation: AtomicU64,
}
