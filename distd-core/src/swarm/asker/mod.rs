//! [`Asker`]: the asking side of one swarm, around its [`Fetch`].
//!
//! # Goals
//! - Parents are asked in order: a farther one that answers first waits a moment for the nearer.
//! - A peer that is lost is dialled again, ever less often; a neighbour only a few times, because
//!   other neighbours serve instead.
//! - Neighbours have a bounded number of places, some of which are kept for nodes that dial this
//!   node. A neighbour that is given up frees its place.
//! - A peer that sent wrong bytes is dropped, and relays that the origin distrusts are asked after
//!   the origin.
//!
//! # Non-goals
//! - Connections, records and the list of quarantined nodes: the caller dials, checks signatures,
//!   and passes in neighbours that may be dialled ([`may_dial`](super::may_dial)).
//! - The choice of chunks: [`Fetch`] makes it.
//!
//! # Example
//! A device asks a relay (peer 0) and the origin (peer 1) for the chunks 1 to 3.
//!
//! ```
//! use std::time::Duration;
//!
//! use distd_core::ranges::ChunkRanges;
//! use distd_core::swarm::{Asker, AskerAction, DialTarget, FetchConfig, PeerId, Tier};
//! use distd_core::time::Timestamp;
//! use distd_core::{ChunkId, NodeId};
//!
//! let (relay, origin, now) = (PeerId(0), PeerId(1), Timestamp(0));
//! let chunks: ChunkRanges = [ChunkId(1)..=ChunkId(3)].into_iter().collect();
//! let mut asker = Asker::new(now, FetchConfig::default(), 2, chunks.clone());
//! asker.want(&chunks);
//! assert_eq!(asker.poll_action(now), Some(AskerAction::Dial(relay, DialTarget::Parent(0))));
//! assert_eq!(asker.poll_action(now), Some(AskerAction::Dial(origin, DialTarget::Parent(1))));
//!
//! asker.handle_connected(now, origin, NodeId([2; 16]), Tier::Origin);
//! assert_eq!(asker.poll_action(now), None, "the relay may still connect");
//! asker.handle_lost(now, relay);
//! let Some(AskerAction::Request(peer, batch, asked)) = asker.poll_action(now) else { panic!() };
//! assert_eq!((peer, &asked), (origin, &chunks));
//!
//! let later = now + Duration::from_millis(100);
//! assert_eq!(asker.poll_action(later), Some(AskerAction::Dial(relay, DialTarget::Parent(0))));
//! chunks.ids().for_each(|id| assert!(asker.handle_chunk(later, batch, id)));
//! asker.handle_batch_end(later, batch);
//! assert!(asker.is_idle());
//! ```

mod contact;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use self::contact::{Contact, State};
use super::fetch::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
use crate::proto::frame::DontHaveReason;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;
use crate::{ChunkId, NodeId};

/// Most neighbours one swarm's asker has at once.
pub(super) const NEIGHBOURS_MAX: usize = 16;

/// Most neighbours that are dialled because a peer advertised them. The other places are for nodes
/// that dial this node and are dialled back. Early joiners are advertised to everybody who joins
/// later, late joiners to nobody. If every place were filled from advertised addresses, early
/// joiners would upload three times their share and late ones nothing.
const HEARSAY_DIALS_MAX: usize = 10;

/// Most neighbours from earlier sessions that are dialled at the start.
const REMEMBERED_TRIED: usize = 8;

/// How long nearer parents may take to connect before a farther one is asked: a round trip over a
/// slow link, and one repetition.
const NEARER_GRACE: Duration = Duration::from_secs(1);

/// A node and the address where it listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Node that must answer at the address.
    pub node: NodeId,
    /// Address to dial.
    pub address: SocketAddr,
}

/// Source from which an asker learned of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourSource {
    /// The neighbour was reached in an earlier session.
    Remembered,
    /// A peer advertised the neighbour, or multicast DNS found it.
    Advertised,
    /// The neighbour dialled this node for the same swarm.
    Caller,
}

/// Peer to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// The parent with this index, 0 for the nearest.
    Parent(usize),
    /// A neighbour.
    Neighbour(Neighbour),
}

