//! What concerns several crates: guests on the model for their tests and for the examples in their
//! documentation, and work for the host's instruction counter: what the crates do between two
//! hypercalls, on data of any size, without a machine.
//!
//! | module | a guest |
//! |---|---|
//! | [`guest`] | that has mapped all its memory: what most examples begin with |
//! | [`booting`] | as its builder leaves it |
//! | [`window`] | whose frame map has a window |
//!
//! [`examples`] has the names that most examples begin with.
//! [`words`] reads the errors of a crate, [`pairs`] runs an operation under every pair of refusals,
//! [`account`] says in the end whether every page has one owner, with [`meanwhile`] something else
//! goes on between any two requests, and [`contrary`] is a machine that contradicts itself,
//! and [`nonsense`] one that says anything.
//!
//! The benches of this package (`cargo xtask bench --host`) call the functions of the others under
//! valgrind. Each takes what was made ready for it, so that only the work itself is counted.
//!
//! | module | whose work |
//! |---|---|
//! | [`frame_map`] | `p2m`: adopting, look-ups, changes, the audit |
//! | [`boot_map`] | `early-pgt`: the plan |
//! | [`tables`] | `hypercall` and `pvmmu`: batches, entries, the cost function |
//! | [`dma`] | `swiotlb`: a mapping and its end |
//! | [`logs`] | `xen-explain`: lines of a log |

pub mod account;
pub mod boot_map;
pub mod booting;
pub mod contrary;
pub mod dma;
pub mod examples;
mod forward;
pub mod frame_map;
pub mod guest;
pub mod logs;
pub mod meanwhile;
pub mod nonsense;
pub mod pairs;
pub mod tables;
pub mod window;
pub mod words;

/// The worked example of docs/architecture.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../docs/architecture.md")]
mod architecture {}
