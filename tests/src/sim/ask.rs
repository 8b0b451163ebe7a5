//! The asking side: does the work of `distd-peer`'s driver around the core's `Fetch`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use distd_core::proto::batch::BatchAsk;
use distd_core::proto::control::{Control, Side};
use distd_core::proto::frame::Handshake;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::{HAND_ON, NEARER_GRACE, NEIGHBOUR_TRIES, REDIAL, REDIAL_MAX};
use distd_core::swarm::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
use distd_core::time::Timestamp;

use super::conn::{Conn, ConnNo, End, Payload};
use super::node::{Ask, Asking, Contact, NodeNo, Role};
use super::world::{Event, Sim};

/// How long dialling may take (`net/link.rs`).
const CONNECT: Duration = Duration::from_secs(10);

/// Pause after which a failed attempt is made again; the agent's value.
const ATTEMPT_AGAIN: Duration = Duration::from_secs(10);

/// How often a finished pull checks whether a neighbour still fetches from it (`share/mod.rs`).
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn peer_id(peer: usize) -> PeerId {
    PeerId(peer as u32)
}

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
        let parents = self.nodes[n.0].parents.clone();
        let mut fetch = Fetch::new(config);
        fetch.want(&wanted);
        self.nodes[n.0].asking = Some(Asking {
            fetch,
            contacts: Vec::new(),
            parents: parents.len(),
            asks: BTreeMap::new(),
            wanted,
            distrusted_by_origin: BTreeSet::new(),
            started: self.queue.now(),
            wake_at: None,
        });
        for parent in parents {
            self.add_contact(n, parent, Tier::Origin);
        }
        self.drive(n);
    }

    /// Adds a peer and dials it.
    pub(super) fn add_contact(&mut self, n: NodeNo, whom: NodeNo, tier: Tier) {
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let peer = asking.contacts.len();
        asking.fetch.handle_connected(now, peer_id(peer), tier);
        asking.fetch.handle_awaiting(peer_id(peer));
        asking.contacts.push(Contact {
            node: whom,
            conn: None,
            tries: 0,
            pause: REDIAL,
            heard: false,
            gone: false,
            announced: ChunkRanges::new(),
        });
        self.dial(n, peer);
    }

    pub(super) fn dial(&mut self, n: NodeNo, peer: usize) {
        let Some(asking) = &self.nodes[n.0].asking else { return };
        let contact = &asking.contacts[peer];
        if contact.gone || contact.conn.is_some() {
            return;
        }
        let whom = contact.node;
        self.note("dial", n.0, [whom.0 as u64, peer as u64]);
        if self.nodes[n.0].quarantine.contains(&whom) {
            return self.lost(n, peer);
        }
        let mut ours = Handshake::new(self.manifest);
        ours.exchanges = self.exchanges_with(n, whom);
        let mut control = Control::new(Side::Opener, ours);
        if self.exchanges_with(n, whom) {
            control.send_peers(vec![self.own_record(n)]);
            if peer < self.nodes[n.0].parents.len() {
                control.shun(&self.shunned(n));
            }
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
            told: None,
            serving: BTreeMap::new(),
            turn: VecDeque::new(),
            window,
            in_flight: 0,
        });
        if let Some(asking) = &mut self.nodes[n.0].asking {
            asking.contacts[peer].conn = Some(conn);
        }
        self.nodes[n.0].conns.insert(conn);
        self.send(conn, End::Opener, Payload::Hello);
        self.queue.after(CONNECT, Event::DialTimeout(conn));
    }

    /// Whether a node takes part in the exchange when it asks another.
    fn exchanges_with(&self, n: NodeNo, _whom: NodeNo) -> bool {
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
        let waits = self.nodes[n.0]
            .asking
            .as_ref()
            .is_some_and(|a| a.contacts.get(peer).is_some_and(|contact| contact.conn == Some(conn)));
        if waits && !self.conns[conn.0].opener_open {
            self.note("timeout", n.0, [conn.0 as u64, 0]);
            self.shut(conn, End::Opener);
        }
    }

    /// The connection a node dialled is open.
    pub(super) fn connected(&mut self, conn: ConnNo) {
        let (n, peer) = (self.conns[conn.0].opener, self.conns[conn.0].peer);
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        if asking.contacts.get(peer).is_none_or(|contact| contact.conn != Some(conn)) {
            return;
        }
        self.conns[conn.0].opener_open = true;
        let contact = &mut asking.contacts[peer];
        contact.heard = true;
        contact.announced = ChunkRanges::new();
        let tier = if peer >= asking.parents {
            Tier::Site
        } else {
            match self.nodes[self.conns[conn.0].answerer.0].role {
                Role::Relay => Tier::Relay,
                _ => Tier::Origin,
            }
        };
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        asking.fetch.handle_connected(now, peer_id(peer), tier);
        self.flush(conn, End::Opener);
        self.heed(n);
        self.grown(n);
        self.drive(n);
    }

    /// A peer answered the handshake of the swarm.
    pub(super) fn opened(&mut self, n: NodeNo, peer: usize) {
        if let Some(asking) = &mut self.nodes[n.0].asking {
            asking.contacts[peer].tries = 0;
            asking.contacts[peer].pause = REDIAL;
        }
    }

    /// A peer's connection ended, or could not be made.
    pub(super) fn lost(&mut self, n: NodeNo, peer: usize) {
        let now = self.clock(n);
        let starts = self.nodes[n.0].starts;
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let is_parent = peer < asking.parents;
        let contact = &mut asking.contacts[peer];
        let (whom, conn) = (contact.node, contact.conn.take());
        let was_relay =
            self.nodes[whom.0].role == Role::Relay && conn.is_some_and(|conn| self.conns[conn.0].opener_open);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let tier = match (is_parent, was_relay) {
            (false, _) => Tier::Site,
            (true, true) => Tier::Relay,
            (true, false) => Tier::Origin,
        };
        let contact = &mut asking.contacts[peer];
        contact.heard = true;
        asking.fetch.handle_disconnected(now, peer_id(peer), tier);
        contact.tries += 1;
        if !is_parent && contact.tries >= NEIGHBOUR_TRIES {
            contact.gone = true;
            asking.fetch.handle_gone(peer_id(peer));
        } else if !contact.gone {
            let pause = contact.pause;
            contact.pause = (pause * 2).min(REDIAL_MAX);
            self.queue.after(pause, Event::Dial(n, starts, peer));
        }
        self.drive(n);
    }

    /// Whether a parent nearer than the connected ones may still connect. Returns the time until
    /// which the node waits for it.
    fn waits_for_nearer(&self, n: NodeNo) -> Option<Timestamp> {
        let asking = self.nodes[n.0].asking.as_ref()?;
        let until = asking.started + NEARER_GRACE;
        if self.queue.now() >= until {
            return None;
        }
        let parents = &asking.contacts[..asking.parents.min(asking.contacts.len())];
        let connected = |c: &Contact| c.conn.is_some_and(|conn| self.conns[conn.0].opener_open);
        let first = parents.iter().position(connected)?;
        (!parents[..first].iter().all(|c| c.heard)).then_some(until)
    }

    /// Sends all requests that are possible, handles the events of the fetch, and sets the next
    /// wake-up.
    pub(super) fn drive(&mut self, n: NodeNo) {
        let now = self.clock(n);
        let waits = self.waits_for_nearer(n);
        let mut requests = Vec::new();
        while waits.is_none()
            && let Some(request) = self.nodes[n.0].asking.as_mut().and_then(|a| a.fetch.poll_request(now))
        {
            requests.push(request);
        }
        while let Some(event) = self.nodes[n.0].asking.as_mut().and_then(|a| a.fetch.poll_event()) {
            match event {
                FetchEvent::Abandon(_, batch) => {
                    requests.retain(|(_, asked, _)| *asked != batch);
                    self.abandon(n, batch);
                }
                FetchEvent::Unavailable(chunks) => {
                    self.note("unavailable", n.0, [chunks.len(), 0]);
                    if self.nodes[n.0].role == Role::Leaf {
                        return self.attempt_failed(n);
                    }
                    self.gone_upstream(n, &chunks);
                }
                FetchEvent::Dropped(peer, fault) => self.dropped(n, peer.0 as usize, fault),
            }
        }
        // Requests go out after the events: a chunk requested here may have been open in a batch
        // that an event abandons.
        for (peer, batch, chunks) in requests {
            self.start_batch(n, peer.0 as usize, batch, chunks);
        }
        let Some(asking) = &self.nodes[n.0].asking else { return };
        if self.nodes[n.0].role == Role::Leaf && asking.fetch.is_idle() {
            return self.finish(n);
        }
        let due = waits.or_else(|| asking.fetch.poll_timeout(now).map(|at| self.when(n, at)));
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

    fn start_batch(&mut self, n: NodeNo, peer: usize, batch: BatchId, chunks: ChunkRanges) {
        self.check_request(n, peer, &chunks);
        self.note("ask", n.0, [peer as u64, chunks.len()]);
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let Some(conn) = asking.contacts[peer].conn else {
            asking.fetch.handle_batch_end(now, batch);
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
    fn dropped(&mut self, n: NodeNo, peer: usize, fault: PeerFault) {
        self.note("dropped", n.0, [peer as u64, u64::from(fault == PeerFault::WrongBytes)]);
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        asking.contacts[peer].gone = true;
        if let Some(conn) = asking.contacts[peer].conn.take() {
            self.close_for(conn, End::Opener, fault == PeerFault::WrongBytes);
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
            let until = self.queue.now() + self.nodes[n.0].leaf.linger.max(HAND_ON);
            self.linger(n, until);
        }
    }

    /// A finished pull leaves when no exchanging node has the swarm open here any more, or at
    /// `until`.
    pub(super) fn linger(&mut self, n: NodeNo, until: Timestamp) {
        let is_asker = |c: &&ConnNo| {
            let c = &self.conns[c.0];
            c.answerer == n && c.answerer_open && c.member.is_some()
        };
        if self.queue.now() >= until || !self.nodes[n.0].conns.iter().any(|c| is_asker(&c)) {
            return self.leave(n);
        }
        self.queue.after(LOOK, Event::Linger(n, self.nodes[n.0].starts, until));
    }
}