/// Action that the caller of an [`Asker`] carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskerAction {
    /// Dial the peer and open the swarm there. The outcome is [`Asker::handle_connected`] or
    /// [`Asker::handle_lost`].
    Dial(PeerId, DialTarget),
    /// Request these chunks from the peer, on a stream of their own.
    Request(PeerId, BatchId, ChunkRanges),
    /// Stop the stream of this batch.
    Withdraw(PeerId, BatchId),
    /// Leave the swarm at the peer, or stop dialling it. The peer is not asked any more.
    Drop(PeerId, PeerFault),
    /// Give up these chunks: no remaining peer can send them.
    Unavailable(ChunkRanges),
}

/// The state machine. Call [`Asker::poll_action`] until it returns `None` after each call of a
/// `handle_*` method, and when [`Asker::poll_timeout`] is reached. Inputs about peers and batches
/// that have ended are ignored.
#[derive(Debug)]
pub struct Asker {
    fetch: Fetch,
    /// Chunks of the swarm.
    ids: ChunkRanges,
    /// Number of parents; their peer ids are 0 to this.
    parents: u32,
    /// Every parent, and the neighbours that are not given up.
    contacts: BTreeMap<PeerId, Contact>,
    next_peer: u32,
    /// Neighbours that were dropped for a fault. They are not dialled again.
    dropped: BTreeSet<NodeId>,
    /// Relays that the origin distrusts: several nodes of the site got wrong bytes from them.
    distrusted: BTreeSet<NodeId>,
    started: Timestamp,
    actions: VecDeque<AskerAction>,
}

impl Asker {
    /// Starts at `now` to dial `parents` parents, for the swarm of the chunks `ids`. No chunk is
    /// wanted yet.
    pub fn new(now: Timestamp, config: FetchConfig, parents: usize, ids: ChunkRanges) -> Self {
        let parents = u32::try_from(parents).unwrap_or(u32::MAX);
        let mut asker = Self {
            fetch: Fetch::new(config),
            ids,
            parents,
            contacts: BTreeMap::new(),
            next_peer: 0,
            dropped: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            started: now,
            actions: VecDeque::new(),
        };
        // The fetch knows the parents from the start, so that chunks wait for a parent that is
        // being dialled instead of being given up.
        (0..parents).for_each(|index| asker.add(now, DialTarget::Parent(index as usize)));
        asker
    }

    /// Wants further chunks ([`Fetch::want`]).
    pub fn want(&mut self, chunks: &ChunkRanges) {
        self.fetch.want(chunks);
    }

    /// Drops the wish for chunks, and returns those that are not in flight
    /// ([`Fetch::want_no_more`]).
    pub fn want_no_more(&mut self, now: Timestamp, chunks: &ChunkRanges) -> ChunkRanges {
        self.fetch.want_no_more(now, chunks)
    }

    /// Whether every wanted chunk has come or was given up.
    pub fn is_idle(&self) -> bool {
        self.fetch.is_idle()
    }

    /// Whether this peer is a parent.
    pub fn is_parent(&self, peer: PeerId) -> bool {
        peer.0 < self.parents
    }

    fn add(&mut self, now: Timestamp, target: DialTarget) {
        let peer = PeerId(self.next_peer);
        self.next_peer += 1;
        let tier = contact::farthest(&target);
        self.contacts.insert(peer, Contact::new(target.clone()));
        self.fetch.handle_connected(now, peer, tier);
        self.fetch.handle_awaiting(peer);
        self.actions.push_back(AskerAction::Dial(peer, target));
    }

    /// Neighbours were found that may be dialled. Those that are not known yet are dialled while
    /// there are places for neighbours of this source.
    pub fn handle_neighbours(
        &mut self,
        now: Timestamp,
        source: NeighbourSource,
        found: impl IntoIterator<Item = Neighbour>,
    ) {
        let (places, tried) = match source {
            NeighbourSource::Remembered => (HEARSAY_DIALS_MAX, REMEMBERED_TRIED),
            NeighbourSource::Advertised => (HEARSAY_DIALS_MAX, usize::MAX),
            NeighbourSource::Caller => (NEIGHBOURS_MAX, usize::MAX),
        };
        for neighbour in found.into_iter().take(tried) {
            let known = self.contacts.values().any(|contact| contact.is_neighbour(&neighbour));
            let taken = self.contacts.len() - self.parents as usize;
            if !known && taken < places && !self.dropped.contains(&neighbour.node) {
                self.add(now, DialTarget::Neighbour(neighbour));
            }
        }
    }

