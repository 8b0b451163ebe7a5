//! The relay: pulls every byte over its uplink once and serves its office, cutting through.

mod config;
mod content;
mod demand;
mod mirror;
mod run;

pub use config::{CacheFile, RelayConfig, RelayConfigError, RelayFile};
pub use content::{Relay, RelayCounters};
pub use run::{Running, StartError, start};
