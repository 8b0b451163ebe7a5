//! [`Lately`]: what a node has sent a site a moment ago, so that a crowd gets each chunk from it once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// How long what a relay sent is left to neighbours: some hops from one to the next, each with the gathering of announcements. Less than
/// after what an asker comes again (`FetchConfig::lease_retry`), who then gets it: whoever was sent a chunk need not pass it on.
const BY_RELAY: Duration = Duration::from_millis(1500);

/// The same of a neighbour, who has few askers; they come again after [`LEFT_RETRY`].
const BY_NEIGHBOUR: Duration = Duration::from_millis(200);

/// How long what a neighbour left to others is not asked of it again.
pub(super) const LEFT_RETRY: Duration = Duration::from_millis(250);

/// Chunks sent within this time are remembered together.
const SLICE: Duration = Duration::from_millis(100);

/// Chunks granted to nodes of one site in one swarm a moment ago. Unlike a lease it has no holder: who
/// has the chunk sends it again for nothing but its own link.
#[derive(Debug)]
pub struct Lately {
    keep: Duration,
    slices: VecDeque<(Timestamp, ChunkRanges)>,
}

impl Lately {
    /// Nothing sent yet, by a relay or by a neighbour.
    pub fn of(relay: bool) -> Self {
        Self { keep: if relay { BY_RELAY } else { BY_NEIGHBOUR }, slices: VecDeque::new() }
    }

    /// What of `wanted` is sent now, and what is left to neighbours, to whom it was sent lately.
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

    /// These are sent to a node that serves others.
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
    fn what_was_sent_a_moment_ago_is_left_to_neighbours_and_not_for_long() {
        let (mut lately, t0) = (Lately::of(true), Timestamp(1_000_000));
        assert_eq!(lately.handle_request(t0, &set(1, 9)), (set(1, 9), ChunkRanges::new()));
        lately.handle_granted(t0, &set(1, 9));
        let later = t0 + SLICE;
        lately.handle_granted(later, &set(20, 29));
        assert_eq!(
            lately.handle_request(later, &set(5, 24)),
            (set(10, 19), {
                let mut left = set(5, 9);
                left.extend(&set(20, 24));
                left
            })
        );
        assert_eq!(lately.handle_request(t0 + BY_RELAY, &set(5, 24)).0, set(5, 19));
        assert_eq!(lately.handle_request(later + BY_RELAY, &set(5, 24)).0, set(5, 24));
        assert!(lately.slices.is_empty());
    }
}
