//! A relay between its askers and its parents, sans-io: [`Demand`] knows the batches that wait for
//! each chunk of a swarm, and [`RelayedBatch`] decides for one batch which chunks are requested
//! from upstream, how far ahead, how often an evicted chunk is requested again, and when the asker
//! is told to ask again.
//!
//! # Goals
//! - However many batches wait for a chunk, the relay fetches it once, and sends it to all of them.
//! - Each requested chunk is sent or refused exactly once, whatever comes, fails or is evicted
//!   meanwhile.
//! - A chunk that nobody waits for any more is not fetched, and the node that made the relay fetch
//!   it in vain is charged if it comes all the same.
//! - An asker that takes nothing makes the relay fetch a bounded number of chunks.
//!
//! # Non-goals
//! - The fetch itself: [`Fetch`](super::Fetch) asks the parents.
//! - The store, the permits of a node and its credit ([`FetchCredit`](super::FetchCredit)): the
//!   caller keeps them. Chunks that the relay holds are sent without these machines.
//!
//! # Example: three chunks
//! Device A asks a relay for chunks 1 to 3, and device B for chunk 2. The relay holds chunk 1. It
//! fetches chunk 2 once, for both. No parent has chunk 3.
//!
//! ```text
//! device A                 relay                   device B        parent
//!    | --- REQUEST 1-3 ----> | ------------ REQUEST 2-3 -----------> |
//!    | <----- DATA 1 ------- |                         |             |
//!    |                       | <----- REQUEST 2 ------ |             |
//!    |                       | <---------------- DATA 2 ------------ |
//!    | <----- DATA 2 ------- | ------- DATA 2 -------> |             |
//!    |                       | <------------- DONT_HAVE 3 ---------- |
//!    | <--- DONT_HAVE 3 ---- |                         |             |
//! ```
//!
//! The same in code. The arrival of chunk 2 is answered to B in the same way as to A.
//!
//! ```
//! use distd_core::ChunkId;
//! use distd_core::ranges::ChunkRanges;
//! use distd_core::swarm::{Demand, RelayedBatch, RelayedNext, RelayedRead};
//! use distd_core::time::Timestamp;
//!
//! let chunks = |ids: &[u64]| -> ChunkRanges { ids.iter().map(|id| ChunkId(*id)).collect() };
//! let now = Timestamp(0);
//! let mut demand = Demand::default();
//!
//! let (a, mut batch_a) = (demand.waiter(), RelayedBatch::new(chunks(&[2, 3])));
//! let permits = batch_a.poll_room(256, || false);
//! let requested = batch_a.handle_room(permits);
//! let fresh = demand.wait_for(a, &"A", &requested);
//! batch_a.handle_fresh(&fresh);
//! assert_eq!((permits, fresh), (2, chunks(&[2, 3])), "the fetch is to bring both");
//!
//! let (b, mut batch_b) = (demand.waiter(), RelayedBatch::new(chunks(&[2])));
//! let requested = batch_b.handle_room(1);
//! assert_eq!(demand.wait_for(b, &"B", &requested), chunks(&[]), "it is on its way");
//!
//! assert!(matches!(batch_a.poll_next(now, || false), RelayedNext::Chunk(_)));
//! assert_eq!(demand.handle_fetched(ChunkId(2)).waiters, [a, b]);
//! assert!(batch_a.handle_held(ChunkId(2)));
//! assert_eq!(batch_a.handle_read(ChunkId(2), true), RelayedRead::Send);
//! batch_a.handle_sent(ChunkId(2));
//!
//! assert_eq!(demand.handle_not_fetched(ChunkId(3)), [a]);
//! assert!(batch_a.handle_gone(ChunkId(3)), "A is told");
//! assert_eq!(batch_a.poll_next(now, || false), RelayedNext::Done);
//! let end = batch_a.finish();
//! assert_eq!((end.open, end.charged, end.room), (chunks(&[]), chunks(&[]), 2));
//! ```

mod batch;
mod demand;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_table;

pub(super) use batch::UPSTREAM_WAIT;
pub use batch::{RelayedBatch, RelayedEnd, RelayedNext, RelayedRead};
pub use demand::{Demand, DemandMet, WaiterId};
