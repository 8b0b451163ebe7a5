//! [`Reach`]: detection of nodes that cannot reach their neighbours.
//!
//! Nodes seen at one address do not necessarily reach each other: a carrier's NAT has strangers
//! behind it, and a guest network keeps its guests apart. No configuration is needed: a node that
//! gets chunks from elsewhere announces them.

use std::time::Duration;

use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// Time for which a node that has not yet announced a chunk from elsewhere may be refused chunks
/// that others of its site were sent. It is the time of several hops, and longer than a chunk stays
/// leased to its holder.
const FIRST: Duration = Duration::from_secs(5);

/// The same for a node that has announced such a chunk before: its neighbours may be busy for a
/// while.
const AGAIN: Duration = Duration::from_secs(20);

/// Chunks that one node in one swarm was refused, and whether it gets chunks from elsewhere.
#[derive(Debug)]
pub(super) struct Reach {
    /// Refused chunks that were neither announced by the node nor sent to it since.
    open: ChunkRanges,
    /// Chunks that were sent to the node from here. They are no evidence.
    granted: ChunkRanges,
    /// Time since which the node has announced no chunk from elsewhere, although others have some
    /// of the chunks in `open`.
    since: Option<Timestamp>,
    patience: Duration,
    alone: bool,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            open: ChunkRanges::new(),
            granted: ChunkRanges::new(),
            since: None,
            patience: FIRST,
            alone: false,
        }
    }
}

impl Reach {
    /// Records an answer: the node was sent `granted` and refused `refused`. `there` are the chunks
    /// sent to or announced by any node of the site before.
    pub(super) fn handle_answer(
        &mut self,
        now: Timestamp,
        granted: &ChunkRanges,
        refused: &ChunkRanges,
        there: &ChunkRanges,
    ) {
        self.granted.extend(granted);
        self.open = self.open.difference(granted);
        self.open.extend(refused);
        if self.since.is_none() && !refused.intersection(there).is_empty() {
            self.since = Some(now);
        }
        if self.open.is_empty() {
            self.since = None;
        }
    }

    /// Records chunks that the node announced. A chunk that was not sent from here came from
    /// elsewhere, whether it was refused before or not.
    pub(super) fn handle_have(&mut self, chunks: &ChunkRanges) {
        self.open = self.open.difference(chunks);
        if !chunks.difference(&self.granted).is_empty() {
            (self.since, self.patience) = (None, AGAIN);
        }
    }

    /// Records a request. Returns true once: at the moment from which the node is refused nothing
    /// any more.
    pub(super) fn handle_request(&mut self, now: Timestamp) -> bool {
        let before = self.alone;
        self.alone |= self.since.is_some_and(|since| now.since(since) >= self.patience);
        self.alone && !before
    }

    /// Whether the node is refused nothing any more.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    const T0: Timestamp = Timestamp(1_000_000);

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    #[test]
    fn a_node_that_gets_nothing_from_its_neighbours_is_alone() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        // Nobody has a chunk of the refused ones yet: a slow uplink is no evidence.
        reach.handle_answer(T0, &set(10, 19), &set(1, 9), &none);
        assert!(!reach.handle_request(T0 + AGAIN));
        let t1 = T0 + AGAIN;
        reach.handle_answer(t1, &none, &set(1, 9), &set(1, 1));
        assert!(!reach.handle_request(t1 + FIRST / 2));
        // Chunks that it was sent from here are no evidence.
        reach.handle_have(&set(10, 19));
        assert!(reach.handle_request(t1 + FIRST) && reach.is_alone());
        assert!(!reach.handle_request(t1 + FIRST) && reach.is_alone(), "said once");
    }

    #[test]
    fn a_chunk_that_a_neighbour_sent_before_it_was_refused_here_counts_too() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        reach.handle_answer(T0, &set(10, 19), &set(1, 9), &set(1, 9));
        reach.handle_have(&set(10, 20));
        assert!(!reach.handle_request(T0 + FIRST));
        let t1 = T0 + FIRST;
        reach.handle_answer(t1, &none, &set(1, 9), &set(1, 9));
        assert!(!reach.handle_request(t1 + FIRST));
        assert!(reach.handle_request(t1 + AGAIN), "nor for ever");
    }

    #[test]
    fn one_chunk_from_a_neighbour_shows_that_neighbours_are_reachable() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        reach.handle_answer(T0, &none, &set(1, 9), &set(1, 9));
        reach.handle_have(&set(5, 5));
        assert!(!reach.handle_request(T0 + FIRST));
        let t1 = T0 + FIRST;
        reach.handle_answer(t1, &none, &set(1, 4), &set(1, 9));
        assert!(!reach.handle_request(t1 + FIRST));
        // Chunks that were sent in the end are not waited for.
        reach.handle_answer(t1 + FIRST, &set(1, 9), &none, &set(1, 9));
        assert!(!reach.handle_request(t1 + AGAIN));
        reach.handle_answer(t1 + AGAIN, &none, &set(20, 21), &set(20, 29));
        assert!(reach.handle_request(t1 + AGAIN + AGAIN), "nor for ever");
    }
}
