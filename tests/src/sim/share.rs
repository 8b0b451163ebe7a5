//! Control streams: records, neighbours, announcements. Does the work of `distd-peer` around the
//! core's `Directory`.

use std::collections::BTreeMap;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::bounds::RECORD_SECONDS_MAX;
use distd_core::proto::Frame;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::{GATHER, GATHER_UP, TOLD_ENOUGH, TOLD_MAX};
use distd_core::swarm::{Neighbour, NeighbourSource, Requester, SiteKey, may_dial};

use super::conn::{ConnNo, End, Member, Payload};
use super::node::{NodeNo, Role};
use super::rules::Rule;
use super::world::{Event, Sim};

impl Sim {
    /// The record that a node sends of itself. Receivers refuse it only by its dates, because
    /// records are not signed here.
    pub(super) fn own_record(&self, n: NodeNo) -> PeerRecord {
        let node = &self.nodes[n.0];
        PeerRecord {
            sequence: node.starts << 32 | self.queue.now().0 >> 20,
            expires: self.unix(n) + RECORD_SECONDS_MAX / 2,
            resident: node.leaf.resident,
            site: String::new(),
            addresses: if node.leaf.serves { vec![n.address()] } else { Vec::new() },
            certificate: Bytes::new(),
            signature: [0; 64],
        }
    }

    fn record_holds(&self, n: NodeNo, record: &PeerRecord) -> bool {
        let now = self.unix(n);
        record.expires > now && record.expires <= now + RECORD_SECONDS_MAX
    }

    /// The name that a node gives the site of another: an origin tells networks apart, a relay's
    /// office is one site.
    fn site_key(&self, n: NodeNo, of: NodeNo) -> SiteKey {
        match self.nodes[n.0].role {
            Role::Origin => SiteKey(format!("network {}", self.nodes[of.0].site)),
            _ => SiteKey::default(),
        }
    }

    /// Sends the pending frames of the control machine of one end.
    pub(super) fn flush(&mut self, conn: ConnNo, end: End) {
        loop {
            let c = &mut self.conns[conn.0];
            let frame = match end {
                End::Opener => c.opener_control.poll_transmit(),
                End::Answerer => c.answerer_control.poll_transmit(),
            };
            let Some(frame) = frame else { return };
            self.send(conn, end, Payload::Control(frame));
        }
    }

    /// Handles a frame of a control stream.
    pub(super) fn control(&mut self, conn: ConnNo, to: End, frame: Frame) {
        let c = &mut self.conns[conn.0];
        let event = match to {
            End::Opener => c.opener_control.handle_frame(frame),
            End::Answerer => c.answerer_control.handle_frame(frame),
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => self.fail(&format!("a control stream was broken: {error}")),
        };
        match (to, event) {
            (End::Opener, Some(event)) => self.told(conn, event),
            (End::Answerer, Some(event)) => self.heard(conn, event),
            _ => {}
        }
        self.flush(conn, to);
    }

    /// Handles an event of the asking side.
    fn told(&mut self, conn: ConnNo, event: ControlEvent) {
        let (n, peer) = (self.conns[conn.0].opener, self.conns[conn.0].peer);
        let now = self.clock(n);
        if let ControlEvent::Peers(records) = event {
            return self.meet(n, records, NeighbourSource::Advertised);
        }
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        match event {
            ControlEvent::Open(_) => asking.asker.handle_joined(peer),
            ControlEvent::Have(chunks) => {
                if let Some(contact) = asking.contacts.get_mut(&peer) {
                    contact.announced.extend(&chunks);
                }
                asking.asker.handle_have(now, peer, &chunks);
            }
            ControlEvent::Choked(choke) => asking.asker.handle_choked(now, peer, choke.retry_after),
            ControlEvent::Shuns(nodes) => asking.asker.handle_distrusted(now, peer, nodes),
            ControlEvent::Peers(_) | ControlEvent::Unchoked | ControlEvent::PeersWanted => return,
        }
        self.drive(n);
    }

