//! Swarms, sans-io: the fetching side ([`Fetch`]: which chunk next, from whom, and what to do when a peer fails), and what an
//! answering node knows of the nodes that ask it ([`Directory`], [`Leases`]).

mod directory;
mod fetch;
mod lately;
mod lease;
pub mod rules;
mod shuns;
mod slots;

pub use directory::{Asker, Directory, SiteKey};
pub use fetch::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
pub use lately::Lately;
pub use lease::{LEASE, LeaseId, Leases, WAIT_MAX};
pub use shuns::Shuns;
pub use slots::SlotPace;
