//! Frames shared with other domains, in both directions, with accounts that can be listed.

mod granted;
mod maps;

pub use granted::{Grant, GrantError, Granted, NotEnded, NotGiven, Outstanding};
pub use maps::{GrantFailure, GrantMaps, MapRequest, MappedGrant, UnmapFailure};
