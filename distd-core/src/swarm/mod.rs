//! Swarms, sans-io: nodes that exchange one manifest's chunks. The asker's side is [`Asker`], which
//! decides whom to dial, around [`Fetch`], which decides which chunk to request next, from which
//! peer, and how to react when a peer fails. The answerer's side is [`SiteMembers`]: it knows the
//! nodes that ask ([`Directory`], [`Shuns`]) and decides which of them gets a chunk now
//! ([`Leases`], [`RecentlySent`]). The answerer shares its room among them ([`UploadSlots`],
//! [`Places`], [`FetchCredit`]). [`AskerGossip`] and [`AnswererGossip`] say when each side tells
//! the other of chunks and neighbours. A relay is both, with a [`Demand`] and [`RelayedBatch`]es
//! between the two sides. [`News`] spreads notices that rollouts stand still.
//!
//! # Goals
//! - Chunks come from near: neighbours before relays, relays before origins. Each chunk crosses the
//!   uplink of a site once.
//! - A fetch completes if the remaining honest peers can send every chunk, whatever slow, lying or
//!   dead peers do meanwhile.
//! - The same inputs give the same outputs: time and random seeds are arguments, and no unordered
//!   map is iterated.
//!
//! # Non-goals
//! - Connections, sockets and clocks: `distd-peer` runs these machines.
//! - Verification: callers pass in chunks whose hash matched and records whose signature is valid.
//! - Rewards for upload, or an elected node for each site: every node of a site is served, and the
//!   origin's leases make elections needless (docs/decisions/0012).
//!
//! # Example: three chunks
//! Asker A and neighbour N are devices of one site and want chunks 1 to 3. N already has chunk 1.
//! Relay R has chunk 2, and its connections break before it can send chunk 3. N notices first, asks
//! the origin O for chunk 3, and gets it under a lease.
//!
//! ```text
//! asker A                neighbour N             relay R               origin O
//!    | <------- HAVE 1 ------ |                     |                     |
//!    |                        | ------------- REQUEST 3 ----------------> | leases 3 to N
//!    | ------ REQUEST 1 ----> |                     |                     |
//!    | ------------------ REQUEST 2 --------------> |                     |
//!    | <------- DATA 1 ------ |                     |                     |
//!    | <------------------- DATA 2 ---------------- |                     |
//!    | ------------------ REQUEST 3 ------------> broken                  |
//!    | ------------------------------ REQUEST 3 ------------------------> |
//!    | <--------------------- DONT_HAVE 3 (leased) ---------------------- |
//!    |                        | <-------------- DATA 3 ------------------ |
//!    | <------- HAVE 3 ------ |                     |                     |
//!    | ------ REQUEST 3 ----> |                     |                     |
//!    | <------- DATA 3 ------ |                     |                     |
//! ```
//!
//! Chunk 3 crossed the uplink once. If N announced nothing, A would ask O again after
//! `FetchConfig::lease_retry`; O grants the chunk once N's lease has ended, or after [`WAIT_MAX`]
//! in any case. The same in code, A's machine and O's:
//!
//! ```
//! use distd_core::ranges::ChunkRanges;
//! use distd_core::swarm::{Fetch, FetchConfig, Leases, PeerId, Shuns, Tier};
//! use distd_core::time::Timestamp;
//! use distd_core::{ChunkId, NodeId};
//!
//! let chunks = |ids: &[u64]| -> ChunkRanges { ids.iter().map(|id| ChunkId(*id)).collect() };
//! let (neighbour, relay, origin) = (PeerId(0), PeerId(1), PeerId(2));
//! let (now, a, n, shuns) = (Timestamp(0), NodeId([1; 16]), NodeId([2; 16]), Shuns::default());
//!
//! let mut leases = Leases::default();
//! let (_, granted, _) = leases.handle_request(now, n, &chunks(&[3]), true, &shuns);
//! assert_eq!(granted, chunks(&[3]));
//!
//! let mut fetch = Fetch::new(FetchConfig::sharing(3, 0));
//! fetch.handle_connected(now, neighbour, Tier::Site);
//! fetch.handle_connected(now, relay, Tier::Relay);
//! fetch.handle_connected(now, origin, Tier::Origin);
//! fetch.handle_have(now, neighbour, &chunks(&[1]));
//! fetch.want(&chunks(&[1, 2, 3]));
//! for (from, id) in [(neighbour, 1), (relay, 2)] {
//!     let (peer, batch, asked) = fetch.poll_request(now).expect("a batch");
//!     assert_eq!((peer, asked), (from, chunks(&[id])));
//!     assert!(fetch.handle_chunk(now, batch, ChunkId(id)));
//!     fetch.handle_batch_end(now, batch);
//! }
//!
//! assert_eq!(fetch.poll_request(now).map(|(peer, ..)| peer), Some(relay));
//! fetch.handle_disconnected(now, relay, Tier::Relay);
//! let (peer, batch, asked) = fetch.poll_request(now).expect("a batch");
//! assert_eq!((peer, &asked), (origin, &chunks(&[3])));
//! let (_, granted, refused) = leases.handle_request(now, a, &asked, true, &shuns);
//! assert_eq!((granted, &refused), (chunks(&[]), &asked));
//! fetch.handle_leased(now, batch, &refused);
//! fetch.handle_batch_end(now, batch);
//! assert_eq!(fetch.poll_request(now), None, "wait for the neighbour");
//!
//! fetch.handle_have(now, neighbour, &chunks(&[3]));
//! let (peer, batch, _) = fetch.poll_request(now).expect("a batch");
//! assert_eq!(peer, neighbour);
//! assert!(fetch.handle_chunk(now, batch, ChunkId(3)));
//! fetch.handle_batch_end(now, batch);
//! assert!(fetch.is_idle());
//! ```

mod asker;
mod credit;
mod dial_backoff;
mod directory;
mod fetch;
mod gossip;
mod lease;
mod linger;
mod news;
mod places;
mod quarantine;
mod reach;
mod recently_sent;
mod relaying;
mod shuns;
mod site_members;
mod site_rule;
mod slots;
mod upload_slots;

pub use asker::{Asker, AskerAction, DialTarget, Neighbour, NeighbourSource};
pub use credit::FetchCredit;
pub use dial_backoff::{DialBackoff, may_dial};
pub use directory::{Directory, Requester, SiteKey};
pub use fetch::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
pub use gossip::{Advertise, AnswererGossip, AnswererNews, AskerGossip, AskerNews};
pub use lease::{LEASE, LeaseId, Leases, WAIT_MAX};
pub use linger::Linger;
pub use news::{Judged, LOOK_SPREAD, NOTICES_MAX, News, NewsFrom, TELL_WITHIN, TELLS_MAX, Told};
pub use places::{Admission, PlaceId, Places};
pub use quarantine::{QUARANTINE_SECONDS, QuarantineList};
pub use recently_sent::RecentlySent;
pub use relaying::{Demand, DemandMet, RelayedBatch, RelayedEnd, RelayedNext, RelayedRead, WaiterId};
pub use shuns::Shuns;
pub use site_members::{Division, MemberId, SiteMembers};
pub use site_rule::SiteRule;
pub use upload_slots::{SlotAsk, SlotTold, UPLOAD_SLOT_WAIT, UPLOAD_SLOTS, UploadSlots, WaitId};
