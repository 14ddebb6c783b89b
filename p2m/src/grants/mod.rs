//! Frames shared with other domains, in both directions, with accounts that can be listed.

mod granted;
mod maps;

pub use granted::{GrantError, Granted, Outstanding};
pub use maps::{GrantFailure, GrantMaps, MapRequest, MappedGrant};
