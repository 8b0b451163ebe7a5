//! [`Reach`]: detection of nodes that cannot reach their neighbours.
//!
//! Nodes seen at one address do not necessarily reach each other: a carrier's NAT has strangers
//! behind it, and a guest network keeps its guests apart. No configuration is needed: a node that
//! gets chunks from elsewhere announces them.

use std::time::Duration;

use crate::ChunkId;
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
    /// Chunks that are no evidence: they were sent to the node from here, or the node announced
    /// them before its first request, because it may have them from an earlier connection.
    own: ChunkRanges,
    /// Whether a request was answered.
    asked: bool,
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
            own: ChunkRanges::new(),
            asked: false,
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
        self.asked = true;
        self.open = self.open.difference(granted);
        self.open.extend(refused);
        if self.since.is_none() && !refused.intersection(there).is_empty() {
            self.since = Some(now);
        }
        if self.open.is_empty() {
            self.since = None;
        }
    }

    /// Records that a chunk was sent to the node from here.
    pub(super) fn handle_sent(&mut self, chunk: ChunkId) {
        self.own.insert(chunk);
    }

    /// Records chunks that the node announced. A chunk that others of the site were sent or had
    /// announced before (`there`), and that was not sent to the node from here, came from the
    /// others, whether it was refused before or not.
    pub(super) fn handle_have(&mut self, chunks: &ChunkRanges, there: &ChunkRanges) {
        self.open = self.open.difference(chunks);
        if !self.asked {
            self.own.extend(&chunks.intersection(there));
        } else if !chunks.intersection(there).difference(&self.own).is_empty() {
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

    const T0: Timestamp = Timestamp(1_000_000);

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    fn sent(reach: &mut Reach, chunks: &ChunkRanges) {
        chunks.ids().for_each(|id| reach.handle_sent(id));
    }

    #[test]
    fn a_node_that_gets_nothing_from_its_neighbours_is_alone() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        // Nobody has a chunk of the refused ones yet: a slow uplink is no evidence.
        reach.handle_answer(T0, &set(10, 19), &set(1, 9), &none);
        sent(&mut reach, &set(10, 19));
        assert!(!reach.handle_request(T0 + AGAIN));
        let t1 = T0 + AGAIN;
        reach.handle_answer(t1, &none, &set(1, 9), &set(1, 1));
        assert!(!reach.handle_request(t1 + FIRST / 2));
        // Chunks that it was sent from here are no evidence, nor are those that nobody of the site
        // had: a relay sent them.
        reach.handle_have(&set(10, 30), &set(1, 19));
        assert!(reach.handle_request(t1 + FIRST) && reach.is_alone());
        assert!(!reach.handle_request(t1 + FIRST) && reach.is_alone(), "said once");
    }

    #[test]
    fn one_chunk_from_a_neighbour_shows_that_neighbours_are_reachable() {
        // The chunk was refused here before, or it was not.
        for chunk in [5, 20] {
            let (mut reach, none, there) = (Reach::default(), ChunkRanges::new(), set(1, 29));
            reach.handle_answer(T0, &none, &set(1, 9), &there);
            reach.handle_have(&set(chunk, chunk), &there);
            assert!(!reach.handle_request(T0 + FIRST));
            let t1 = T0 + FIRST;
            reach.handle_answer(t1, &none, &set(1, 4), &there);
            assert!(!reach.handle_request(t1 + FIRST));
            // Chunks that were sent in the end are not waited for.
            reach.handle_answer(t1 + FIRST, &set(1, 9), &none, &there);
            assert!(!reach.handle_request(t1 + AGAIN));
            reach.handle_answer(t1 + AGAIN, &none, &set(21, 22), &there);
            assert!(reach.handle_request(t1 + AGAIN + AGAIN), "nor for ever");
        }
    }

    #[test]
    fn chunks_of_an_earlier_connection_are_no_evidence() {
        let (mut reach, there) = (Reach::default(), set(1, 29));
        reach.handle_have(&set(1, 9), &there);
        reach.handle_answer(T0, &ChunkRanges::new(), &set(10, 19), &there);
        reach.handle_have(&set(1, 9), &there);
        assert!(reach.handle_request(T0 + FIRST));
    }
}