    /// Takes records of neighbours that were advertised to a node or that dialled it, as
    /// `Neighbourhood::take` does.
    fn meet(&mut self, n: NodeNo, records: Vec<PeerRecord>, source: NeighbourSource) {
        let (now, unix, manifest) = (self.clock(n), self.unix(n), self.manifest);
        let mut found = Vec::new();
        for record in records {
            let Some((whom, address)) =
                record.addresses.first().and_then(|address| Some((NodeNo::at(*address)?, *address)))
            else {
                continue;
            };
            let neighbour = Neighbour { node: whom.id(), address };
            let node = &self.nodes[n.0];
            let usable = may_dial(now, unix, &n.id(), &neighbour, &node.dial_backoff, &node.quarantine);
            if !usable || !self.record_holds(n, &record) {
                continue;
            }
            found.push(neighbour);
            let (site, resident) = (self.site_key(n, whom), record.resident);
            let directory = &mut self.nodes[n.0].answering.directory;
            if directory.handle_record(unix, &site, whom.id(), record) {
                directory.handle_joined(&site, whom.id(), resident, manifest);
                self.tell_later(n);
            }
        }
        if let Some(asking) = &mut self.nodes[n.0].asking {
            asking.asker.handle_neighbours(now, source, found);
            self.drive(n);
        }
    }

    /// Handles an event of the answering side.
    fn heard(&mut self, conn: ConnNo, event: ControlEvent) {
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let (now, unix, manifest) = (self.clock(n), self.unix(n), self.manifest);
        match event {
            ControlEvent::Open(_) => self.grown(n),
            ControlEvent::Peers(records) => {
                let Some(own) = records.into_iter().next().filter(|own| self.record_holds(n, own)) else {
                    return;
                };
                let site = self.site_key(n, asker);
                let (serves, resident) = (!own.addresses.is_empty(), own.resident);
                if self.nodes[n.0].role == Role::Leaf && self.has(Rule::DialBack) {
                    self.meet(n, vec![own.clone()], NeighbourSource::Caller);
                }
                let directory = &mut self.nodes[n.0].answering.directory;
                directory.handle_record(unix, &site, asker.id(), own);
                directory.handle_joined(&site, asker.id(), resident, manifest);
                self.conns[conn.0].member = Some(Member { site, serves, resident });
                self.tell_later(n);
            }
            ControlEvent::PeersWanted => {
                self.conns[conn.0].told = Some(BTreeMap::new());
                self.tell_neighbours(conn, true);
            }
            ControlEvent::Have(chunks) => {
                let Some(member) = self.conns[conn.0].member.clone() else { return };
                let role = self.nodes[n.0].role;
                let answering = &mut self.nodes[n.0].answering;
                answering.directory.handle_have(&member.site, asker.id(), member.resident, &chunks);
                if role == Role::Origin && member.serves && !member.resident {
                    answering.leases.entry(member.site).or_default().handle_have(now, asker.id(), &chunks);
                }
            }
            ControlEvent::Shuns(nodes) => {
                if let Some(member) = &self.conns[conn.0].member {
                    self.nodes[n.0].answering.directory.handle_shuns(unix, &member.site, asker.id(), nodes);
                    self.tell_later(n);
                }
            }
            ControlEvent::Choked(_) | ControlEvent::Unchoked => {}
        }
    }

    /// The nodes that a node has in quarantine.
    pub(super) fn shunned(&self, n: NodeNo) -> Vec<NodeId> {
        let node = &self.nodes[n.0];
        let shunned = if node.behaviour.slanders {
            (0..self.nodes.len()).map(NodeNo).filter(|whom| *whom != n).map(NodeNo::id).collect()
        } else {
            node.quarantine.nodes(self.unix(n))
        };
        if self.has(Rule::Shuns) { shunned } else { Vec::new() }
    }

    /// Tells a node's parents which nodes it shuns.
    pub(super) fn tell_shuns(&mut self, n: NodeNo) {
        let shunned = self.shunned(n);
        let Some(asking) = &self.nodes[n.0].asking else { return };
        let parents = asking.contacts.iter().filter(|(peer, _)| asking.asker.is_parent(**peer));
        for conn in parents.filter_map(|(_, contact)| contact.conn).collect::<Vec<_>>() {
            if self.conns[conn.0].opener_open {
                self.conns[conn.0].opener_control.shun(&shunned);
                self.flush(conn, End::Opener);
            }
        }
    }

    /// A node of a site came: schedules its advertisement to the others.
    fn tell_later(&mut self, n: NodeNo) {
        let starts = self.nodes[n.0].starts;
        if !std::mem::replace(&mut self.nodes[n.0].answering.tell_due, true) {
            self.queue.after(GATHER, Event::Tell(n, starts));
        }
    }

