//! The atomics of this crate. `--cfg loom` replaces them with a model checker's (docs/testing.md).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use self::{LoomMapWords as MapWords, LoomSharedInfo as ArchSharedInfo};
#[cfg(not(loom))]
pub(crate) use hypercall::shared_info::{ArchSharedInfo, MapWords};

/// The words of `shared_info` that this crate writes, as atomics that can be replaced.
#[cfg(loom)]
#[derive(Debug, Default)]
#[allow(unreachable_pub, reason = "in the place of a public one")]
pub struct LoomSharedInfo(LoomMapWords);

#[cfg(loom)]
#[allow(unsafe_code, reason = "in the place of one that owes something")]
impl LoomSharedInfo {
    pub(crate) const unsafe fn map_words(&self) -> &LoomMapWords {
        &self.0
    }
}

/// The words themselves.
#[cfg(loom)]
#[derive(Debug, Default)]
#[allow(unreachable_pub, reason = "in the place of a public one")]
pub struct LoomMapWords {
    pub max_pfn: AtomicU64,
    pub frame_list_list: AtomicU64,
    pub p2m_cr3: AtomicU64,
    pub p2m_vaddr: AtomicU64,
    pub p2m_generation: AtomicU64,
}
