//! The asking side: carries out the actions of the core's `Asker`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use distd_core::proto::batch::BatchAsk;
use distd_core::proto::control::{Control, Side};
use distd_core::proto::frame::Handshake;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    Asker, AskerAction, AskerGossip, BatchId, DialTarget, FetchConfig, Linger, PeerFault, PeerId, SiteKey,
    Tier, may_dial,
};
use distd_core::time::Timestamp;

use super::conn::{Conn, ConnNo, End, Payload};
use super::node::{Ask, Asking, Contact, NodeNo, Role};
use super::share::RECORD_SECONDS;
use super::world::{Event, Sim};

/// How long dialling may take (`net/link.rs`).
const CONNECT: Duration = Duration::from_secs(10);

/// Pause after which a failed attempt is made again; the agent's value.
const ATTEMPT_AGAIN: Duration = Duration::from_secs(10);

impl Sim {
    /// Starts a node's asking side for the chunks that it lacks.
    pub(super) fn start_asking(&mut self, n: NodeNo) {
        let node = &self.nodes[n.0];
        let (role, exchanges) = (node.role, node.leaf.exchanges);
        // A relay wants chunks only when askers ask it for them.
        let wanted = match role {
            Role::Leaf => self.swarm.difference(&node.store.held),
            _ => ChunkRanges::new(),
        };
        let config = match role {
            Role::Relay => FetchConfig::relay(),
            _ if exchanges => FetchConfig::sharing(wanted.len(), self.rng.next_u64()),
            _ => FetchConfig::default(),
        };
        let parents = self.nodes[n.0].parents.len();
        let mut asker = Asker::new(self.clock(n), config, parents, self.swarm.clone());
        asker.want(&wanted);
        self.nodes[n.0].asking =
            Some(Asking { asker, contacts: BTreeMap::new(), asks: BTreeMap::new(), wanted, wake_at: None });
        self.drive(n);
    }

    fn dial(&mut self, n: NodeNo, peer: PeerId, target: DialTarget) {
        let (now, unix) = (self.clock(n), self.unix(n));
        let node = &mut self.nodes[n.0];
        let Some(asking) = &mut node.asking else { return };
        let (whom, usable) = match &target {
            DialTarget::Parent(index) => {
                let parent = node.parents[*index];
                (parent, node.quarantine.until(&parent.id(), unix).is_none())
            }
            DialTarget::Neighbour(neighbour) => {
                let Some(whom) = NodeNo::at(neighbour.address) else {
                    return asking.asker.handle_lost(now, peer);
                };
                let usable = may_dial(now, unix, &n.id(), neighbour, &node.dial_backoff, &node.quarantine);
                (whom, usable)
            }
        };
        if !usable {
            return asking.asker.handle_lost(now, peer);
        }
        if matches!(target, DialTarget::Neighbour(_)) {
            node.dial_backoff.handle_dialled(now, whom.id());
        }
        self.note("dial", n.0, [whom.0 as u64, u64::from(peer.0)]);
        let mut ours = Handshake::new(self.manifest);
        ours.exchanges = self.exchanges(n);
        let mut control = Control::new(Side::Opener, ours);
        if self.exchanges(n) {
            control.send_peers(vec![self.own_record(n)]);
            control.want_peers();
        }
        let theirs = Handshake {
            fetches_upstream: self.nodes[whom.0].role == Role::Relay,
            ..Handshake::new(self.manifest)
        };
        let conn = ConnNo(self.conns.len());
        let window = self.window(n, whom);
        self.conns.push(Conn {
            opener: n,
            peer,
            answerer: whom,
            opener_open: false,
            answerer_open: false,
            opener_control: control,
            answerer_control: Control::new(Side::Answerer, theirs),
            last_to_opener: Timestamp(0),
            last_to_answerer: Timestamp(0),
            member: None,
            site: SiteKey::default(),
            opener_gossip: None,
            answerer_gossip: None,
            opener_looks: BTreeSet::new(),
            answerer_looks: BTreeSet::new(),
            serving: BTreeMap::new(),
            turn: VecDeque::new(),
            window,
            in_flight: 0,
        });
        if let Some(asking) = &mut self.nodes[n.0].asking {
            let announced = ChunkRanges::new();
            asking.contacts.insert(peer, Contact { node: whom, conn: Some(conn), announced });
        }
        self.nodes[n.0].conns.insert(conn);
        self.send(conn, End::Opener, Payload::Hello);
        self.queue.after(CONNECT, Event::DialTimeout(conn));
    }

