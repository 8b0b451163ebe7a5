//! [`RecentlySent`]: chunks that a node sent to a site recently. When many askers come at once,
//! each chunk is sent once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// How long a relay leaves a sent chunk to neighbours: several hops between neighbours, each with
/// the delay of coalesced announcements. It is shorter than `FetchConfig::lease_retry`, after which
/// an asker asks again and gets the chunk, because the node that was sent the chunk need not pass
/// it on.
const BY_RELAY: Duration = Duration::from_millis(1500);

/// How long a neighbour leaves a sent chunk to others. A neighbour has few askers, and they ask
/// again after [`LEFT_RETRY`].
const BY_NEIGHBOUR: Duration = Duration::from_millis(200);

/// How long an asker does not ask a neighbour again for a chunk that this neighbour left to others.
pub(super) const LEFT_RETRY: Duration = Duration::from_millis(250);

/// Chunks sent within this time are remembered together.
const SLICE: Duration = Duration::from_millis(100);

/// Chunks sent recently to nodes of one site in one swarm. Unlike a lease, they have no holder: the
/// answerer has the chunk, and sending it again costs only the answerer's own link.
#[derive(Debug)]
pub struct RecentlySent {
    keep: Duration,
    slices: VecDeque<(Timestamp, ChunkRanges)>,
}

impl RecentlySent {
    /// Starts with nothing sent, for a relay or for a neighbour.
    pub fn of(relay: bool) -> Self {
        Self { keep: if relay { BY_RELAY } else { BY_NEIGHBOUR }, slices: VecDeque::new() }
    }

    /// Splits `wanted` into the chunks to send now and the chunks to leave to neighbours that were
    /// sent them recently.
    pub fn handle_request(&mut self, now: Timestamp, wanted: &ChunkRanges) -> (ChunkRanges, ChunkRanges) {
        self.expire(now);
        let mut granted = wanted.clone();
        for (_, sent) in &self.slices {
            granted = granted.difference(sent);
        }
        (granted.clone(), wanted.difference(&granted))
    }

    fn expire(&mut self, now: Timestamp) {
        while self.slices.front().is_some_and(|(since, _)| now.since(*since) >= self.keep) {
            self.slices.pop_front();
        }
    }

    /// Notes that these chunks are being sent to a node that serves others.
    pub fn handle_granted(&mut self, now: Timestamp, granted: &ChunkRanges) {
        self.expire(now);
        match self.slices.back_mut() {
            Some((since, sent)) if now.since(*since) < SLICE => sent.extend(granted),
            _ => self.slices.push_back((now, granted.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    #[test]
    fn recently_sent_chunks_are_left_to_neighbours_for_a_short_time() {
        let (mut recently_sent, t0) = (RecentlySent::of(true), Timestamp(1_000_000));
        assert_eq!(recently_sent.handle_request(t0, &set(1, 9)), (set(1, 9), ChunkRanges::new()));
        recently_sent.handle_granted(t0, &set(1, 9));
        let later = t0 + SLICE;
        recently_sent.handle_granted(later, &set(20, 29));
        assert_eq!(
            recently_sent.handle_request(later, &set(5, 24)),
            (set(10, 19), {
                let mut left = set(5, 9);
                left.extend(&set(20, 24));
                left
            })
        );
        assert_eq!(recently_sent.handle_request(t0 + BY_RELAY, &set(5, 24)).0, set(5, 19));
        assert_eq!(recently_sent.handle_request(later + BY_RELAY, &set(5, 24)).0, set(5, 24));
        assert!(recently_sent.slices.is_empty());
    }
}
