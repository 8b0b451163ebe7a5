//! The serving side of a device: it serves neighbours the artifacts it has installed, and the
//! verified chunks of those it is pulling.

mod content;
mod holdings;
mod swarm;

pub use content::{Device, DeviceContent, InstalledArtifacts};
pub use holdings::Holdings;
pub use swarm::{ChunkBytes, Manifests, ShareCounters, SharedSwarm};