    pub(super) fn tell(&mut self, n: NodeNo) {
        self.nodes[n.0].answering.tell_due = false;
        for conn in self.nodes[n.0].conns.iter().copied().collect::<Vec<_>>() {
            if self.conns[conn.0].answerer == n {
                self.tell_neighbours(conn, false);
            }
        }
    }

    /// Advertises new neighbours to a peer; with `always` sends a list even if it is empty.
    fn tell_neighbours(&mut self, conn: ConnNo, always: bool) {
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let Some(mut told) = self.conns[conn.0].told.take() else { return };
        let enough = told.len() >= TOLD_ENOUGH;
        let mut fresh = Vec::new();
        if let Some(member) = self.conns[conn.0].member.as_ref().filter(|_| !enough) {
            let now = self.clock(n);
            let answering = &self.nodes[n.0].answering;
            let holders: Vec<_> =
                answering.leases.get(&member.site).map(|l| l.holders(now).collect()).unwrap_or_default();
            let asker = Requester { node: asker.id(), manifest: self.manifest, chunks: &self.swarm };
            fresh = answering.directory.ranked(self.unix(n), &member.site, asker, &holders);
        }
        fresh.retain(|(node, record)| told.get(node).is_none_or(|known| *known < record.sequence));
        while told.len() > TOLD_MAX {
            told.pop_first();
        }
        told.extend(fresh.iter().map(|(node, record)| (*node, record.sequence)));
        let fresh: Vec<_> = fresh.into_iter().map(|(_, record)| record).collect();
        if self.nodes[n.0].role == Role::Origin
            && let Some(member) = &self.conns[conn.0].member
        {
            let shuns = self.nodes[n.0].answering.directory.shuns(&member.site);
            self.conns[conn.0].answerer_control.shun(shuns.distrusted_by_origin());
            self.flush(conn, End::Answerer);
        }
        self.conns[conn.0].told = Some(told);
        if always || !fresh.is_empty() {
            self.conns[conn.0].answerer_control.send_peers(fresh);
            self.flush(conn, End::Answerer);
        }
    }

    /// A node holds more, or a new node listens: schedules an announcement.
    pub(super) fn grown(&mut self, n: NodeNo) {
        if self.nodes[n.0].role != Role::Leaf {
            return;
        }
        let starts = self.nodes[n.0].starts;
        let answering = &mut self.nodes[n.0].answering;
        if !std::mem::replace(&mut answering.announce_due, true) {
            self.queue.after(GATHER, Event::Announce(n, starts));
        }
        if !std::mem::replace(&mut answering.announce_up_due, true) {
            self.queue.after(GATHER_UP, Event::AnnounceUp(n, starts));
        }
    }

    /// The chunks that a node announces.
    fn says(&self, n: NodeNo) -> ChunkRanges {
        let node = &self.nodes[n.0];
        if node.behaviour.boasts { self.swarm.clone() } else { node.store.held.intersection(&self.swarm) }
    }

    /// Announces chunks to nodes that dialled this node.
    pub(super) fn announce(&mut self, n: NodeNo) {
        self.nodes[n.0].answering.announce_due = false;
        self.check_announced(n);
        let held = self.says(n);
        for conn in self.nodes[n.0].conns.iter().copied().collect::<Vec<_>>() {
            if self.conns[conn.0].answerer == n {
                self.conns[conn.0].answerer_control.announce(&held);
                self.flush(conn, End::Answerer);
            }
        }
    }

    /// Announces chunks to nodes that this node dialled; to parents only the chunks that this pull
    /// was started for.
    pub(super) fn announce_up(&mut self, n: NodeNo) {
        self.nodes[n.0].answering.announce_up_due = false;
        let held = self.says(n);
        let Some(asking) = &self.nodes[n.0].asking else { return };
        if !self.nodes[n.0].leaf.exchanges {
            return;
        }
        let wanted = asking.wanted.intersection(&held);
        let is_parent = |peer| asking.asker.is_parent(peer);
        let news: Vec<_> = self.nodes[n.0]
            .conns
            .iter()
            .filter(|conn| self.conns[conn.0].opener == n && self.conns[conn.0].opener_open)
            .map(|conn| (*conn, is_parent(self.conns[conn.0].peer)))
            .collect();
        for (conn, parent) in news {
            self.conns[conn.0].opener_control.announce(if parent { &wanted } else { &held });
            self.flush(conn, End::Opener);
        }
    }
}
