//! A deterministic simulation of swarms around the core's real state machines.
//!
//! [`Sim`] has an origin, relays and leaves as nodes. Each node runs the core's machines, the same
//! ones that `distd-peer` runs: `Asker`, `AskerGossip` and `Linger` where it asks, `SiteMembers`,
//! `UploadSlots` and `AnswererGossip` where it answers, `Demand` and `RelayedBatch` where it relays
//! (docs/testing.md, "Simulated swarms"). The simulator carries out what they decide. Connections,
//! links, disks and time are virtual: one 64-bit number is one run. Chunks are ids with eight bytes
//! that are right or wrong.
//!
//! Invariants that hold after every step are in `check.rs`; a scenario asserts its own results at
//! the end (`tests/tests/sim`).
//!
//! Not simulated: congestion control (a connection has a window of the capacity of its path,
//! retransmission is a delay), bytes on disk, TLS and signatures (a record is refused only by its
//! dates), budgets and rate limits of nodes, trees of relays above one level of a site.

mod answer;
mod ask;
mod build;
mod check;
mod conn;
mod faults;
pub mod fleet;
mod log;
mod net;
mod node;
mod queue;
mod relay;
mod replay;
mod rules;
mod serve;
mod share;
mod world;

pub use net::{Rate, Wan};
pub use node::{Behaviour, LeafConfig, NodeNo};
pub use replay::each_seed;
pub use rules::Rule;
pub use world::Sim;