    /// Whether a node takes part in the exchange of its site.
    fn exchanges(&self, n: NodeNo) -> bool {
        self.nodes[n.0].role == Role::Leaf && self.nodes[n.0].leaf.exchanges
    }

    /// Number of chunks that a path holds, plus two to keep it full: the effect of congestion
    /// control.
    fn window(&self, a: NodeNo, b: NodeNo) -> u64 {
        let (from, to) = (&self.nodes[b.0], &self.nodes[a.0]);
        let mut rate = from.tx.rate.0.min(to.rx.rate.0);
        if from.site != to.site {
            rate = rate.min(self.wans[from.site].0.up.0).min(self.wans[to.site].0.down.0);
        }
        let round_trip = self.latency(a, b).as_micros() as u64 * 2;
        2 + rate * round_trip / 1_000_000 / self.chunk_bytes
    }

    pub(super) fn dial_timeout(&mut self, conn: ConnNo) {
        let (n, peer) = (self.conns[conn.0].opener, self.conns[conn.0].peer);
        if self.is_current(n, peer, conn) && !self.conns[conn.0].opener_open {
            self.note("timeout", n.0, [conn.0 as u64, 0]);
            self.shut(conn, End::Opener);
        }
    }

    /// Whether a node's connection to a peer is this one.
    pub(super) fn is_current(&self, n: NodeNo, peer: PeerId, conn: ConnNo) -> bool {
        let contact = self.nodes[n.0].asking.as_ref().and_then(|asking| asking.contacts.get(&peer));
        contact.is_some_and(|contact| contact.conn == Some(conn))
    }

    /// The connection a node dialled is open.
    pub(super) fn connected(&mut self, conn: ConnNo) {
        let (n, peer, whom) =
            (self.conns[conn.0].opener, self.conns[conn.0].peer, self.conns[conn.0].answerer);
        let now = self.clock(n);
        if !self.is_current(n, peer, conn) {
            return;
        }
        self.conns[conn.0].opener_open = true;
        self.nodes[n.0].dial_backoff.handle_reached(&whom.id());
        let tier = match self.nodes[whom.0].role {
            Role::Origin => Tier::Origin,
            Role::Relay => Tier::Relay,
            Role::Leaf => Tier::Site,
        };
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        asking.asker.handle_connected(now, peer, whom.id(), tier);
        let is_parent = asking.asker.is_parent(peer);
        if self.exchanges(n) {
            self.conns[conn.0].opener_gossip = Some(AskerGossip::new(now, is_parent, RECORD_SECONDS));
        }
        self.gossip(conn, End::Opener);
        self.drive(n);
    }

    /// A peer's connection ended, or could not be made.
    pub(super) fn lost(&mut self, n: NodeNo, peer: PeerId) {
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        asking.contacts.remove(&peer);
        asking.asker.handle_lost(now, peer);
        self.drive(n);
    }

