//! [`Reach`]: whether a node gets from its neighbours what is left to them.
//!
//! That nodes are seen at one address does not say that they reach each other: a carrier's NAT has strangers behind it, a guest network
//! keeps its guests apart. Nobody needs to say so: a node that has what it was refused announces it.

use std::time::Duration;

use distd_core::ranges::ChunkRanges;
use distd_core::time::Timestamp;

/// How long a node that has shown nothing yet may be refused what others of its site were sent: some hops, a time longer than a chunk is left
/// to its holder.
const FIRST: Duration = Duration::from_secs(5);

/// The same for one that has got something in this way: its neighbours may be busy for a while.
const AGAIN: Duration = Duration::from_secs(20);

/// What one node in one swarm was refused, and what became of it.
#[derive(Debug)]
pub(super) struct Reach {
    /// Refused, and neither announced nor sent to it since.
    open: ChunkRanges,
    /// Since when nothing of `open` that others have comes.
    since: Option<Timestamp>,
    patience: Duration,
    alone: bool,
}

impl Default for Reach {
    fn default() -> Self {
        Self { open: ChunkRanges::new(), since: None, patience: FIRST, alone: false }
    }
}

impl Reach {
    /// It was sent `granted` and refused `refused`; `there` is what was sent to anybody of the site before.
    pub(super) fn handle_answer(
        &mut self,
        now: Timestamp,
        granted: &ChunkRanges,
        refused: &ChunkRanges,
        there: &ChunkRanges,
    ) {
        self.open = self.open.difference(granted);
        self.open.extend(refused);
        if self.since.is_none() && !refused.intersection(there).is_empty() {
            self.since = Some(now);
        }
        if self.open.is_empty() {
            self.since = None;
        }
    }

    /// It announced chunks.
    pub(super) fn handle_have(&mut self, chunks: &ChunkRanges) {
        let left = self.open.difference(chunks);
        if left.len() < self.open.len() {
            (self.open, self.since, self.patience) = (left, None, AGAIN);
        }
    }

    /// It asks for chunks. True once: when from now on nothing is left to its neighbours.
    pub(super) fn handle_request(&mut self, now: Timestamp) -> bool {
        let before = self.alone;
        self.alone |= self.since.is_some_and(|since| now.since(since) >= self.patience);
        self.alone && !before
    }

    /// Whether nothing is left to its neighbours any more.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }
}

#[cfg(test)]
mod tests {
    use distd_core::ChunkId;

    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    #[test]
    fn who_gets_nothing_of_what_its_neighbours_were_sent_is_alone() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        // Nobody has it yet: a slow uplink is no sign.
        reach.handle_answer(T0, &set(10, 19), &set(1, 9), &none);
        assert!(!reach.handle_request(T0 + AGAIN));
        let t1 = T0 + AGAIN;
        reach.handle_answer(t1, &none, &set(1, 9), &set(1, 1));
        assert!(!reach.handle_request(t1 + FIRST / 2));
        // Its own chunks say nothing.
        reach.handle_have(&set(10, 19));
        assert!(reach.handle_request(t1 + FIRST) && reach.is_alone());
        assert!(!reach.handle_request(t1 + FIRST) && reach.is_alone(), "said once");
    }

    #[test]
    fn one_chunk_from_a_neighbour_shows_that_there_are_some() {
        let (mut reach, none) = (Reach::default(), ChunkRanges::new());
        reach.handle_answer(T0, &none, &set(1, 9), &set(1, 9));
        reach.handle_have(&set(5, 5));
        assert!(!reach.handle_request(T0 + FIRST));
        let t1 = T0 + FIRST;
        reach.handle_answer(t1, &none, &set(1, 4), &set(1, 9));
        assert!(!reach.handle_request(t1 + FIRST));
        // What it was sent after all is not waited for.
        reach.handle_answer(t1 + FIRST, &set(1, 9), &none, &set(1, 9));
        assert!(!reach.handle_request(t1 + AGAIN));
        reach.handle_answer(t1 + AGAIN, &none, &set(20, 21), &set(20, 29));
        assert!(reach.handle_request(t1 + AGAIN + AGAIN), "nor for ever");
    }
}
