//! The atomics of this crate. `--cfg loom` replaces them with a model checker's (docs/testing.md).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering};
