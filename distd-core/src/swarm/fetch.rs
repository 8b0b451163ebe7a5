//! [`Fetch`]: a sans-io state machine over wanted chunks and the peers that may send them.
//!
//! Inputs are `handle_*`; after each of them, and when [`Fetch::poll_timeout`] is reached, call
//! [`Fetch::poll_request`] until it returns `None`, then [`Fetch::poll_event`] likewise.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ChunkId;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// A peer of this fetch, in the caller's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// How near a peer is; nearer ones are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A neighbour: asked only for what it announced, for it fetches nothing on another's behalf.
    Site,
    /// A relay.
    Relay,
    /// The origin.
    Origin,
}

/// Chokes in a row that are taken as they are; further ones count as failures, so that a peer that never answers is left.
const CHOKES_MAX: u32 = 8;

/// Batches in flight to one parent while there are neighbours: what a site has asked of a relay that dies is lost as far as it has not been
/// passed on, and two keep a link full.
const SHARED_BATCHES: usize = 2;

/// Tunables, all bounds.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Most chunks in one batch.
    pub batch_chunks: u64,
    /// Most batches in flight to one peer. Two keep the link full while the next is asked for; more cost memory.
    pub batches_per_peer: usize,
    /// A batch without progress for this long is taken back and its peer marked slow.
    pub stall: Duration,
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
    /// Where to start among the wanted chunks, any number: nodes of a site that start at once ask for different parts. In
    /// order where there is none.
    pub start: Option<u64>,
    /// Most chunks in one batch while there are neighbours, with whom the work is shared. Until any is known, batches begin as small and
    /// double with each that ends. `None` for who takes no part.
    pub shared_batch: Option<u64>,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            batch_chunks: 1024,
            batches_per_peer: 3,
            stall: Duration::from_secs(20),
            backoff: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            failures_max: 12,
            lease_retry: Duration::from_secs(2),
            hope: Duration::from_secs(10),
            start: None,
            shared_batch: None,
        }
    }
}

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFault {
    /// The connection or a stream failed: tried again after a pause.
    Failed,
    /// It made no progress: tried again after a pause.
    Stalled,
    /// It sent bytes that are not the chunk: never asked again.
    WrongBytes,
    /// It broke the protocol: never asked again.
    Protocol,
}

/// What the caller should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// Abandon this batch's stream: it stalled, or its peer is gone.
    Abandon(PeerId, BatchId),
    /// No peer is left that could send these chunks.
    Unavailable(ChunkRanges),
    /// The peer is not asked any more.
    Dropped(PeerId, PeerFault),
}

#[derive(Debug)]
struct Peer {
    tier: Tier,
    /// What it said it does not have.
    lacks: ChunkRanges,
    /// What it announced; `None` for a parent, which may be asked for anything.
    announced: Option<ChunkRanges>,
    /// What neighbours are fetching by its word, and until when that is left to them.
    leased: VecDeque<(Timestamp, ChunkRanges)>,
    not_before: Timestamp,
    /// It answers nothing until then, though it will have the chunks.
    choked_until: Timestamp,
    /// It may yet announce more until then.
    hope_until: Timestamp,
    failures: u32,
    /// Since its last chunk.
    chokes: u32,
    in_flight: usize,
    connected: bool,
    dropped: bool,
}

impl Peer {
    fn new(now: Timestamp, tier: Tier) -> Self {
        Self {
            tier,
            lacks: ChunkRanges::new(),
            announced: (tier == Tier::Site).then(ChunkRanges::new),
            leased: VecDeque::new(),
            not_before: now,
            choked_until: now,
            hope_until: now,
            failures: 0,
            chokes: 0,
            in_flight: 0,
            connected: true,
            dropped: false,
        }
    }

    /// What of `wanted` it has, or will have, as far as it said.
    fn could_send(&self, wanted: &ChunkRanges) -> ChunkRanges {
        let could = wanted.difference(&self.lacks);
        self.announced.as_ref().map_or_else(|| could.clone(), |announced| could.intersection(announced))
    }
}

#[derive(Debug)]
struct Batch {
    peer: PeerId,
    open: ChunkRanges,
    deadline: Timestamp,
}

