//! What a [`Fetch`](super::Fetch) may do at most, and how long it waits.

use std::time::Duration;

use crate::swarm::rules::UPSTREAM_WAIT;

/// Tunables, all bounds.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Most chunks in one batch.
    pub batch_chunks: u64,
    /// Most batches in flight to one peer. Two keep the link full while the next is asked for; more cost memory.
    pub batches_per_peer: usize,
    /// Longest time without progress after which a batch is taken back and its peer marked slow; for one whose pace is known, less
    /// (`stall_min` at least).
    pub stall: Duration,
    /// Shortest such time.
    pub stall_min: Duration,
    /// First pause after a peer failed; doubles with each failure up to `backoff_max`.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Failures in a row after which a peer is given up.
    pub failures_max: u32,
    /// How long what a neighbour is fetching is not asked of a parent again.
    pub lease_retry: Duration,
    /// How long a neighbour that has just connected, or announced something, may yet announce what is wanted.
    pub hope: Duration,
    /// Any number; all choices that could fall either way follow from it.
    pub rng_seed: u64,
    /// Most chunks in one batch while there are neighbours, with whom the work is shared. `None` for who takes no part: it asks in order,
    /// in batches as large as may be.
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
            hope: Duration::from_secs(10),
            rng_seed: 0,
            shared_batch: None,
        }
    }
}

/// Batches into which one that shares cuts what it wants, at least: what all of a site have asked of a relay is lost with it when it dies, as
/// far as it has not been passed on. With 16, five devices had asked for nearly everything at once, and a relay killed at a fifth cost
/// the origin a third more.
const SHARED_PARTS: u64 = 64;

/// Fewest chunks of a batch among neighbours, unless fewer are wanted.
pub(super) const BATCH_CHUNKS_MIN: u64 = 4;

impl FetchConfig {
    /// For a device that wants so many chunks and shares them with its neighbours. `rng_seed` is to differ from theirs.
    pub fn sharing(wanted: u64, rng_seed: u64) -> Self {
        let shared_batch = Some((wanted / SHARED_PARTS).max(BATCH_CHUNKS_MIN));
        Self { shared_batch, rng_seed, ..Self::default() }
    }

    /// For a relay, which has nowhere else to go: it never gives a parent up for being away.
    pub fn relay() -> Self {
        Self { failures_max: u32::MAX, ..Self::default() }
    }
}

/// Chunks of the first batch while it is not known who else is there.
pub(super) const FIRST_BATCH: u64 = 4;

/// Chokes in a row that are taken as they are, while nothing comes from anybody; further ones count as failures, so that a peer that never
/// answers is left.
pub(super) const CHOKES_MAX: u32 = 8;

/// Batches in flight to one parent while there are neighbours: what a site has asked of a relay that dies is lost as far as it has not been
/// passed on, and two keep a link full.
pub(super) const SHARED_BATCHES: usize = 2;

/// How long a batch among neighbours should take: long against a round trip in the site, short against the whole, so that few chunks wait
/// for a peer that turns out to be slow.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(100);

/// How long a neighbour that is being dialled may take before an origin is asked for more than a little: it may hold everything.
pub(super) const SETTLING: Duration = Duration::from_secs(1);

/// The same once it is connected: it announces at once what it has.
pub(super) const SETTLED: Duration = Duration::from_millis(200);

/// A batch that has brought nothing for so long is withdrawn when another peer, with nothing else to do, has its chunks. Longer than a round
/// trip and the gathering of announcements.
pub(super) const CLAIM_AFTER: Duration = Duration::from_millis(300);

/// The same when only a relay could help: it has others to serve.
pub(super) const CLAIM_AFTER_BY_RELAY: Duration = Duration::from_secs(2);

/// One choice in so many falls on any peer, however slow it was: it may have become faster.
pub(super) const EXPLORE: u64 = 16;

/// A relay helps out with what neighbours have when it alone is at least this part as fast as they together.
pub(super) const RELAY_HELPS: f64 = 0.25;

/// A batch that will take less is not asked of a second peer: about what asking takes.
pub(super) const ENDGAME_MIN: Duration = Duration::from_millis(100);

/// One chunk in so many may be asked of a second peer in the end-game, and so many in any case.
pub(super) const ENDGAME_PART: u64 = 100;
pub(super) const ENDGAME_LEAST: u64 = 4;

/// How long a parent that left a whole batch to neighbours is not asked for another: what one gathers announcements for.
pub(super) const ALL_LEASED: Duration = Duration::from_millis(100);

/// For how long what nobody waits for is withdrawn once somebody had wrong bytes: until the batches are over that were open when it left.
pub(super) const DISBELIEVED: Duration = Duration::from_secs(1);

/// How long neighbours are let that fetch by way of a relay that this side knows for a liar, after the last chunk one of them brought.
pub(super) const OTHERS_FETCH: Duration = Duration::from_millis(300);

/// How long after the last chunk from a neighbour what several stalled ones hold is not asked of an origin.
pub(super) const SITE_BRINGS: Duration = Duration::from_millis(500);

/// How many stalled neighbours have to hold a chunk for that: more than a few that are there for harm.
pub(super) const SEVERAL: usize = 3;

/// When a relay that lives has answered, if only that its parent could not help: what it waits for that, and a moment.
pub(super) const RELAY_ANSWERS: Duration = UPSTREAM_WAIT.saturating_add(Duration::from_secs(2));