    /// Carries out all actions of the asker, and sets the next wake-up.
    pub(super) fn drive(&mut self, n: NodeNo) {
        let now = self.clock(n);
        while let Some(action) = self.nodes[n.0].asking.as_mut().and_then(|a| a.asker.poll_action(now)) {
            match action {
                AskerAction::Dial(peer, target) => self.dial(n, peer, target),
                AskerAction::Request(peer, batch, chunks) => self.start_batch(n, peer, batch, chunks),
                AskerAction::Withdraw(_, batch) => self.abandon(n, batch),
                AskerAction::Drop(peer, fault) => self.dropped(n, peer, fault),
                AskerAction::Unavailable(chunks) => {
                    self.note("unavailable", n.0, [chunks.len(), 0]);
                    if self.nodes[n.0].role == Role::Leaf {
                        return self.attempt_failed(n);
                    }
                    self.gone_upstream(n, &chunks);
                }
            }
        }
        let Some(asking) = &self.nodes[n.0].asking else { return };
        if self.nodes[n.0].role == Role::Leaf && asking.asker.is_idle() {
            return self.finish(n);
        }
        let due = asking.asker.poll_timeout(now).map(|at| self.when(n, at));
        if let Some(due) = due
            && asking.wake_at.is_none_or(|at| due < at)
        {
            let starts = self.nodes[n.0].starts;
            if let Some(asking) = &mut self.nodes[n.0].asking {
                asking.wake_at = Some(due);
            }
            self.queue.at(due, Event::Wake(n, starts));
        }
    }

    fn start_batch(&mut self, n: NodeNo, peer: PeerId, batch: BatchId, chunks: ChunkRanges) {
        self.check_request(n, peer, &chunks);
        self.note("ask", n.0, [u64::from(peer.0), chunks.len()]);
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let Some(conn) = asking.contacts.get(&peer).and_then(|contact| contact.conn) else {
            asking.asker.handle_batch_end(now, batch);
            return;
        };
        let (ask, _) = BatchAsk::new(chunks.clone()).expect("the fetch asks for 1 to batch_chunks chunks");
        asking.asks.insert(batch, Ask { ask, peer, conn, frames: 0, frames_all: None });
        self.send(conn, End::Opener, Payload::Request(batch, chunks));
    }

    /// Withdraws a batch.
    fn abandon(&mut self, n: NodeNo, batch: BatchId) {
        let ask = self.nodes[n.0].asking.as_mut().and_then(|a| a.asks.remove(&batch));
        if let Some(ask) = ask
            && self.conns[ask.conn.0].opener_open
        {
            self.send(ask.conn, End::Opener, Payload::Withdraw(batch));
        }
    }

    /// Stops asking a peer.
    fn dropped(&mut self, n: NodeNo, peer: PeerId, fault: PeerFault) {
        self.note("dropped", n.0, [u64::from(peer.0), u64::from(fault == PeerFault::WrongBytes)]);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        if let Some(conn) = asking.contacts.remove(&peer).and_then(|contact| contact.conn) {
            self.close(conn, End::Opener);
        }
    }

    /// No peer is left to ask: the attempt ends, and another is made later.
    fn attempt_failed(&mut self, n: NodeNo) {
        self.nodes[n.0].failed_attempts += 1;
        self.stop_asking(n);
        self.queue.after(ATTEMPT_AGAIN, Event::Start(n));
    }

    /// Closes all connections that a node dialled.
    pub(super) fn stop_asking(&mut self, n: NodeNo) {
        self.nodes[n.0].asking = None;
        let dialled = self.nodes[n.0].conns.iter().filter(|c| self.conns[c.0].opener == n).copied();
        for conn in dialled.collect::<Vec<_>>() {
            self.close(conn, End::Opener);
        }
    }

    /// A leaf has everything.
    pub(super) fn finish(&mut self, n: NodeNo) {
        self.check_complete(n);
        self.note("done", n.0, [0, 0]);
        if self.nodes[n.0].done.is_none() {
            self.nodes[n.0].done = Some(self.queue.now());
            self.incomplete -= 1;
        }
        self.stop_asking(n);
        if !self.nodes[n.0].leaf.resident {
            let linger = Linger::new(self.clock(n), self.nodes[n.0].leaf.linger);
            self.linger(n, linger);
        }
    }

    /// A finished pull looks whether it may leave.
    pub(super) fn linger(&mut self, n: NodeNo, linger: Linger) {
        let askers = self.nodes[n.0].answering.sites.count(&self.manifest);
        match linger.poll(self.clock(n), askers) {
            Some(next) => {
                let next = self.when(n, next);
                self.queue.at(next, Event::Linger(n, self.nodes[n.0].starts, linger));
            }
            None => self.leave(n),
        }
    }
}
