//! [`Fetch`]: a sans-io state machine over wanted chunks and the peers that may send them.
//!
//! Inputs are `handle_*` methods. After each of them, and when [`Fetch::poll_timeout`] is reached,
//! call [`Fetch::poll_request`] until it returns `None`, then [`Fetch::poll_event`] until it
//! returns `None`.
//!
//! This file has the state of chunks, batches and peers; `refused` handles chunks that a peer does
//! not send, `liars` relays that sent wrong bytes. `choose` decides which chunks are requested from
//! which peer.

mod capacity;
mod choose;
mod config;
mod liars;
mod peer;
mod refused;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use self::config::FetchConfig;
use self::config::{ALL_LEASED, FIRST_BATCH, RELAY_ANSWERS};
use self::peer::Peer;
use crate::ChunkId;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// A peer of this fetch, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// A batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Distance of a peer. Nearer peers are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// A neighbour. It is only asked for chunks it announced, because it fetches nothing for other
    /// nodes.
    Site,
    /// A relay.
    Relay,
    /// The origin.
    Origin,
}

/// Fault of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFault {
    /// The connection or a stream failed. The peer is tried again after a backoff.
    Failed,
    /// The peer made no progress. It is tried again after a backoff.
    Stalled,
    /// The peer sent bytes that are not the chunk. It is never asked again.
    WrongBytes,
    /// The peer broke the protocol. It is never asked again.
    Protocol,
}

impl PeerFault {
    /// Whether the node at fault is put into quarantine, and its connection closed, whatever has
    /// become of the peer meanwhile.
    pub fn leads_to_quarantine(self) -> bool {
        self == Self::WrongBytes
    }
}

/// News for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// Abandon this batch's stream: the batch stalled, its peer is gone, or other peers brought or
    /// will bring its chunks.
    Abandon(PeerId, BatchId),
    /// No remaining peer can send these chunks.
    Unavailable(ChunkRanges),
    /// The peer is not asked any more.
    Dropped(PeerId, PeerFault),
}

#[derive(Debug)]
struct Batch {
    peer: PeerId,
    open: ChunkRanges,
    asked: Timestamp,
    /// Time of the last chunk, of the request, or of the last moment this side's own limit held the
    /// batch back.
    progress: Timestamp,
    /// Number of chunks that came.
    got: u64,
    deadline: Timestamp,
    /// This side's own limit has held the batch back, so no other peer would bring it sooner.
    held_back: bool,
}

/// The state machine. Every wanted chunk is in exactly one place: to be requested, or open in one
/// batch. At the end a few chunks are open in two batches.
#[derive(Debug)]
pub struct Fetch {
    config: FetchConfig,
    wanted: ChunkRanges,
    peers: BTreeMap<PeerId, Peer>,
    batches: BTreeMap<BatchId, Batch>,
    next_batch: u64,
    /// Chunks open in two batches, and the number of chunks that ever were.
    doubled: ChunkRanges,
    doubled_ever: u64,
    /// Chunks that are open in a batch although the caller no longer wants them.
    unwanted: ChunkRanges,
    /// An asker reported this side for bad data. Until this time, batches are withdrawn when half
    /// of their open chunks are unwanted.
    reported_until: Timestamp,
    /// Number of chunks that were ever wanted.
    wanted_ever: u64,
    /// Chunk id where requests to parents begin, so that nodes of a site that start at once ask for
    /// different parts.
    pivot: Option<ChunkId>,
    /// Number of chunks of the next batch, while no neighbour is known.
    alone_batch: u64,
    /// Number of chunks that came, and of those that had come before.
    came: u64,
    duplicates: u64,
    random: u64,
    /// Time before which no request is possible unless something changes; set when there was none
    /// to make.
    quiet_until: Option<Timestamp>,
    events: VecDeque<FetchEvent>,
}