    /// A dialled peer is connected. `tier` is the distance that its certificate shows.
    pub fn handle_connected(&mut self, now: Timestamp, peer: PeerId, node: NodeId, tier: Tier) {
        let Some(contact) = self.contacts.get_mut(&peer).filter(|contact| !contact.is_ended()) else {
            return;
        };
        (contact.state, contact.node, contact.heard) = (State::Connected(tier), Some(node), true);
        self.fetch.handle_connected(now, peer, tier);
        self.heed_distrust(now);
    }

    /// A connected peer answered the handshake of the swarm: it is dialled again soon when it is
    /// lost.
    pub fn handle_handshake(&mut self, peer: PeerId) {
        if let Some(contact) = self.contacts.get_mut(&peer) {
            contact.reached();
        }
    }

    /// A peer's connection ended, or could not be made. The peer is dialled again after a pause,
    /// unless it is a neighbour that failed several times.
    pub fn handle_lost(&mut self, now: Timestamp, peer: PeerId) {
        let Some(contact) = self.contacts.get_mut(&peer).filter(|contact| !contact.is_ended()) else {
            return;
        };
        let tier = contact.tier();
        contact.lost(now);
        let given_up = contact.is_ended();
        self.fetch.handle_disconnected(now, peer, tier);
        if given_up {
            self.fetch.handle_gone(peer);
            // If the neighbour is advertised again, it is dialled again.
            self.contacts.remove(&peer);
        }
    }

    /// A peer failed or broke the protocol, in a batch or on its control stream. The caller looks
    /// at [`PeerFault::leads_to_quarantine`] too.
    pub fn handle_fault(&mut self, now: Timestamp, peer: PeerId, fault: PeerFault) {
        self.fetch.handle_fault(now, peer, fault);
    }

    /// A peer announced chunks. Only neighbours are asked for what they announce: a parent sends
    /// every chunk of the swarm.
    pub fn handle_have(&mut self, now: Timestamp, peer: PeerId, chunks: &ChunkRanges) {
        if !self.is_parent(peer) {
            self.fetch.handle_have(now, peer, &chunks.intersection(&self.ids));
        }
    }

    /// A peer has no room, and may be asked again after `retry_after`.
    pub fn handle_choked(&mut self, now: Timestamp, peer: PeerId, retry_after: Duration) {
        self.fetch.handle_choked(now, peer, retry_after);
    }

    /// A peer named the nodes that it asks this node not to use. Only the origin is believed about
    /// which relays lie.
    pub fn handle_distrusted(&mut self, now: Timestamp, peer: PeerId, nodes: BTreeSet<NodeId>) {
        let state = self.contacts.get(&peer).map(|contact| &contact.state);
        if matches!(state, Some(State::Connected(Tier::Origin))) {
            self.distrusted = nodes;
            self.heed_distrust(now);
        }
    }

    /// Tells the fetch of distrusted relays, also of those that are not connected: a relay that
    /// this node dropped for wrong bytes is one through which neighbours no longer fetch, either.
    fn heed_distrust(&mut self, now: Timestamp) {
        for (peer, contact) in &self.contacts {
            if contact.node.is_some_and(|node| self.distrusted.contains(&node)) {
                self.fetch.handle_distrusted(now, *peer);
            }
        }
    }

    /// A batch is alive, but this side's own limit holds it back ([`Fetch::handle_held_back`]).
    pub fn handle_held_back(&mut self, now: Timestamp, batch: BatchId) {
        self.fetch.handle_held_back(now, batch);
    }

