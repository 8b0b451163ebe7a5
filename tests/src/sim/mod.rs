//! A deterministic simulation of swarms around the core's real state machines.
//!
//! [`Sim`] has an origin, relays and leaves as nodes. Each runs the core's [`Fetch`](distd_core::swarm::Fetch),
//! [`Leases`](distd_core::swarm::Leases), [`Directory`](distd_core::swarm::Directory), `Control` and `BatchAsk`; what
//! `distd-peer` does around them with tasks and sockets (dialling again, gathering announcements, upload slots, waiting for
//! upstream) is done here by events, with the same constants. Connections, links and the time are virtual: one 64-bit number is
//! one run. Chunks are ids with eight bytes that are right or wrong.
//!
//! What holds after every step is in [`check`](self); what must come about at last is the scenario's to ask for
//! (`tests/tests/sim`).
//!
//! Not simulated: congestion control (a connection has a window of what its path holds, retransmission is a delay), bytes on
//! disk, TLS and signatures (a record is refused by its dates alone), trees of relays above one level of a site.

mod answer;
mod ask;
mod build;
mod check;
mod conn;
mod faults;
mod log;
mod net;
mod node;
mod queue;
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
