//! From the builder's few megabytes to a direct map of all memory.
#![cfg_attr(not(test), no_std)]

mod build;
mod error;
mod memory;
mod plan;
mod spans;
mod tables;

pub use build::{Build, BuildContext, Mapped};
pub use error::{EarlyError, RoundError};
pub use memory::{
    Access, BootMemory, MapPlace, Region, RegionKind, Use, UseKind, access_of, builder_uses,
    mask_rw,
};
pub use plan::{Plan, ROUNDS_MAX, RoundPlan};
pub use tables::{Parent, Step, Table};
