//! Control streams: records, neighbours, announcements. Carries out the news of the core's
//! `AskerGossip` and `AnswererGossip`.

use bytes::Bytes;
use distd_core::NodeId;
use distd_core::bounds::RECORD_SECONDS_MAX;
use distd_core::proto::Frame;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    Advertise, AnswererGossip, AnswererNews, AskerNews, Neighbour, NeighbourSource, Requester, SiteKey,
    may_dial,
};

use super::conn::{ConnNo, End, Member, Payload};
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
        self.gossip(conn, to);
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
                self.site_changed(n, &site);
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
            ControlEvent::Open(theirs) => {
                // An exchanging asker sends its record next, which is handled first.
                if !theirs.exchanges {
                    self.conns[conn.0].answerer_gossip = Some(AnswererGossip::new(now));
                }
            }
            ControlEvent::Peers(records) => {
                let first = self.conns[conn.0].answerer_gossip.is_none();
                if first {
                    self.conns[conn.0].answerer_gossip = Some(AnswererGossip::new(now));
                }
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
                if first {
                    directory.handle_joined(&site, asker.id(), resident, manifest);
                    self.conns[conn.0].member = Some(Member { site: site.clone(), serves, resident });
                    self.site_changed(n, &site);
                }
            }
            ControlEvent::PeersWanted => {
                if let Some(gossip) = &mut self.conns[conn.0].answerer_gossip {
                    gossip.handle_peers_wanted();
                }
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
                if let Some(site) = self.conns[conn.0].member.as_ref().map(|member| member.site.clone()) {
                    self.nodes[n.0].answering.directory.handle_shuns(unix, &site, asker.id(), nodes);
                    self.site_changed(n, &site);
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
            if c.member.as_ref().is_some_and(|member| member.site == *site)
                && let Some(gossip) = &mut c.answerer_gossip
            {
                gossip.handle_site_change(now);
                self.plan_news(conn, End::Answerer);
            }
        }
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

    /// Schedules a look for news of one end, unless an earlier one is scheduled, which schedules the
    /// next.
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
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let (now, unix) = (self.clock(n), self.unix(n));
        let member = self.conns[conn.0].member.clone();
        let answering = &self.nodes[n.0].answering;
        let c = &mut self.conns[conn.0];
        if self.nodes[n.0].role == Role::Origin
            && let Some(member) = &member
        {
            c.answerer_control.shun(answering.directory.shuns(&member.site).distrusted_by_origin());
        }
        let Some(gossip) = c.answerer_gossip.as_mut().filter(|gossip| gossip.advertises(why)) else {
            return;
        };
        let ranked = member.map(|member| {
            let holders: Vec<_> =
                answering.leases.get(&member.site).map(|l| l.holders(now).collect()).unwrap_or_default();
            let asker = Requester { node: asker.id(), manifest: self.manifest, chunks: &self.swarm };
            answering.directory.ranked(unix, &member.site, asker, &holders)
        });
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
