//! Frames shared with other domains, in both directions, with accounts that can be listed.
//!
//! [`Granted`] is the guest's own grant table, and a [`Grant`] a frame that it lends. [`GrantMaps`]
//! is the list of others' grants that the guest maps.

mod entry;
mod error;
mod granted;
mod maps;

pub use entry::Outstanding;
pub use error::GrantError;
pub use granted::{Grant, Granted};
pub use maps::{GrantMaps, MapRequest, MappedGrant, NotMapped};
