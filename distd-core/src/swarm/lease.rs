//! [`Leases`]: each chunk crosses a site's uplink once, from a parent that has every chunk.
//!
//! Pure: the caller says which node asks and which chunks were sent. A chunk that one node of a
//! site asked for is leased to this node, and other nodes of the site are told to ask it. A lease
//! ends a fixed time after its last progress, so a dead holder loses its leases. No node is refused
//! the same chunk for longer than [`WAIT_MAX`], whatever a holder does to keep a lease.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Shuns;
use crate::bounds::{DIRECTORY_NODES_MAX, LEASES_MAX};
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;
use crate::{ChunkId, NodeId};

/// How long a lease outlives its last progress while its batch runs. The holder has this time to
/// recover before a second copy crosses the uplink.
pub const LEASE: Duration = Duration::from_secs(10);

/// How long a chunk stays leased to the node that was sent it or announced it: several hops between
/// neighbours. A node that has not got the chunk by then may not know the holder, or not trust it.
pub(super) const HELD: Duration = Duration::from_secs(4);

/// Longest time a node is refused the same chunk. It is six leases long: on a slow uplink a batch
/// takes a while, and a second copy would make it slower. A holder that announces chunks it does
/// not serve, or reads one byte a second, costs each other node this time at most, once.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Most times of first refusal kept apart for one node.
const WAITS_MAX: usize = 64;

/// A lease of the chunks granted to one batch, or of announced chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(u64);

#[derive(Clone, Debug)]
struct Lease {
    holder: NodeId,
    chunks: ChunkRanges,
    /// Chunks of the lease that were sent.
    sent: ChunkRanges,
    until: Timestamp,
}

/// The leases of one site in one swarm.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    /// Chunks that each node is being refused, with the time of the first refusal, the oldest
    /// first.
    waits: BTreeMap<NodeId, VecDeque<(Timestamp, ChunkRanges)>>,
    next: u64,
}

impl Leases {
    /// Splits the request of `asker` for `wanted`. Returns the id of the lease, the granted chunks,
    /// and the refused chunks, which are leased to other nodes of the site.
    ///
    /// A node that does not serve gets no lease, since nobody could fetch the chunks from it. It is
    /// refused every chunk while any chunk is leased in its site: it can fetch all chunks from the
    /// holders, and a chunk sent to it would be sent again to one of them. A node that several
    /// nodes shun is likewise refused every chunk while a node that few shun holds a lease, because
    /// others would not fetch from it. A lease does not count against an asker that shuns its
    /// holder.
    ///
    /// Cost: the ranges of all current leases, at most `LEASES_MAX` of them.
    pub fn handle_request(
        &mut self,
        now: Timestamp,
        asker: NodeId,
        wanted: &ChunkRanges,
        serves: bool,
        shuns: &Shuns,
    ) -> (LeaseId, ChunkRanges, ChunkRanges) {
        self.expire(now);
        let mut granted = wanted.clone();
        let of_others = |lease: &&Lease| lease.holder != asker && !shuns.is_shunned_by(lease.holder, asker);
        let others = || self.leases.values().filter(of_others);
        let is_left_out = match serves {
            false => !self.leases.is_empty(),
            true => {
                shuns.is_distrusted_by_origin(asker)
                    && others().any(|lease| !shuns.is_distrusted_by_origin(lease.holder))
            }
        };
        if is_left_out {
            granted = ChunkRanges::new();
        }
        for lease in others() {
            granted = granted.difference(&lease.chunks);
        }
        granted.extend(&self.waited_enough(now, asker, wanted));
        let refused = wanted.difference(&granted);
        self.note_refused(now, asker, &granted, &refused);
        let id = LeaseId(self.next);
        self.next += 1;
        if serves {
            self.insert(id, now + LEASE, asker, granted.clone(), ChunkRanges::new());
        }
        (id, granted, refused)
    }

    /// Returns the chunks of `wanted` that this node has been refused for [`WAIT_MAX`].
    fn waited_enough(&self, now: Timestamp, asker: NodeId, wanted: &ChunkRanges) -> ChunkRanges {
        let mut enough = ChunkRanges::new();
        for (since, chunks) in self.waits.get(&asker).into_iter().flatten() {
            if now.since(*since) >= WAIT_MAX {
                enough.extend(&chunks.intersection(wanted));
            }
        }
        enough
    }

