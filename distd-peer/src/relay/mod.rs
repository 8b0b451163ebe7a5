//! The relay: fetches every byte over its uplink once and serves its office, forwarding chunks as
//! they arrive.

mod asked_capabilities;
mod batch_fetch;
mod config;
mod content;
mod demand;
mod import;
mod init;
mod log;
mod metadata_cache;
mod mirror;
mod reports;
mod run;
mod swarm;

pub use config::{RelayConfig, RelaySettings, TABLE, Values};
pub use content::{Relay, RelayCounters};
pub use import::{HandOverError, HandedOver, ImportError, ImportResult, Imported, Outcome, hand_over};
pub use init::{CONFIG, InitError, InitOrder, init};
pub use run::{Running, StartError, start};
