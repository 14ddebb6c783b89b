//! Programs with real devices: `edu`, `disk` and `net`. What they have in common.

pub(super) mod disk;
pub(super) mod edu;
pub(super) mod net;

mod memory;
mod pci;
mod registers;
mod shared;
