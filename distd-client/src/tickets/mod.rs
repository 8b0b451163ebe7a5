//! Shares by ticket: an artifact of this machine, given from where it lies to whoever holds its
//! ticket (docs/tickets.md). `local` cuts the artifact and reads its chunks, [`share`] serves them,
//! and [`kept`] has the shares that the device's agent serves.
//! [`crate::pull::fetch`] is the other side.

pub mod kept;
mod local;
pub mod share;

pub use local::LocalArtifact;
pub use share::{Share, ShareEvent, ShareRequest};