    /// A chunk came and was verified. Returns false for a duplicate ([`Fetch::handle_chunk`]).
    pub fn handle_chunk(&mut self, now: Timestamp, batch: BatchId, id: ChunkId) -> bool {
        self.fetch.handle_chunk(now, batch, id)
    }

    /// A peer refused chunks of a batch.
    pub fn handle_dont_have(
        &mut self,
        now: Timestamp,
        batch: BatchId,
        chunks: &ChunkRanges,
        reason: DontHaveReason,
    ) {
        match reason {
            DontHaveReason::Leased => self.fetch.handle_leased(now, batch, chunks),
            DontHaveReason::Upstream => self.fetch.handle_upstream_failed(now, batch, chunks),
            reason => self.fetch.handle_dont_have(now, batch, chunks, reason == DontHaveReason::Busy),
        }
    }

    /// The stream of a batch ended well ([`Fetch::handle_batch_end`]).
    pub fn handle_batch_end(&mut self, now: Timestamp, batch: BatchId) {
        self.fetch.handle_batch_end(now, batch);
    }

    /// A node that asks this side left because it got wrong bytes
    /// ([`Fetch::handle_reported_bad_data`]).
    pub fn handle_reported_bad_data(&mut self, now: Timestamp) {
        self.fetch.handle_reported_bad_data(now);
    }

    /// Returns the next action. Call this until it returns `None`.
    pub fn poll_action(&mut self, now: Timestamp) -> Option<AskerAction> {
        if self.actions.is_empty() {
            self.decide(now);
        }
        self.actions.pop_front()
    }

    fn decide(&mut self, now: Timestamp) {
        for (peer, contact) in &mut self.contacts {
            if contact.is_due(now) {
                contact.state = State::Dialling;
                self.actions.push_back(AskerAction::Dial(*peer, contact.target.clone()));
            }
        }
        let mut requests = Vec::new();
        if self.waits_for_nearer(now).is_none() {
            requests.extend(std::iter::from_fn(|| self.fetch.poll_request(now)));
        }
        while let Some(event) = self.fetch.poll_event() {
            let action = match event {
                FetchEvent::Abandon(peer, batch) => {
                    let chosen = requests.len();
                    requests.retain(|(_, asked, _)| *asked != batch);
                    if requests.len() < chosen {
                        continue;
                    }
                    AskerAction::Withdraw(peer, batch)
                }
                FetchEvent::Unavailable(chunks) => AskerAction::Unavailable(chunks),
                FetchEvent::Dropped(peer, fault) => {
                    self.end(peer);
                    AskerAction::Drop(peer, fault)
                }
            };
            self.actions.push_back(action);
        }
        // Requests follow the withdrawals: a requested chunk may have been open in a batch that is
        // withdrawn here.
        let requests = requests.into_iter();
        self.actions.extend(requests.map(|(peer, batch, chunks)| AskerAction::Request(peer, batch, chunks)));
    }

    /// Gives up a peer that the fetch dropped. A neighbour frees its place.
    fn end(&mut self, peer: PeerId) {
        if self.is_parent(peer) {
            if let Some(parent) = self.contacts.get_mut(&peer) {
                parent.state = State::Ended;
            }
        } else if let Some(Contact { target: DialTarget::Neighbour(neighbour), .. }) =
            self.contacts.remove(&peer)
        {
            self.dropped.insert(neighbour.node);
        }
    }

    /// Returns until when this node waits for parents that come before a connected one and have
    /// neither connected nor failed. Meanwhile a farther parent that answers faster must not be
    /// asked for everything.
    fn waits_for_nearer(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.started + NEARER_GRACE;
        if now >= until {
            return None;
        }
        let parents = || self.contacts.values().take(self.parents as usize);
        let first = parents().position(|contact| matches!(contact.state, State::Connected(..)))?;
        (!parents().take(first).all(|contact| contact.heard)).then_some(until)
    }

    /// Returns when [`Asker::poll_action`] is to be called again, if nothing happens before.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let requests = self.waits_for_nearer(now).or_else(|| self.fetch.poll_timeout(now));
        self.contacts.values().filter_map(Contact::due).chain(requests).min()
    }
}

#[cfg(test)]
mod tests;