    fn note_refused(&mut self, now: Timestamp, asker: NodeId, granted: &ChunkRanges, refused: &ChunkRanges) {
        let waits = self.waits.entry(asker).or_default();
        let mut fresh = refused.clone();
        for (_, chunks) in waits.iter_mut() {
            *chunks = chunks.difference(granted);
            fresh = fresh.difference(chunks);
        }
        waits.retain(|(_, chunks)| !chunks.is_empty());
        if !fresh.is_empty() {
            let full = waits.len() >= WAITS_MAX;
            match waits.back_mut().filter(|_| full) {
                Some((_, last)) => last.extend(&fresh),
                None => waits.push_back((now, fresh)),
            }
        }
        if waits.is_empty() {
            self.waits.remove(&asker);
        }
        while self.waits.len() > DIRECTORY_NODES_MAX {
            self.waits.pop_first();
        }
    }

    /// `holder` announced chunks that it got elsewhere. Chunks without a lease are leased to it, so
    /// that other nodes ask it first.
    pub fn handle_have(&mut self, now: Timestamp, holder: NodeId, chunks: &ChunkRanges) {
        self.expire(now);
        let mut fresh = chunks.clone();
        for lease in self.leases.values() {
            fresh = fresh.difference(&lease.chunks);
        }
        let id = LeaseId(self.next);
        self.next += 1;
        self.insert(id, now + HELD, holder, fresh.clone(), fresh);
    }

    fn insert(
        &mut self,
        id: LeaseId,
        until: Timestamp,
        holder: NodeId,
        chunks: ChunkRanges,
        sent: ChunkRanges,
    ) {
        if !chunks.is_empty() && self.leases.len() < LEASES_MAX {
            self.leases.insert(id, Lease { holder, chunks, sent, until });
        }
    }

