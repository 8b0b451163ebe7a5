//! What holds after every step, and what a scenario asks at the end.

use std::ops::RangeInclusive;
use std::time::Duration;

use distd_core::ChunkId;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_core::time::Timestamp;

use super::build::right_bytes;
use super::node::{Node, NodeNo, Role};
use super::world::Sim;

impl Sim {
    /// Ends the run with a message and the last events.
    pub(super) fn fail(&self, message: &str) -> ! {
        panic!("after {:?}: {message}\nlast events:\n{}", self.now(), self.log.tail())
    }

    /// Held ⇒ verified.
    pub(super) fn check_stored(&self, n: NodeNo, id: ChunkId) {
        if self.nodes[n.0].store.bytes.get(&id) != Some(&right_bytes(id)) {
            self.fail(&format!("node {} holds chunk {} with wrong bytes", n.0, id.0));
        }
    }

    /// Announced ⇒ held with the right bytes, of who does not boast.
    pub(super) fn check_announced(&self, n: NodeNo) {
        let node = &self.nodes[n.0];
        if node.store.held.len() != node.store.bytes.len() as u64 {
            self.fail(&format!("node {} announces what is not on its disk", n.0));
        }
    }

    /// Not asked for twice at once but for a few, not asked for although held, of a neighbour only what it announced, few batches a peer.
    pub(super) fn check_request(&self, n: NodeNo, peer: usize, chunks: &ChunkRanges) {
        let node = &self.nodes[n.0];
        let Some(asking) = &node.asking else { return };
        let twice = asking.asks.values().map(|ask| ask.ask.open().intersection(chunks).len()).sum::<u64>();
        if twice > self.doubled_max() || (twice > 0 && twice < chunks.len()) {
            self.fail(&format!("node {} asks peer {peer} for {twice} chunks that are open elsewhere", n.0));
        }
        if !node.store.held.intersection(chunks).is_empty() {
            self.fail(&format!("node {} asks for what it holds", n.0));
        }
        let contact = &asking.contacts[peer];
        if peer >= asking.parents && !chunks.difference(&contact.announced).is_empty() {
            self.fail(&format!("node {} asks neighbour {} for what it never announced", n.0, contact.node.0));
        }
        if node.quarantine.contains(&contact.node) {
            self.fail(&format!("node {} asks node {} after wrong bytes", n.0, contact.node.0));
        }
        let open = asking.asks.values().filter(|ask| ask.peer == peer).count();
        if open >= FetchConfig::default().batches_per_peer {
            self.fail(&format!("node {} has {open} batches open at one peer and asks for another", n.0));
        }
    }

    /// Chunks that may be asked of two peers at once: one in a hundred, in the end-game.
    fn doubled_max(&self) -> u64 {
        (self.swarm.len() / 100).max(4)
    }

    pub(super) fn count_egress(&mut self, to: NodeNo) {
        let site = self.nodes[to.0].site;
        let sent = self.egress.entry(site).or_default();
        *sent += 1;
        let sent = *sent;
        if self.egress_max.get(&site).is_some_and(|most| sent > *most) {
            self.fail(&format!("the origin sent {sent} chunks into site {site}"));
        }
    }

    /// Queues are bounded: of events by what nodes and connections can have put off.
    pub(super) fn check_bounds(&self) {
        let most = 64 * (self.nodes.len() + self.conns.len() + 1) + 4096;
        if self.queue.len() + self.parked.len() > most {
            self.fail(&format!("{} events and {} messages wait", self.queue.len(), self.parked.len()));
        }
    }

    pub(super) fn check_complete(&self, n: NodeNo) {
        if !self.swarm.difference(&self.nodes[n.0].store.held).is_empty() {
            self.fail(&format!("node {} takes itself to be complete", n.0));
        }
    }

    /// Everything every node holds has the right bytes.
    pub(super) fn check_all(&self) {
        for n in 0..self.nodes.len() {
            for id in self.nodes[n].store.held.ids() {
                self.check_stored(NodeNo(n), id);
            }
            self.check_announced(NodeNo(n));
        }
    }

    /// Leaves that lack something, for the message of a failure.
    pub(super) fn unfinished(&self) -> String {
        let lacking = |node: &&(usize, &Node)| node.1.role == Role::Leaf && node.1.done.is_none();
        let nodes: Vec<_> = self.nodes.iter().enumerate().collect();
        let line = |(n, node): &(usize, &Node)| {
            let asking = node.asking.as_ref();
            format!(
                "  node {n}: holds {}, up {}, idle {:?}, batches {:?}, wake {:?}\n",
                node.store.held.len(),
                node.up,
                asking.map(|a| a.fetch.is_idle()),
                asking.map(|a| a.asks.len()),
                asking.and_then(|a| a.wake_at),
            )
        };
        nodes.iter().filter(lacking).take(10).map(line).collect()
    }

    /// Number of events, and the hash over all.
    pub fn digest(&self) -> (u64, String) {
        self.log.digest()
    }

    /// Chunks the origin sent into a site, in percent of the swarm, rounded up.
    pub fn egress_percent(&self, site: usize) -> u64 {
        (self.egress.get(&site).copied().unwrap_or(0) * 100).div_ceil(self.swarm.len())
    }

    /// # Panics
    /// When the origin sent a site less or more than this, in percent of the swarm.
    pub fn assert_egress(&self, site: usize, percent: RangeInclusive<u64>) {
        let sent = self.egress_percent(site);
        assert!(
            percent.contains(&sent),
            "the origin sent {sent} % of the swarm into site {site}, not {percent:?}"
        );
    }

    /// Chunks a node has, verified.
    pub fn held(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].store.held.len()
    }

    /// Chunks a node got and stored from another.
    pub fn received(&self, n: NodeNo, from: NodeNo) -> u64 {
        self.nodes[n.0].received.get(&from).copied().unwrap_or(0)
    }

    /// Chunks a node got and stored from all.
    pub fn received_all(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].received.values().sum()
    }

    /// Chunks that came although they were held.
    pub fn received_twice(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].twice
    }

    /// # Panics
    /// When more chunks came to a node twice than the end-game may cost: one in a hundred, and a few of a small swarm.
    pub fn assert_few_twice(&self, n: NodeNo) {
        let twice = self.received_twice(n);
        assert!(twice <= self.doubled_max(), "{twice} chunks came to node {} twice", n.0);
    }

    /// Wrong chunks a node got from another.
    pub fn wrong(&self, n: NodeNo, from: NodeNo) -> u64 {
        self.nodes[n.0].wrong.get(&from).copied().unwrap_or(0)
    }

    /// Whether a node has another in quarantine.
    pub fn has_quarantined(&self, n: NodeNo, whom: NodeNo) -> bool {
        self.nodes[n.0].quarantine.contains(&whom)
    }

    /// Attempts of a leaf that ended because nobody was left to ask.
    pub fn failed_attempts(&self, n: NodeNo) -> u32 {
        self.nodes[n.0].failed_attempts
    }

    /// Whether a leaf has had everything.
    pub fn is_done(&self, n: NodeNo) -> bool {
        self.nodes[n.0].done.is_some()
    }

    /// How long a leaf took.
    pub fn took(&self, n: NodeNo) -> Option<Duration> {
        let node = &self.nodes[n.0];
        node.done.map(|done: Timestamp| done.since(node.began))
    }
}
