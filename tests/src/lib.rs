//! Work for the host's instruction counter: what the crates do between two hypercalls, on data of
//! any size, without a machine.
//!
//! The benches of this package (`cargo xtask bench --host`) call these functions under valgrind.
//! Each takes what was made ready for it, so that only the work itself is counted.
//!
//! | module | whose work |
//! |---|---|
//! | [`frame_map`] | `p2m`: adopting, look-ups, changes, the audit |
//! | [`boot_map`] | `early-pgt`: the plan |
//! | [`tables`] | `hypercall` and `pvmmu`: batches, entries, the cost function |
//! | [`dma`] | `swiotlb`: a mapping and its end |
//! | [`logs`] | `xen-explain`: lines of a log |

pub mod boot_map;
pub mod dma;
pub mod frame_map;
pub mod logs;
pub mod tables;
