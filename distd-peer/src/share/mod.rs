//! A device that serves its neighbours: what it has installed, and what it is pulling as far as it is verified and in place.

mod content;
mod holdings;
mod swarm;

pub use content::{Device, DeviceContent, Shelf};
pub use holdings::Holdings;
pub use swarm::{ChunkBytes, Manifests, ShareCounters, SharedSwarm};