impl Fetch {
    /// Starts with no wanted chunks and no peers.
    pub fn new(config: FetchConfig) -> Self {
        Self {
            alone_batch: config.shared_batch.map_or(config.batch_chunks, |_| FIRST_BATCH),
            random: config.rng_seed,
            config,
            wanted: ChunkRanges::new(),
            peers: BTreeMap::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            doubled: ChunkRanges::new(),
            doubled_ever: 0,
            unwanted: ChunkRanges::new(),
            reported_until: Timestamp(0),
            wanted_ever: 0,
            pivot: None,
            came: 0,
            duplicates: 0,
            quiet_until: None,
            events: VecDeque::new(),
        }
    }

    /// Adds chunks. Chunks that are already wanted or in flight are not requested twice.
    pub fn want(&mut self, chunks: &ChunkRanges) {
        self.unwanted = self.unwanted.difference(chunks);
        let mut fresh = chunks.clone();
        for batch in self.batches.values() {
            fresh = fresh.difference(&batch.open);
        }
        let before = self.wanted.len();
        self.wanted.extend(&fresh);
        self.wanted_ever += self.wanted.len() - before;
        self.changed();
    }

    /// Removes chunks that the caller no longer wants. Chunks that are not in flight are no longer
    /// requested, and are returned. Chunks in flight still come, because an asker that was told to
    /// ask elsewhere for a moment will want them again. The exception is the time after an asker
    /// reported this side for bad data ([`Fetch::handle_reported_bad_data`]).
    pub fn want_no_more(&mut self, now: Timestamp, chunks: &ChunkRanges) -> ChunkRanges {
        self.wanted = self.wanted.difference(chunks);
        self.unwanted.extend(chunks);
        if now < self.reported_until {
            self.withdraw_unwanted(now);
        }
        let open = self.batches.values().map(|b| b.open.intersection(&self.unwanted));
        self.unwanted = open.fold(ChunkRanges::new(), |mut all, open| {
            all.extend(&open);
            all
        });
        chunks.difference(&self.unwanted)
    }

    /// Something changed, so the earlier conclusion that there is nothing to request is no longer
    /// valid.
    fn changed(&mut self) {
        self.quiet_until = None;
    }

    /// Adds a peer that may be asked from `now` on, or readmits one whose connection came back.
    pub fn handle_connected(&mut self, now: Timestamp, peer: PeerId, tier: Tier) {
        self.changed();
        let shares = self.config.shared_batch.is_some();
        let entry = self.peers.entry(peer).or_insert_with(|| Peer::new(now, tier, shares));
        entry.tier = tier;
        if !entry.connected {
            // Forget which chunks the peer lacked or announced before: another process may answer
            // at its address now.
            entry.lacks = ChunkRanges::new();
            entry.announced = (tier == Tier::Site).then(ChunkRanges::new);
            entry.leased.clear();
        }
        entry.announce_until = now + self.config.announce_grace;
        entry.since = now;
        entry.connected = true;
        if tier == Tier::Origin {
            // Excused relays, whose own parents failed, are asked before the origin again.
            self.peers.values_mut().filter(|p| p.excused).for_each(|p| p.not_before = now);
        }
    }

