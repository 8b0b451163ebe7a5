//! [`Demand`]: chunks that a relay fetches from its parents, and the batches that wait for them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::ChunkId;
use crate::ranges::ChunkRanges;

/// A batch that waits for chunks from upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(u64);

/// Outcome of a chunk that came from a parent.
#[derive(Debug, PartialEq, Eq)]
pub struct DemandMet<A> {
    /// Waiters to be told, in the order in which they began to wait.
    pub waiters: Vec<WaiterId>,
    /// Asker to be charged for the chunk, if every waiter has left.
    pub charged: Option<A>,
}

/// A chunk that is wanted or in flight.
#[derive(Debug)]
struct Wanted<A> {
    /// First asker that waited, charged for the chunk if nobody waits any more when it comes.
    asker: A,
    waiters: Vec<WaiterId>,
}

/// The waiters of one swarm of a relay. `A` is an asker, the node behind one or more waiters.
#[derive(Debug)]
pub struct Demand<A> {
    next: u64,
    /// Wanted chunks. An entry without waiters is a chunk whose waiters left and that may still
    /// come.
    wanted: BTreeMap<ChunkId, Wanted<A>>,
}

impl<A> Default for Demand<A> {
    fn default() -> Self {
        Self { next: 0, wanted: BTreeMap::new() }
    }
}

impl<A: Clone> Demand<A> {
    /// Returns a new waiter, which does not wait for anything yet.
    pub fn waiter(&mut self) -> WaiterId {
        self.next += 1;
        WaiterId(self.next)
    }

    /// Makes `waiter` wait for `chunks`, for none of which it may wait already. Pass all of them to
    /// [`Fetch::want`](super::super::Fetch::want), because those on their way may be unwanted by
    /// now. Returns those that nobody waited for before: `asker` pays for them if it does not take
    /// them.
    ///
    /// Costs O(log n) for each chunk, with n wanted chunks.
    pub fn wait_for(&mut self, waiter: WaiterId, asker: &A, chunks: &ChunkRanges) -> ChunkRanges {
        let mut fresh = ChunkRanges::new();
        for id in chunks.ids() {
            let wanted = match self.wanted.entry(id) {
                Entry::Vacant(free) => {
                    fresh.insert(id);
                    free.insert(Wanted { asker: asker.clone(), waiters: Vec::new() })
                }
                Entry::Occupied(taken) => {
                    let wanted = taken.into_mut();
                    if wanted.waiters.is_empty() {
                        fresh.insert(id);
                        wanted.asker = asker.clone();
                    }
                    wanted
                }
            };
            wanted.waiters.push(waiter);
        }
        fresh
    }

    /// Ends the wait of `waiter` for `chunks`; it need not wait for all of them. Returns those that
    /// it was the last to wait for.
    pub fn leave(&mut self, waiter: WaiterId, chunks: &ChunkRanges) -> ChunkRanges {
        let mut last = ChunkRanges::new();
        for id in chunks.ids() {
            if let Some(wanted) = self.wanted.get_mut(&id).filter(|wanted| !wanted.waiters.is_empty()) {
                wanted.waiters.retain(|other| *other != waiter);
                if wanted.waiters.is_empty() {
                    last.insert(id);
                }
            }
        }
        last
    }

    /// A chunk came from a parent. Call this once the chunk is in the store.
    pub fn handle_fetched(&mut self, id: ChunkId) -> DemandMet<A> {
        match self.wanted.remove(&id) {
            Some(Wanted { asker, waiters }) => {
                let charged = waiters.is_empty().then_some(asker);
                DemandMet { waiters, charged }
            }
            None => DemandMet { waiters: Vec::new(), charged: None },
        }
    }

    /// A chunk is not fetched: the store has it already, or no parent has it. Returns the waiters
    /// to be told. Nobody is charged.
    pub fn handle_not_fetched(&mut self, id: ChunkId) -> Vec<WaiterId> {
        self.wanted.remove(&id).map_or_else(Vec::new, |wanted| wanted.waiters)
    }

    /// The fetch dropped unwanted chunks, which will not come. A chunk for which another batch
    /// began to wait meanwhile stays wanted.
    pub fn handle_given_up(&mut self, chunks: &ChunkRanges) {
        for id in chunks.ids() {
            if self.wanted.get(&id).is_some_and(|wanted| wanted.waiters.is_empty()) {
                self.wanted.remove(&id);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.wanted.values().any(|wanted| wanted.waiters.contains(&waiter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> ChunkRanges {
        ids.iter().map(|id| ChunkId(*id)).collect()
    }

    #[test]
    fn a_chunk_that_several_wait_for_is_fresh_once_and_told_to_all() {
        let mut demand = Demand::default();
        let (first, second) = (demand.waiter(), demand.waiter());
        assert_eq!(demand.wait_for(first, &'a', &set(&[1, 2])), set(&[1, 2]));
        assert_eq!(demand.wait_for(second, &'b', &set(&[2, 3])), set(&[3]));
        let met = demand.handle_fetched(ChunkId(2));
        assert_eq!(met, DemandMet { waiters: vec![first, second], charged: None });
        let again = demand.handle_fetched(ChunkId(2));
        assert_eq!(again, DemandMet { waiters: vec![], charged: None }, "it was told");
    }

    #[test]
    fn only_the_last_waiter_makes_a_chunk_unwanted() {
        let mut demand = Demand::default();
        let (first, second) = (demand.waiter(), demand.waiter());
        demand.wait_for(first, &'a', &set(&[1, 2]));
        demand.wait_for(second, &'b', &set(&[2]));
        assert_eq!(demand.leave(first, &set(&[1, 2, 9])), set(&[1]));
        assert_eq!(demand.leave(first, &set(&[1, 2])), set(&[]), "it left before");
        assert_eq!(demand.leave(second, &set(&[1, 2])), set(&[2]), "it did not wait for the other");
    }

    #[test]
    fn the_first_asker_pays_for_a_chunk_that_comes_after_all_have_left() {
        let mut demand = Demand::default();
        let (first, second) = (demand.waiter(), demand.waiter());
        demand.wait_for(first, &'a', &set(&[1, 2, 3]));
        demand.wait_for(second, &'b', &set(&[1, 2, 3]));
        demand.leave(first, &set(&[1, 2, 3]));
        demand.leave(second, &set(&[1, 2, 3]));
        assert_eq!(demand.handle_fetched(ChunkId(1)).charged, Some('a'));
        assert_eq!(demand.handle_not_fetched(ChunkId(2)), []);
        assert_eq!(demand.handle_fetched(ChunkId(2)).charged, None, "nothing was fetched for it");
        // Another batch waits anew, so its asker is the first one.
        let third = demand.waiter();
        assert_eq!(demand.wait_for(third, &'c', &set(&[3])), set(&[3]));
        demand.leave(third, &set(&[3]));
        assert_eq!(demand.handle_fetched(ChunkId(3)).charged, Some('c'));
    }

    #[test]
    fn a_chunk_given_up_is_forgotten_unless_a_batch_began_to_wait_for_it() {
        let mut demand = Demand::default();
        let (first, second) = (demand.waiter(), demand.waiter());
        demand.wait_for(first, &'a', &set(&[1, 2]));
        demand.leave(first, &set(&[1, 2]));
        demand.wait_for(second, &'b', &set(&[2]));
        demand.handle_given_up(&set(&[1, 2]));
        assert_eq!(demand.handle_fetched(ChunkId(1)).charged, None, "forgotten");
        assert_eq!(demand.handle_fetched(ChunkId(2)).waiters, [second]);
    }
}
