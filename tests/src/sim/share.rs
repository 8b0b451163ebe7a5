//! Control streams: records, neighbours, announcements. Carries out the news of the core's
//! `AskerGossip` and `AnswererGossip`.

use std::net::IpAddr;

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::bounds::RECORD_SECONDS_MAX;
use distd_core::proto::Frame;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    Advertise, AnswererGossip, AnswererNews, AskerNews, Neighbour, NeighbourSource, SiteKey, SiteRule,
    may_dial,
};

use super::conn::{ConnNo, End, Payload};
use super::node::{NodeNo, Role};
use super::rules::Rule;
use super::world::{Event, Sim};

/// How long a record is valid, seconds.
pub(super) const RECORD_SECONDS: u64 = RECORD_SECONDS_MAX / 2;

impl Sim {
    /// The record that a node sends of itself. Receivers refuse it only by its dates, because
    /// records are not signed here.
    pub(super) fn own_record(&self, n: NodeNo) -> PeerRecord {
        let node = &self.nodes[n.0];
        PeerRecord {
            sequence: node.starts << 32 | self.queue.now().0 >> 20,
            expires: self.unix(n) + RECORD_SECONDS,
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

    /// The site to which a node assigns another, by its record.
    fn site_of(&self, n: NodeNo, of: NodeNo, record: &PeerRecord) -> Option<SiteKey> {
        let rule = match self.nodes[n.0].role {
            Role::Origin => SiteRule::NamedOrNetwork,
            Role::Relay => SiteRule::Named,
            Role::Leaf => SiteRule::All,
        };
        rule.site_of(record, self.seen(n, of))
    }

    /// The address at which a node sees another. An origin sees only that of the other's NAT.
    fn seen(&self, n: NodeNo, of: NodeNo) -> IpAddr {
        match self.nodes[n.0].role {
            Role::Origin => NodeNo::public_address(self.nodes[of.0].site),
            _ => of.address().ip(),
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
        self.gossip(conn, to);
    }

    /// Handles an event of the asking side.
    fn told(&mut self, conn: ConnNo, event: ControlEvent) {
        let (n, peer) = (self.conns[conn.0].opener, self.conns[conn.0].peer);
        let now = self.clock(n);
        if let ControlEvent::Peers(records) = event {
            return self.meet(n, records);
        }
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        match event {
            ControlEvent::Open(_) => asking.asker.handle_handshake(peer),
            ControlEvent::Have(chunks) => {
                if let Some(contact) = asking.contacts.get_mut(&peer) {
                    contact.announced.extend(&chunks);
                }
                asking.asker.handle_have(now, peer, &chunks);
            }
            ControlEvent::Choked(choke) => asking.asker.handle_choked(now, peer, choke.retry_after),
            ControlEvent::Shuns(nodes) => asking.asker.handle_distrusted(now, peer, nodes),
            ControlEvent::Peers(_)
            | ControlEvent::Unchoked
            | ControlEvent::PeersWanted
            | ControlEvent::Capability(_)
            | ControlEvent::Halt(_) => return,
        }
        self.drive(n);
    }

    /// Takes records of neighbours that were advertised to a node, as `Neighbourhood::take` does.
    fn meet(&mut self, n: NodeNo, records: Vec<PeerRecord>) {
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
            let site = SiteKey::default();
            let sites = &mut self.nodes[n.0].answering.sites;
            if sites.handle_learned(unix, &site, whom.id(), manifest, record) {
                self.site_changed(n, &site);
            }
        }
        self.met(n, NeighbourSource::Advertised, found);
    }

    fn met(&mut self, n: NodeNo, source: NeighbourSource, found: Vec<Neighbour>) {
        let now = self.clock(n);
        if let Some(asking) = &mut self.nodes[n.0].asking {
            asking.asker.handle_neighbours(now, source, found);
            self.drive(n);
        }
    }

    /// Dials back the nodes that have the swarm open at a leaf.
    fn dial_back(&mut self, n: NodeNo) {
        let (now, unix) = (self.clock(n), self.unix(n));
        let node = &self.nodes[n.0];
        if node.role != Role::Leaf || !self.has(Rule::DialBack) {
            return;
        }
        let mut callers = node.answering.sites.callers(&self.manifest);
        callers.retain(|caller| may_dial(now, unix, &n.id(), caller, &node.dial_backoff, &node.quarantine));
        self.met(n, NeighbourSource::Caller, callers);
    }

    /// Handles an event of the answering side.
    fn heard(&mut self, conn: ConnNo, event: ControlEvent) {
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let (now, unix, manifest) = (self.clock(n), self.unix(n), self.manifest);
        let member = self.conns[conn.0].member;
        let sites = &mut self.nodes[n.0].answering.sites;
        match (event, member) {
            (ControlEvent::Open(theirs), _) => {
                // An exchanging asker sends its record next, which is handled first.
                if !theirs.exchanges {
                    self.conns[conn.0].answerer_gossip = Some(AnswererGossip::new(now));
                }
            }
            (ControlEvent::Peers(records), member) => {
                let first = self.conns[conn.0].answerer_gossip.is_none();
                if first {
                    self.conns[conn.0].answerer_gossip = Some(AnswererGossip::new(now));
                }
                let Some(own) = records.into_iter().next().filter(|own| self.record_holds(n, own)) else {
                    return;
                };
                let (site, seen) = (self.site_of(n, asker, &own), self.seen(n, asker));
                let sites = &mut self.nodes[n.0].answering.sites;
                match (member, site) {
                    (Some(member), _) => sites.handle_renewed(unix, member, seen, own),
                    (None, Some(site)) if first => {
                        let joined = sites.handle_joined(unix, site.clone(), asker.id(), manifest, own);
                        self.conns[conn.0].member = Some(joined);
                        self.conns[conn.0].site = site.clone();
                        self.site_changed(n, &site);
                    }
                    (None, _) => {}
                }
            }
            (ControlEvent::PeersWanted, _) => {
                if let Some(gossip) = &mut self.conns[conn.0].answerer_gossip {
                    gossip.handle_peers_wanted();
                }
            }
            (ControlEvent::Have(chunks), Some(member)) => sites.handle_have(now, member, &chunks),
            (ControlEvent::Shuns(nodes), Some(member)) => {
                sites.handle_shuns(unix, member, nodes);
                let site = self.conns[conn.0].site.clone();
                self.site_changed(n, &site);
            }
            (ControlEvent::Have(_) | ControlEvent::Shuns(_), None) => {}
            (
                ControlEvent::Choked(_)
                | ControlEvent::Unchoked
                | ControlEvent::Capability(_)
                | ControlEvent::Halt(_),
                _,
            ) => {}
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

    /// A node shuns other nodes than before.
    pub(super) fn shuns_changed(&mut self, n: NodeNo) {
        for conn in self.conns_of(n, End::Opener) {
            if let Some(gossip) = &mut self.conns[conn.0].opener_gossip {
                gossip.handle_shuns();
                self.gossip(conn, End::Opener);
            }
        }
    }

    /// The open connections of which a node is this end.
    fn conns_of(&self, n: NodeNo, end: End) -> Vec<ConnNo> {
        let is_open = |conn: &&ConnNo| {
            let c = &self.conns[conn.0];
            c.node(end) == n && c.is_open(end)
        };
        self.nodes[n.0].conns.iter().filter(is_open).copied().collect()
    }

    /// The directory of a site changed.
    fn site_changed(&mut self, n: NodeNo, site: &SiteKey) {
        let now = self.clock(n);
        for conn in self.conns_of(n, End::Answerer) {
            let c = &mut self.conns[conn.0];
            if c.member.is_some()
                && c.site == *site
                && let Some(gossip) = &mut c.answerer_gossip
            {
                gossip.handle_site_change(now);
                self.plan_news(conn, End::Answerer);
            }
        }
        self.dial_back(n);
    }

    /// A leaf holds more.
    pub(super) fn grown(&mut self, n: NodeNo) {
        // A relay does not report its growth: its announcements are regular ones.
        if self.nodes[n.0].role != Role::Leaf {
            return;
        }
        let now = self.clock(n);
        for conn in self.nodes[n.0].conns.iter().copied().collect::<Vec<_>>() {
            let c = &mut self.conns[conn.0];
            let end = c.end_of(n);
            match (end, &mut c.opener_gossip, &mut c.answerer_gossip) {
                (End::Opener, Some(gossip), _) if !gossip.has_growth() => gossip.handle_growth(),
                (End::Answerer, _, Some(gossip)) if !gossip.has_growth() => gossip.handle_growth(now),
                _ => continue,
            }
            self.plan_news(conn, end);
        }
    }

    /// Schedules a look for news of one end, unless an earlier one is scheduled, which schedules
    /// the next.
    fn plan_news(&mut self, conn: ConnNo, end: End) {
        let c = &self.conns[conn.0];
        let Some(due) = c.news_timeout(end).filter(|_| c.is_open(end)) else { return };
        let due = self.when(c.node(end), due).max(self.queue.now());
        let looks = self.conns[conn.0].looks(end);
        if looks.first().is_none_or(|first| *first > due) {
            looks.insert(due);
            self.queue.at(due, Event::Gossip(conn, end));
        }
    }

    /// Sends the news of one end of a connection, and plans the next look.
    pub(super) fn gossip(&mut self, conn: ConnNo, end: End) {
        if !self.conns[conn.0].is_open(end) {
            return;
        }
        let n = self.conns[conn.0].node(end);
        let now = self.clock(n);
        match end {
            End::Opener => {
                while let Some(news) =
                    self.conns[conn.0].opener_gossip.as_mut().and_then(|gossip| gossip.poll(now))
                {
                    self.send_asker_news(conn, news);
                }
            }
            End::Answerer => {
                while let Some(news) =
                    self.conns[conn.0].answerer_gossip.as_mut().and_then(|gossip| gossip.poll(now))
                {
                    match news {
                        AnswererNews::Announce => {
                            self.check_announced(n);
                            let held = self.says(n);
                            self.conns[conn.0].answerer_control.announce(&held);
                        }
                        AnswererNews::Advertise(why) => self.advertise(conn, why),
                    }
                }
            }
        }
        self.flush(conn, end);
        self.plan_news(conn, end);
    }

    fn send_asker_news(&mut self, conn: ConnNo, news: AskerNews) {
        let n = self.conns[conn.0].opener;
        match news {
            AskerNews::Shun => {
                let shunned = self.shunned(n);
                self.conns[conn.0].opener_control.shun(&shunned);
            }
            AskerNews::Announce => {
                let Some(asking) = &self.nodes[n.0].asking else { return };
                let (held, wanted) = (self.says(n), asking.wanted.clone());
                let c = &mut self.conns[conn.0];
                if let Some(gossip) = &c.opener_gossip {
                    c.opener_control.announce(&gossip.announced(held, &wanted));
                }
            }
            AskerNews::Record => {
                let own = self.own_record(n);
                self.conns[conn.0].opener_control.send_peers(vec![own]);
            }
        }
    }

    /// Advertises neighbours to an asker, and names the nodes that the origin distrusts.
    fn advertise(&mut self, conn: ConnNo, why: Advertise) {
        let n = self.conns[conn.0].answerer;
        let (now, unix) = (self.clock(n), self.unix(n));
        let sites = &self.nodes[n.0].answering.sites;
        let c = &mut self.conns[conn.0];
        if let Some(member) = c.member {
            c.answerer_control.shun(&sites.distrusted(member));
        }
        let Some(gossip) = c.answerer_gossip.as_mut().filter(|gossip| gossip.advertises(why)) else {
            return;
        };
        let ranked = c.member.map(|member| sites.neighbours(now, unix, member, &self.swarm));
        if let Some(records) = gossip.advertise(why, ranked.unwrap_or_default()) {
            c.answerer_control.send_peers(records);
        }
    }

    /// The chunks that a node announces.
    fn says(&self, n: NodeNo) -> ChunkRanges {
        let node = &self.nodes[n.0];
        if node.behaviour.boasts { self.swarm.clone() } else { node.store.held.intersection(&self.swarm) }
    }
}