/// The state machine. Every wanted chunk is in exactly one place: to be asked for, or open in one batch.
#[derive(Debug)]
pub struct Fetch {
    config: FetchConfig,
    wanted: ChunkRanges,
    peers: BTreeMap<PeerId, Peer>,
    batches: BTreeMap<BatchId, Batch>,
    next_batch: u64,
    /// The chunk that `FetchConfig::start` came to.
    pivot: Option<ChunkId>,
    /// Chunks of the next batch, while no neighbour is known.
    alone_batch: u64,
    events: VecDeque<FetchEvent>,
}

impl Fetch {
    /// Nothing wanted, nobody to ask.
    pub fn new(config: FetchConfig) -> Self {
        Self {
            alone_batch: config.shared_batch.unwrap_or(config.batch_chunks),
            config,
            wanted: ChunkRanges::new(),
            peers: BTreeMap::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            pivot: None,
            events: VecDeque::new(),
        }
    }

    /// Adds chunks; those already wanted or in flight are not asked for twice.
    pub fn want(&mut self, chunks: &ChunkRanges) {
        let mut fresh = chunks.clone();
        for batch in self.batches.values() {
            fresh = fresh.difference(&batch.open);
        }
        self.wanted.extend(&fresh);
    }

    /// Adds a peer that may be asked from `now` on, or readmits one whose connection came back.
    pub fn handle_connected(&mut self, now: Timestamp, peer: PeerId, tier: Tier) {
        let entry = self.peers.entry(peer).or_insert_with(|| Peer::new(now, tier));
        entry.tier = tier;
        if !entry.connected {
            // Whatever it lacked or had before, that may be otherwise now: another process may answer there.
            entry.lacks = ChunkRanges::new();
            entry.announced = (tier == Tier::Site).then(ChunkRanges::new);
            entry.leased.clear();
        }
        entry.hope_until = now + self.config.hope;
        entry.connected = true;
    }

