//! Swarms, sans-io: the fetching side ([`Fetch`]: which chunk next, from whom, and what to do when a peer fails), and what an
//! answering node knows of the nodes that ask it ([`Directory`], [`Leases`]).

mod credit;
mod directory;
mod fetch;
mod lately;
mod lease;
mod places;
pub mod rules;
mod shuns;
mod slots;
mod upload_slots;

pub use credit::FetchCredit;
pub use directory::{Asker, Directory, SiteKey};
pub use fetch::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
pub use lately::Lately;
pub use lease::{LEASE, LeaseId, Leases, WAIT_MAX};
pub use places::{Arrival, PlaceId, Places};
pub use shuns::Shuns;
pub use slots::SlotPace;
pub use upload_slots::{SlotAsk, SlotTold, UploadSlots, WaitId};