    /// A chunk of a lease was sent.
    pub fn handle_sent(&mut self, now: Timestamp, id: LeaseId, chunk: ChunkId) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.sent.insert(chunk);
            lease.until = now + LEASE;
        }
    }

    /// The batch of a lease ended, well or not. Chunks that were not sent are free for other nodes
    /// at once.
    pub fn handle_end(&mut self, now: Timestamp, id: LeaseId) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.chunks = std::mem::take(&mut lease.sent);
        lease.sent = lease.chunks.clone();
        lease.until = now + HELD;
        if lease.chunks.is_empty() {
            self.leases.remove(&id);
        }
    }

    /// A node left and serves no longer.
    pub fn handle_gone(&mut self, holder: NodeId) {
        self.leases.retain(|_, lease| lease.holder != holder);
        self.waits.remove(&holder);
    }

    /// Returns the holder of each current lease.
    pub fn holders(&self, now: Timestamp) -> impl Iterator<Item = NodeId> + '_ {
        self.leases.values().filter(move |lease| lease.until > now).map(|lease| lease.holder)
    }

    /// Whether no chunk is leased.
    pub fn is_idle(&mut self, now: Timestamp) -> bool {
        self.expire(now);
        self.leases.is_empty()
    }

    fn expire(&mut self, now: Timestamp) {
        self.leases.retain(|_, lease| lease.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);
    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    #[test]
    fn chunks_leased_to_one_node_are_refused_to_the_next_but_not_to_itself() {
        let mut leases = Leases::default();
        let (_, granted, refused) = leases.handle_request(T0, A, &set(1, 10), true, &Shuns::default());
        assert_eq!((granted, refused), (set(1, 10), ChunkRanges::new()));
        let (_, granted, refused) = leases.handle_request(T0, B, &set(8, 15), true, &Shuns::default());
        assert_eq!((granted, refused), (set(11, 15), set(8, 10)));
        let (_, granted, refused) = leases.handle_request(T0, A, &set(9, 12), true, &Shuns::default());
        assert_eq!((granted, refused), (set(9, 10), set(11, 12)));
        assert_eq!(leases.holders(T0).collect::<Vec<_>>(), [A, B, A]);
    }

    #[test]
    fn a_lease_lives_by_its_progress_and_a_dead_holder_loses_it() {
        let mut leases = Leases::default();
        let (id, ..) = leases.handle_request(T0, A, &set(1, 10), true, &Shuns::default());
        let later = T0 + Duration::from_secs(9);
        leases.handle_sent(later, id, ChunkId(1));
        let (_, granted, _) = leases.handle_request(T0 + LEASE, B, &set(1, 10), true, &Shuns::default());
        assert!(granted.is_empty(), "progress renewed it");
        let (_, granted, _) = leases.handle_request(later + LEASE, B, &set(1, 10), true, &Shuns::default());
        assert_eq!(granted, set(1, 10), "no progress for the length of a lease");
    }

    #[test]
    fn an_ended_batch_frees_what_was_not_sent_and_keeps_what_was() {
        let mut leases = Leases::default();
        let (id, ..) = leases.handle_request(T0, A, &set(1, 10), true, &Shuns::default());
        leases.handle_sent(T0, id, ChunkId(4));
        leases.handle_end(T0, id);
        let (second, granted, refused) = leases.handle_request(T0, B, &set(1, 10), true, &Shuns::default());
        assert_eq!(refused, set(4, 4));
        assert_eq!(granted.len(), 9);
        leases.handle_end(T0, second);
        leases.handle_gone(A);
        let (_, granted, _) = leases.handle_request(T0, B, &set(1, 10), true, &Shuns::default());
        assert_eq!(granted, set(1, 10));
    }

    #[test]
    fn announced_chunks_are_leased_to_the_node_that_announced_them() {
        let mut leases = Leases::default();
        leases.handle_have(T0, A, &set(1, 5));
        let (_, granted, refused) = leases.handle_request(T0, B, &set(1, 10), true, &Shuns::default());
        assert_eq!((granted, refused), (set(6, 10), set(1, 5)));
        // The second node announces the chunks too. It gets no second lease, and the first lease
        // still ends.
        leases.handle_have(T0 + Duration::from_secs(2), B, &set(1, 5));
        let (_, granted, _) =
            leases.handle_request(T0 + HELD, NodeId([3; 16]), &set(1, 5), true, &Shuns::default());
        assert_eq!(granted, set(1, 5));
        assert!(leases.is_idle(T0 + HELD + LEASE));
    }

    #[test]
    fn a_holder_that_keeps_its_lease_alive_does_not_make_others_wait_for_ever() {
        let mut leases = Leases::default();
        let mut now = T0;
        let mut refusals = 0;
        loop {
            // The holder announces again and again, and never serves.
            leases.handle_have(now, A, &set(1, 5));
            let (id, granted, _) = leases.handle_request(now, B, &set(1, 9), true, &Shuns::default());
            leases.handle_end(now, id);
            if granted.contains(ChunkId(1)) {
                break;
            }
            assert_eq!(granted, set(6, 9));
            refusals += 1;
            now = now + Duration::from_secs(2);
        }
        assert_eq!(now, T0 + WAIT_MAX, "after {refusals} refusals");
        // The wait starts anew once the node got the chunk, and each node has its own wait.
        leases.handle_have(now, A, &set(1, 5));
        let (_, granted, _) =
            leases.handle_request(now, NodeId([3; 16]), &set(1, 5), true, &Shuns::default());
        assert!(granted.is_empty());
    }

    #[test]
    fn a_node_that_does_not_serve_is_refused_while_another_node_fetches() {
        let mut leases = Leases::default();
        assert_eq!(
            leases.handle_request(T0, A, &set(1, 5), false, &Shuns::default()).1,
            set(1, 5),
            "nobody else is there"
        );
        assert_eq!(leases.handle_request(T0, B, &set(1, 5), true, &Shuns::default()).1, set(1, 5));
        assert!(
            leases.handle_request(T0, A, &set(1, 9), false, &Shuns::default()).1.is_empty(),
            "the other will fetch and serve it"
        );
        assert_eq!(
            leases.handle_request(T0 + LEASE, A, &set(1, 9), false, &Shuns::default()).1,
            set(1, 9),
            "unless it stopped"
        );
    }

    fn said(by: NodeId, whom: NodeId, shuns: &mut Shuns) {
        shuns.handle_shuns(0, by, [whom].into());
    }

    #[test]
    fn a_lease_does_not_count_against_an_asker_that_shuns_its_holder() {
        let (mut leases, mut shuns) = (Leases::default(), Shuns::default());
        assert_eq!(leases.handle_request(T0, A, &set(1, 5), true, &shuns).1, set(1, 5));
        said(B, A, &mut shuns);
        assert_eq!(leases.handle_request(T0, B, &set(4, 9), true, &shuns).1, set(4, 9));
        let third = leases.handle_request(T0, NodeId([3; 16]), &set(1, 9), true, &shuns).1;
        assert!(third.is_empty(), "others have it of either");
    }

    #[test]
    fn a_node_that_several_shun_gets_no_lease_while_another_node_fetches() {
        let (mut leases, mut shuns) = (Leases::default(), Shuns::default());
        said(B, A, &mut shuns);
        said(NodeId([3; 16]), A, &mut shuns);
        assert_eq!(
            leases.handle_request(T0, A, &set(1, 5), true, &shuns).1,
            set(1, 5),
            "nobody else is there"
        );
        assert_eq!(leases.handle_request(T0, B, &set(6, 9), true, &shuns).1, set(6, 9));
        assert!(leases.handle_request(T0, A, &set(10, 20), true, &shuns).1.is_empty());
        // When several nodes shun every holder, the shuns have no effect.
        said(A, B, &mut shuns);
        said(NodeId([4; 16]), B, &mut shuns);
        let (_, granted, _) = leases.handle_request(T0, A, &set(10, 20), true, &shuns);
        assert_eq!(granted, set(10, 20));
        let (_, other, _) = leases.handle_request(T0, NodeId([5; 16]), &set(1, 20), true, &shuns);
        assert!(other.is_empty(), "it is leased all the same");
    }

    #[test]
    fn the_table_is_bounded_and_beyond_it_requests_are_granted() {
        let mut leases = Leases::default();
        for n in 1..=LEASES_MAX as u64 + 10 {
            let (_, granted, _) = leases.handle_request(T0, A, &set(n, n), true, &Shuns::default());
            assert_eq!(granted, set(n, n));
        }
        assert_eq!(leases.leases.len(), LEASES_MAX);
        let last = LEASES_MAX as u64 + 10;
        assert_eq!(
            leases.handle_request(T0, B, &set(last, last), true, &Shuns::default()).1,
            set(last, last)
        );
    }

    #[test]
    fn every_state_and_event_has_the_outcome_of_this_table() {
        const SECOND: Duration = Duration::from_secs(1);
        type Change = fn(&mut Leases, LeaseId, Timestamp);
        // Chunks 1 and 2 are leased to A.
        let states: [(&str, Change); 4] = [
            ("granted", |_, _, _| {}),
            ("half sent", |leases, id, now| leases.handle_sent(now, id, ChunkId(1))),
            ("ended half sent", |leases, id, now| {
                leases.handle_sent(now, id, ChunkId(1));
                leases.handle_end(now, id);
            }),
            ("over", |leases, id, now| leases.handle_end(now, id)),
        ];
        let events: [(&str, Duration, Change); 9] = [
            ("nothing", Duration::ZERO, |_, _, _| {}),
            ("4 s later", HELD, |_, _, _| {}),
            ("10 s later", LEASE, |_, _, _| {}),
            ("sent 2 after 9 s", LEASE - SECOND, |leases, id, now| leases.handle_sent(now, id, ChunkId(2))),
            ("end", Duration::ZERO, |leases, id, now| leases.handle_end(now, id)),
            ("A announces 1-2", Duration::ZERO, |leases, _, now| leases.handle_have(now, A, &set(1, 2))),
            ("B announces 1-2", Duration::ZERO, |leases, _, now| leases.handle_have(now, B, &set(1, 2))),
            ("A left", Duration::ZERO, |leases, _, _| leases.handle_gone(A)),
            ("B waited 60 s", Duration::ZERO, |leases, id, now| {
                leases.handle_request(now, B, &set(1, 2), false, &Shuns::default());
                for second in 0..WAIT_MAX.as_secs() {
                    leases.handle_sent(now + SECOND * second as u32, id, ChunkId(1));
                }
            }),
        ];
        let chunks = |set: ChunkRanges| set.ids().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ");
        let mut table = String::new();
        for (state, change) in states {
            for (event, pause, happen) in events {
                let mut leases = Leases::default();
                let (id, ..) = leases.handle_request(T0, A, &set(1, 2), true, &Shuns::default());
                change(&mut leases, id, T0);
                let mut now = T0 + pause;
                happen(&mut leases, id, now);
                if event == "B waited 60 s" {
                    now = now + WAIT_MAX;
                }
                let granted = |asker, serves| {
                    chunks(leases.clone().handle_request(now, asker, &set(1, 2), serves, &Shuns::default()).1)
                };
                table += &format!(
                    "{state} + {event}: B gets [{}], A gets [{}], who does not serve gets [{}]\n",
                    granted(B, true),
                    granted(A, true),
                    granted(B, false)
                );
            }
        }
        assert_eq!(table, include_str!("testdata/lease_table.txt"));
    }
}
