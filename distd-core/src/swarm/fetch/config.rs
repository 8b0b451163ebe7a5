//! Bounds and waiting times of a [`Fetch`](super::Fetch).

use std::time::Duration;

use crate::swarm::relaying::UPSTREAM_WAIT;

/// Settings of a fetch: bounds, waiting times and the seed of its random choices.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Most chunks in one batch.
    pub batch_chunks: u64,
    /// Most batches in flight to one peer. Two keep the link full while the next is requested; more
    /// cost memory.
    pub batches_per_peer: usize,
    /// Longest time without progress. Then the batch is taken back and its peer is marked slow. For
    /// a neighbour the time is shorter and depends on its pace, down to `stall_min`; for a relay it
    /// is at most 12 s.
    pub stall: Duration,
    /// Shortest such time for a neighbour.
    pub stall_min: Duration,
    /// Half of the first backoff after a peer failed. The backoff doubles with each failure in a
    /// row, up to `backoff_max`.
    pub backoff: Duration,
    /// Longest backoff after a failure.
    pub backoff_max: Duration,
    /// Number of failures in a row after which a peer is given up.
    pub failures_max: u32,
    /// How long a parent is not asked again for a chunk that a neighbour is fetching.
    pub lease_retry: Duration,
    /// Announce grace: how long a neighbour that has just connected, or announced something, may
    /// yet announce wanted chunks.
    pub announce_grace: Duration,
    /// Any number. It determines all random choices.
    pub rng_seed: u64,
    /// Most chunks in one batch while there are neighbours to share the work with. `None` for a
    /// node that does not exchange chunks: it requests in order, in batches as large as possible.
    pub shared_batch: Option<u64>,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            batch_chunks: 1024,
            batches_per_peer: 3,
            stall: Duration::from_secs(20),
            stall_min: Duration::from_secs(2),
            backoff: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            failures_max: 12,
            lease_retry: Duration::from_secs(2),
            announce_grace: Duration::from_secs(10),
            rng_seed: 0,
            shared_batch: None,
        }
    }
}

/// Fewest batches into which a device that shares divides its wanted chunks. When a relay dies, the
/// chunks that all devices of a site have requested from it are lost, unless the relay has passed
/// them on. With 16, five devices had requested nearly everything at once, and a relay killed after
/// a fifth of the transfer cost the origin a third more.
const SHARED_PARTS: u64 = 64;

/// Fewest chunks of a batch between neighbours, unless fewer are wanted.
pub(super) const BATCH_CHUNKS_MIN: u64 = 4;

impl FetchConfig {
    /// Returns the settings of a device that wants `wanted` chunks and shares them with its
    /// neighbours. `rng_seed` must differ from theirs.
    pub fn sharing(wanted: u64, rng_seed: u64) -> Self {
        let shared_batch = Some((wanted / SHARED_PARTS).max(BATCH_CHUNKS_MIN));
        Self { shared_batch, rng_seed, ..Self::default() }
    }

    /// Returns the settings of a relay. A relay has no other place to fetch from, so it never gives
    /// up a parent that is away.
    pub fn relay() -> Self {
        Self { failures_max: u32::MAX, ..Self::default() }
    }
}

/// Number of chunks of the first batch, while other nodes of the site are not known yet.
pub(super) const FIRST_BATCH: u64 = 4;

/// Most chokes in a row that are not failures, while no chunk comes from any peer. Further chokes
/// are failures, so that a peer that never answers is given up.
pub(super) const CHOKES_MAX: u32 = 8;

/// Most batches in flight to one parent while there are neighbours. When a relay dies, the
/// requested chunks are lost unless it has passed them on; two batches keep a link full.
pub(super) const SHARED_BATCHES: usize = 2;

/// Intended duration of a batch between neighbours: long compared with a round trip in the site,
/// and short compared with the whole fetch, so that few chunks wait for a peer that turns out to be
/// slow.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(100);

/// How long a neighbour may be dialled before an origin is asked for more than a little: the
/// neighbour may hold everything.
pub(super) const SETTLING: Duration = Duration::from_secs(1);

/// How long a connected neighbour may stay silent before an origin is asked for more: a neighbour
/// announces its chunks at once.
pub(super) const SETTLED: Duration = Duration::from_millis(200);

/// A batch that has brought nothing for this time is withdrawn when another peer, with nothing else
/// to send, has its chunks. Longer than a round trip and the delay of coalesced announcements.
pub(super) const CLAIM_AFTER: Duration = Duration::from_millis(300);

/// The same time when only a relay can replace a neighbour: the relay has other nodes to serve.
pub(super) const CLAIM_AFTER_BY_RELAY: Duration = Duration::from_secs(2);

/// One choice in this many may fall on any peer, however slow it was: the peer may have become
/// faster.
pub(super) const EXPLORE: u64 = 16;

/// A relay is asked for chunks that neighbours hold if its pace is at least this part of the
/// neighbours' pace together.
pub(super) const RELAY_HELPS: f64 = 0.25;

/// Batches that will take less than this are not requested from a second peer: a request takes
/// about as long.
pub(super) const ENDGAME_MIN: Duration = Duration::from_millis(100);

/// Chunks that may be requested from a second peer in the end-game: one in `ENDGAME_PART` of the
/// wanted chunks, and at least `ENDGAME_LEAST`.
pub(super) const ENDGAME_PART: u64 = 100;
pub(super) const ENDGAME_LEAST: u64 = 4;

/// How long a parent that left a whole batch to neighbours is not asked for another: time for the
/// neighbours' announcements, which are coalesced, to arrive.
pub(super) const ALL_LEASED: Duration = Duration::from_millis(100);

/// How long unwanted chunks are withdrawn after an asker reported this side for bad data: until the
/// batches are over that were open when the asker left.
pub(super) const REPORTED_BAD_DATA: Duration = Duration::from_secs(1);

/// How long after a neighbour's last chunk this side leaves wanted chunks to its neighbours, which
/// fetch them through a relay that lied to this side.
pub(super) const OTHERS_FETCH: Duration = Duration::from_millis(300);

/// How long after the last chunk from a neighbour the origin is not asked for chunks that several
/// stalled neighbours hold.
pub(super) const SITE_BRINGS: Duration = Duration::from_millis(500);

/// Number of stalled neighbours that have to hold a chunk for [`SITE_BRINGS`] to apply: more than a
/// few malicious ones.
pub(super) const SEVERAL: usize = 3;

/// Time after which a live relay has answered, even if only that its parent could not help: the
/// relay's wait for its parent, and two seconds.
pub(super) const RELAY_ANSWERS: Duration = UPSTREAM_WAIT.saturating_add(Duration::from_secs(2));
