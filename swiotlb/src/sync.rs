//! The atomics of this crate, which a model checker may replace: build with `--cfg loom`
//! (docs/testing.md).

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU64, Ordering};
