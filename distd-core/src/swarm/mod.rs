//! The fetching side of a swarm: which chunk next, from whom, and what to do when a peer fails.

mod fetch;

pub use fetch::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