    /// A neighbour announced chunks: it may be asked for them.
    pub fn handle_have(&mut self, now: Timestamp, peer: PeerId, chunks: &ChunkRanges) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let Some(announced) = &mut p.announced else { return };
        announced.extend(chunks);
        // It has them after all.
        p.lacks = p.lacks.difference(chunks);
        p.hope_until = now + self.config.hope;
    }

    /// A parent leaves these chunks of a batch to a neighbour that is fetching them. It is asked again after a while.
    pub fn handle_leased(&mut self, now: Timestamp, batch: BatchId, ranges: &ChunkRanges) {
        let Some(b) = self.batches.get_mut(&batch) else { return };
        let given_back = b.open.intersection(ranges);
        b.open = b.open.difference(ranges);
        b.deadline = now + self.config.stall;
        self.wanted.extend(&given_back);
        if let Some(peer) = self.peers.get_mut(&b.peer) {
            peer.leased.push_back((now + self.config.lease_retry, given_back));
        }
    }

    /// A batch is alive although no chunk came: this side's own limit holds it back, which is no fault of the peer.
    pub fn handle_held_back(&mut self, now: Timestamp, batch: BatchId) {
        if let Some(b) = self.batches.get_mut(&batch) {
            b.deadline = now + self.config.stall;
        }
    }

    /// A peer is being dialled: chunks wait for it, but it is not asked yet.
    pub fn handle_awaiting(&mut self, peer: PeerId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.connected = false;
        }
    }

    /// A peer's connection is gone, or could not be made: it is asked again once [`Fetch::handle_connected`] says so.
    pub fn handle_disconnected(&mut self, now: Timestamp, peer: PeerId, tier: Tier) {
        self.handle_connected(now, peer, tier);
        self.handle_fault(now, peer, PeerFault::Failed);
        if let Some(p) = self.peers.get_mut(&peer) {
            p.connected = false;
        }
        if tier == Tier::Site {
            // What a parent left to a neighbour may have been left to this one.
            self.peers.values_mut().for_each(|p| p.leased.clear());
        }
    }

    /// A chunk of a batch arrived and was verified. False when it was not open there (a late arrival after a stall):
    /// the bytes are good all the same.
    pub fn handle_chunk(&mut self, now: Timestamp, batch: BatchId, id: ChunkId) -> bool {
        let was_open = self.batches.get_mut(&batch).is_some_and(|b| {
            b.deadline = now + self.config.stall;
            b.open.remove(id)
        });
        if let Some(peer) = self.batches.get(&batch).map(|b| b.peer).and_then(|p| self.peers.get_mut(&p)) {
            peer.failures = 0;
            peer.chokes = 0;
        }
        if !was_open {
            self.wanted.remove(id);
        }
        was_open
    }

    /// The peer will not send these chunks of a batch; others are asked. With `for_now` it is asked again after a pause
    /// that counts as a failure; otherwise never.
    pub fn handle_dont_have(&mut self, now: Timestamp, batch: BatchId, ranges: &ChunkRanges, for_now: bool) {
        let Some(b) = self.batches.get_mut(&batch) else { return };
        let id = b.peer;
        let given_back = b.open.intersection(ranges);
        b.open = b.open.difference(ranges);
        self.wanted.extend(&given_back);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !for_now {
            peer.lacks.extend(&given_back);
        } else if peer.not_before <= now {
            self.pause(now, id, PeerFault::Failed);
        }
    }

    /// The peer will answer nothing for a while. What it has waits for it rather than go to a farther peer, and it
    /// counts as a failure only when it happens again and again without a chunk in between.
    pub fn handle_choked(&mut self, now: Timestamp, peer: PeerId, retry_after: Duration) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        p.choked_until = p.choked_until.max(now + retry_after.min(self.config.backoff_max));
        p.chokes = p.chokes.saturating_add(1);
        if p.chokes > CHOKES_MAX {
            self.pause(now, peer, PeerFault::Failed);
        }
    }

    /// A neighbour is not dialled any more.
    pub fn handle_gone(&mut self, peer: PeerId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.dropped = true;
        }
    }

    /// A batch's stream ended well; chunks it did not answer for (a choke) are asked for again.
    pub fn handle_batch_end(&mut self, batch: BatchId) {
        self.alone_batch = self.alone_batch.saturating_mul(2).min(self.config.batch_chunks);
        self.take_back(batch);
    }

    /// A batch's stream, or the peer's connection, failed.
    pub fn handle_fault(&mut self, now: Timestamp, peer: PeerId, fault: PeerFault) {
        let theirs: Vec<BatchId> =
            self.batches.iter().filter(|(_, b)| b.peer == peer).map(|(id, _)| *id).collect();
        for batch in theirs {
            self.take_back(batch);
            self.events.push_back(FetchEvent::Abandon(peer, batch));
        }
        self.pause(now, peer, fault);
    }

    fn pause(&mut self, now: Timestamp, peer: PeerId, fault: PeerFault) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if p.dropped {
            return;
        }
        p.failures = p.failures.saturating_add(1);
        let pause = self.config.backoff.saturating_mul(1 << p.failures.min(16)).min(self.config.backoff_max);
        p.not_before = now + pause;
        let hopeless = matches!(fault, PeerFault::WrongBytes | PeerFault::Protocol);
        if hopeless || p.failures >= self.config.failures_max {
            p.dropped = true;
            self.events.push_back(FetchEvent::Dropped(peer, fault));
        }
    }

    fn take_back(&mut self, batch: BatchId) {
        let Some(b) = self.batches.remove(&batch) else { return };
        self.wanted.extend(&b.open);
        if let Some(peer) = self.peers.get_mut(&b.peer) {
            peer.in_flight -= 1;
        }
    }

    /// The next batch to ask for, nearest usable peer first; `None` until something changes.
    pub fn poll_request(&mut self, now: Timestamp) -> Option<(PeerId, BatchId, ChunkRanges)> {
        self.expire(now);
        if self.wanted.is_empty() {
            return None;
        }
        let mut healthy: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, p)| p.connected && !p.dropped && p.not_before <= now)
            .map(|(id, p)| (p.tier, p.in_flight, *id))
            .collect();
        healthy.sort_unstable();
        // What a nearer peer will send when it has room again is not asked of a farther one: uplinks are for what nobody near has.
        let mut left = self.wanted.clone();
        let mut tier_lacks = None;
        let shares = self.config.shared_batch.is_some() && self.has_neighbours();
        for (tier, in_flight, id) in healthy {
            match &mut tier_lacks {
                Some((current, _)) if *current == tier => {}
                _ => {
                    if let Some((_, lacks)) = tier_lacks.take() {
                        left = left.intersection(&lacks);
                    }
                    tier_lacks = Some((tier, left.clone()));
                }
            }
            let peer = self.peers.get_mut(&id).expect("listed just above");
            let mut could = peer.could_send(&left);
            if let Some((_, lacks)) = &mut tier_lacks {
                *lacks = lacks.difference(&could);
            }
            let most = if shares && tier != Tier::Site { SHARED_BATCHES } else { usize::MAX };
            if in_flight >= self.config.batches_per_peer.min(most) || peer.choked_until > now {
                continue;
            }
            while peer.leased.front().is_some_and(|(until, _)| *until <= now) {
                peer.leased.pop_front();
            }
            for (_, leased) in &peer.leased {
                could = could.difference(leased);
            }
            if could.is_empty() {
                continue;
            }
            let chunks = self.pick(id, tier, could);
            let peer = self.peers.get_mut(&id).expect("listed just above");
            peer.in_flight += 1;
            self.wanted = self.wanted.difference(&chunks);
            let batch = BatchId(self.next_batch);
            self.next_batch += 1;
            self.batches
                .insert(batch, Batch { peer: id, open: chunks.clone(), deadline: now + self.config.stall });
            return Some((id, batch, chunks));
        }
        self.report_unavailable(now);
        None
    }

    fn has_neighbours(&self) -> bool {
        self.peers.values().any(|p| p.tier == Tier::Site && p.connected && !p.dropped)
    }

    /// Most chunks of the next batch.
    fn batch_size(&self) -> u64 {
        let most = self.config.batch_chunks;
        let Some(shared) = self.config.shared_batch else { return most };
        if self.has_neighbours() {
            return shared.clamp(1, most);
        }
        self.alone_batch.clamp(1, most)
    }

    /// The chunks of the next batch to a peer, out of what it could send.
    fn pick(&mut self, peer: PeerId, tier: Tier, mut could: ChunkRanges) -> ChunkRanges {
        let count = self.batch_size();
        if tier == Tier::Site {
            // First what no other neighbour has: those may leave.
            let mut rare = could.clone();
            let others = self.peers.iter().filter(|(id, p)| **id != peer && p.connected && !p.dropped);
            for announced in others.filter_map(|(_, p)| p.announced.as_ref()) {
                rare = rare.difference(announced);
            }
            return if rare.is_empty() { could.take_first(count) } else { rare.take_first(count) };
        }
        if self.pivot.is_none()
            && let Some(start) = self.config.start
        {
            self.pivot = self.wanted.nth(start % self.wanted.len().max(1));
        }
        match self.pivot {
            Some(pivot) => could.take_from(pivot, count),
            None => could.take_first(count),
        }
    }

    /// Chunks that every remaining peer lacks will never come: say so, once.
    fn report_unavailable(&mut self, now: Timestamp) {
        let mut hopeless = self.wanted.clone();
        for peer in self.peers.values().filter(|p| !p.dropped) {
            if peer.announced.is_some() && peer.hope_until > now {
                return;
            }
            hopeless = hopeless.difference(&peer.could_send(&hopeless));
        }
        if !hopeless.is_empty() {
            self.wanted = self.wanted.difference(&hopeless);
            // Who wants them later asks anew.
            for peer in self.peers.values_mut() {
                peer.lacks = peer.lacks.difference(&hopeless);
            }
            self.events.push_back(FetchEvent::Unavailable(hopeless));
        }
    }

    fn expire(&mut self, now: Timestamp) {
        let stalled: Vec<_> = self.batches.values().filter(|b| b.deadline <= now).map(|b| b.peer).collect();
        for peer in stalled {
            self.handle_fault(now, peer, PeerFault::Stalled);
        }
    }

    /// The next thing to tell the caller.
    pub fn poll_event(&mut self) -> Option<FetchEvent> {
        self.events.pop_front()
    }

    /// When to call [`Fetch::poll_request`] again if nothing happens before: later than `now`, at which it has just been called.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let deadlines = self.batches.values().map(|b| b.deadline);
        let pauses = self.peers.values().filter(|p| !p.dropped && !self.wanted.is_empty()).flat_map(|p| {
            let asked_again = p.connected.then(|| {
                let leased = p.leased.front().map_or(Timestamp(0), |(until, _)| *until);
                p.not_before.max(p.choked_until).max(leased)
            });
            asked_again.into_iter().chain(p.announced.as_ref().map(|_| p.hope_until))
        });
        deadlines.chain(pauses).filter(|at| *at > now).min()
    }

    /// Whether nothing is wanted and nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.batches.is_empty()
    }
}

#[cfg(test)]
mod tests;