    /// A neighbour announced chunks and may be asked for them.
    pub fn handle_have(&mut self, now: Timestamp, peer: PeerId, chunks: &ChunkRanges) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let Some(announced) = &mut p.announced else { return };
        announced.extend(chunks);
        // The peer has these chunks after all.
        p.lacks = p.lacks.difference(chunks);
        p.announce_until = now + self.config.announce_grace;
        // A peer without room is asked for its chunks when it has room again.
        let news = self.wanted.is_empty() || self.wanted.intersects(chunks);
        if news && p.has_room(now, self.config.batches_per_peer) {
            self.changed();
        }
    }

    /// A batch is alive although no chunk came, because this side's own limit holds it back. That
    /// is not the peer's fault and says nothing about its pace.
    pub fn handle_held_back(&mut self, now: Timestamp, batch: BatchId) {
        self.progressed(now, batch);
        let Some(b) = self.batches.get_mut(&batch) else { return };
        b.held_back = true;
        if let Some(peer) = self.peers.get_mut(&b.peer) {
            peer.capacity.spoil();
        }
    }

    /// A peer is being dialled. Chunks wait for it, but it is not asked yet.
    pub fn handle_awaiting(&mut self, peer: PeerId) {
        self.changed();
        if let Some(p) = self.peers.get_mut(&peer) {
            p.connected = false;
        }
    }

    /// A peer's connection is gone, or could not be made. The peer is asked again after
    /// [`Fetch::handle_connected`].
    pub fn handle_disconnected(&mut self, now: Timestamp, peer: PeerId, tier: Tier) {
        self.handle_connected(now, peer, tier);
        self.handle_fault(now, peer, PeerFault::Failed);
        if let Some(p) = self.peers.get_mut(&peer) {
            p.connected = false;
        }
        if tier == Tier::Site {
            // Chunks that a parent left to a neighbour may have been left to this neighbour. Ask
            // the parents again at once.
            for p in self.peers.values_mut() {
                p.leased.clear();
                p.left_until = now;
            }
        }
    }

    /// A chunk of a batch arrived and was verified. Returns false if the chunk had come before (a
    /// duplicate). The bytes are good in either case.
    pub fn handle_chunk(&mut self, now: Timestamp, batch: BatchId, id: ChunkId) -> bool {
        self.progressed(now, batch);
        let mut missing = false;
        if let Some(b) = self.batches.get_mut(&batch) {
            b.got += 1;
            missing = b.open.remove(id);
            if let Some(peer) = self.peers.get_mut(&b.peer) {
                peer.failures = 0;
                peer.chokes = 0;
                (peer.excused, peer.stalled, peer.upstream_failed) = (false, false, None);
                peer.capacity.chunk();
                peer.right += 1;
                peer.came_at = now;
                if peer.right == 1 {
                    // The peer may be asked for more now.
                    self.quiet_until = None;
                }
                if peer.not_before > now {
                    // The peer did not fail after all.
                    peer.not_before = now;
                    self.quiet_until = None;
                }
            }
        }
        if !missing || self.doubled.remove(id) {
            // The chunk came late, or was requested from two peers.
            missing |= self.wanted.remove(id);
            missing |= self.close_elsewhere(now, batch, id);
        }
        self.came += 1;
        self.duplicates += u64::from(!missing);
        missing
    }

    /// Removes a chunk from the other batches it is open in. A batch with no other open chunk is
    /// withdrawn.
    fn close_elsewhere(&mut self, now: Timestamp, batch: BatchId, id: ChunkId) -> bool {
        let holds = |(at, b): (&BatchId, &mut Batch)| (*at != batch && b.open.remove(id)).then_some(*at);
        let others: Vec<BatchId> = self.batches.iter_mut().filter_map(holds).collect();
        for other in &others {
            if self.batches[other].open.is_empty() {
                self.withdraw(now, *other);
            }
        }
        !others.is_empty()
    }

    fn withdraw(&mut self, now: Timestamp, batch: BatchId) {
        let Some(peer) = self.batches.get(&batch).map(|b| b.peer) else { return };
        self.take_back(now, batch);
        self.events.push_back(FetchEvent::Abandon(peer, batch));
    }

    fn progressed(&mut self, now: Timestamp, batch: BatchId) {
        let Some(b) = self.batches.get_mut(&batch) else { return };
        b.progress = now;
        let peer = b.peer;
        let deadline = now + self.patience(peer);
        if let Some(b) = self.batches.get_mut(&batch) {
            b.deadline = deadline;
        }
    }

    /// Chunks that are no longer open in one batch are wanted again, unless they are open in
    /// another batch.
    fn want_again(&mut self, chunks: &ChunkRanges) {
        self.wanted.extend(&chunks.difference(&self.doubled));
        self.doubled = self.doubled.difference(chunks);
    }

    /// The caller no longer dials this neighbour.
    pub fn handle_gone(&mut self, peer: PeerId) {
        self.changed();
        if let Some(p) = self.peers.get_mut(&peer) {
            p.dropped = true;
        }
    }

    /// A batch's stream ended well. Chunks it did not answer (after a choke) are requested again.
    pub fn handle_batch_end(&mut self, now: Timestamp, batch: BatchId) {
        if let Some(b) = self.batches.get(&batch)
            && let Some(peer) = self.peers.get_mut(&b.peer)
        {
            peer.capacity.sample(now);
            if b.got > 0 {
                self.alone_batch = self.alone_batch.saturating_mul(2).min(self.config.batch_chunks);
            } else if !peer.leased.is_empty() {
                // Neighbours fetch the requested chunks, and very likely the next ones too.
                peer.left_until = now + ALL_LEASED;
                self.pivot = None;
            }
        }
        self.take_back(now, batch);
    }

    /// A batch's stream, or the peer's connection, failed.
    pub fn handle_fault(&mut self, now: Timestamp, peer: PeerId, fault: PeerFault) {
        self.changed();
        let theirs: Vec<BatchId> =
            self.batches.iter().filter(|(_, b)| b.peer == peer).map(|(id, _)| *id).collect();
        theirs.into_iter().for_each(|batch| self.withdraw(now, batch));
        self.back_off(now, peer, fault);
    }

    fn back_off(&mut self, now: Timestamp, peer: PeerId, fault: PeerFault) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if p.dropped {
            return;
        }
        p.failures = p.failures.saturating_add(1);
        let backoff =
            self.config.backoff.saturating_mul(1 << p.failures.min(16)).min(self.config.backoff_max);
        p.not_before = now + backoff;
        p.stalled |= fault == PeerFault::Stalled;
        p.lied |= fault == PeerFault::WrongBytes;
        let cannot_recover = matches!(fault, PeerFault::WrongBytes | PeerFault::Protocol);
        if cannot_recover || p.failures >= self.config.failures_max {
            p.dropped = true;
            self.events.push_back(FetchEvent::Dropped(peer, fault));
        }
    }

    fn take_back(&mut self, now: Timestamp, batch: BatchId) {
        self.changed();
        let Some(b) = self.batches.remove(&batch) else { return };
        self.want_again(&b.open);
        if let Some(peer) = self.peers.get_mut(&b.peer) {
            peer.in_flight -= 1;
            if peer.in_flight > 0 && b.got == 0 {
                // The pace of the remaining batches is measured by itself.
                peer.capacity.begin(now);
            }
        }
    }

    /// Returns how long a batch may make no progress. For a neighbour of known pace it is a
    /// multiple of the usual time; a relay has to answer by the time it has waited for its parent
    /// in vain.
    fn patience(&self, peer: PeerId) -> Duration {
        let stall = self.config.stall;
        let Some(p) = self.peers.get(&peer) else { return stall };
        match p.tier {
            Tier::Site => {}
            Tier::Relay => return stall.min(RELAY_ANSWERS),
            Tier::Origin => return stall,
        }
        // A peer answers all its batches in turn.
        let usual = p.capacity.time_for(p.in_flight as u64).map_or(stall / 4, |time| time * 8);
        usual.clamp(self.config.stall_min.min(stall), stall)
    }

    fn expire(&mut self, now: Timestamp) {
        let stalled: Vec<_> = self.batches.values().filter(|b| b.deadline <= now).map(|b| b.peer).collect();
        for peer in stalled {
            self.handle_fault(now, peer, PeerFault::Stalled);
        }
    }

    /// Returns the next event for the caller.
    pub fn poll_event(&mut self) -> Option<FetchEvent> {
        self.events.pop_front()
    }

    /// Whether no chunk is wanted and no batch is in flight.
    pub fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.batches.is_empty()
    }

    /// Returns the number of chunks that had come before.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_liars;
#[cfg(test)]
mod tests_pace;
#[cfg(test)]
mod tests_table;
