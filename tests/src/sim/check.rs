//! Invariants that hold after every step, and assertions of a scenario at its end.

use std::ops::RangeInclusive;
use std::time::Duration;

use distd_core::ChunkId;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{FetchConfig, PeerId};
use distd_core::time::Timestamp;

use super::build::right_bytes;
use super::node::{Node, NodeNo, Role};
use super::world::Sim;

impl Sim {
    /// Ends the run with a message and the last events.
    pub(super) fn fail(&self, message: &str) -> ! {
        panic!("after {:?}: {message}\nlast events:\n{}", self.now(), self.log.tail())
    }

    /// Checks: held ⇒ verified.
    pub(super) fn check_stored(&self, n: NodeNo, id: ChunkId) {
        if self.nodes[n.0].store.bytes.get(&id) != Some(&right_bytes(id)) {
            self.fail(&format!("node {} holds chunk {} with wrong bytes", n.0, id.0));
        }
    }

    /// Checks: announced ⇒ held with the right bytes, for nodes that do not boast.
    pub(super) fn check_announced(&self, n: NodeNo) {
        let node = &self.nodes[n.0];
        if node.store.held.len() != node.store.bytes.len() as u64 {
            self.fail(&format!("node {} announces what is not on its disk", n.0));
        }
    }

    /// Checks a request: no chunk is open in another batch except for a few, no chunk is held
    /// already, a neighbour is asked only for chunks that it announced, and few batches are open to
    /// one peer.
    pub(super) fn check_request(&self, n: NodeNo, peer: PeerId, chunks: &ChunkRanges) {
        let node = &self.nodes[n.0];
        let Some(asking) = &node.asking else { return };
        let twice = asking.asks.values().map(|ask| ask.ask.open().intersection(chunks).len()).sum::<u64>();
        if twice > self.doubled_max() || (twice > 0 && twice < chunks.len()) {
            self.fail(&format!("node {} asks {peer:?} for {twice} chunks that are open elsewhere", n.0));
        }
        if !node.store.held.intersection(chunks).is_empty() {
            self.fail(&format!("node {} asks for what it holds", n.0));
        }
        let Some(contact) = asking.contacts.get(&peer) else { return };
        if !asking.asker.is_parent(peer) && !chunks.difference(&contact.announced).is_empty() {
            self.fail(&format!("node {} asks neighbour {} for what it never announced", n.0, contact.node.0));
        }
        if node.quarantine.until(&contact.node.id(), self.unix(n)).is_some() {
            self.fail(&format!("node {} asks node {} after wrong bytes", n.0, contact.node.0));
        }
        let open = asking.asks.values().filter(|ask| ask.peer == peer).count();
        if open >= FetchConfig::default().batches_per_peer {
            self.fail(&format!("node {} has {open} batches open at one peer and asks for another", n.0));
        }
    }

    /// Number of chunks that may be asked of two peers at once, in the end-game: one in a hundred.
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

    /// Checks that queues are bounded, by the number of events that nodes and connections can
    /// cause.
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

    /// Checks that every chunk of every node has the right bytes.
    pub(super) fn check_all(&self) {
        for n in 0..self.nodes.len() {
            for id in self.nodes[n].store.held.ids() {
                self.check_stored(NodeNo(n), id);
            }
            self.check_announced(NodeNo(n));
        }
    }

    /// The leaves that lack something, for the message of a failure.
    pub(super) fn unfinished(&self) -> String {
        let lacking = |node: &&(usize, &Node)| node.1.role == Role::Leaf && node.1.done.is_none();
        let nodes: Vec<_> = self.nodes.iter().enumerate().collect();
        let line = |(n, node): &(usize, &Node)| {
            let asking = node.asking.as_ref();
            format!(
                "  node {n}: holds {}, up {}, idle {:?}, batches {:?}, wake {:?}\n",
                node.store.held.len(),
                node.up,
                asking.map(|a| a.asker.is_idle()),
                asking.map(|a| a.asks.len()),
                asking.and_then(|a| a.wake_at),
            )
        };
        nodes.iter().filter(lacking).take(10).map(line).collect()
    }

    /// Number of events, and the hash over all of them.
    pub fn digest(&self) -> (u64, String) {
        self.log.digest()
    }

    /// Number of chunks the origin sent into a site, in percent of the swarm, rounded up.
    pub fn egress_percent(&self, site: usize) -> u64 {
        (self.egress.get(&site).copied().unwrap_or(0) * 100).div_ceil(self.swarm.len())
    }

    /// Asserts a bound on the origin's traffic into a site.
    ///
    /// # Panics
    /// If the origin sent the site less or more than `percent` of the swarm.
    pub fn assert_egress(&self, site: usize, percent: RangeInclusive<u64>) {
        let sent = self.egress_percent(site);
        assert!(
            percent.contains(&sent),
            "the origin sent {sent} % of the swarm into site {site}, not {percent:?}"
        );
    }

    /// Prints the run's results on one line if `DISTD_TEST_SIM_NUMBERS` is set, for a comparison of
    /// two builds: virtual time, chunks that the origin sent into sites, chunks that leaves
    /// received, received twice and received wrong, and the times of the leaves.
    fn print_numbers(&self) {
        if std::env::var_os("DISTD_TEST_SIM_NUMBERS").is_none() {
            return;
        }
        let leaves = || self.nodes.iter().filter(|node| node.role == Role::Leaf);
        let mut took: Vec<_> =
            leaves().filter_map(|node| Some(node.done?.since(node.began).as_secs_f64())).collect();
        took.sort_unstable_by(f64::total_cmp);
        let at = |part: usize| took.get(took.len().saturating_sub(1) * part / 2).copied().unwrap_or(0.0);
        let thread = std::thread::current();
        println!(
            "sim {} {} now {:.3} egress {} received {} twice {} wrong {} p50 {:.3} last {:.3}",
            thread.name().unwrap_or_default(),
            self.rng_seed,
            self.now().as_secs_f64(),
            self.egress.values().sum::<u64>(),
            leaves().flat_map(|node| node.received.values()).sum::<u64>(),
            leaves().map(|node| node.twice).sum::<u64>(),
            leaves().flat_map(|node| node.wrong.values()).sum::<u64>(),
            at(1),
            at(2),
        );
    }

    /// Number of verified chunks that a node has.
    pub fn held(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].store.held.len()
    }

    /// Number of chunks that a node received from another and stored.
    pub fn received(&self, n: NodeNo, from: NodeNo) -> u64 {
        self.nodes[n.0].received.get(&from).copied().unwrap_or(0)
    }

    /// Number of chunks that a node received from all others and stored.
    pub fn received_all(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].received.values().sum()
    }

    /// Number of chunks that a node received although it held them.
    pub fn received_twice(&self, n: NodeNo) -> u64 {
        self.nodes[n.0].twice
    }

    /// Asserts a bound on chunks received twice.
    ///
    /// # Panics
    /// If a node received more chunks twice than the end-game may cost: one in a hundred, and a few
    /// of a small swarm.
    pub fn assert_few_twice(&self, n: NodeNo) {
        let twice = self.received_twice(n);
        assert!(twice <= self.doubled_max(), "{twice} chunks came to node {} twice", n.0);
    }

    /// Number of wrong chunks that a node received from another.
    pub fn wrong(&self, n: NodeNo, from: NodeNo) -> u64 {
        self.nodes[n.0].wrong.get(&from).copied().unwrap_or(0)
    }

    /// Whether a node has another in quarantine.
    pub fn has_quarantined(&self, n: NodeNo, whom: NodeNo) -> bool {
        self.nodes[n.0].quarantine.until(&whom.id(), self.unix(n)).is_some()
    }

    /// Number of attempts of a leaf that ended because no peer was left to ask.
    pub fn failed_attempts(&self, n: NodeNo) -> u32 {
        self.nodes[n.0].failed_attempts
    }

    /// Whether a leaf has had every chunk.
    pub fn is_done(&self, n: NodeNo) -> bool {
        self.nodes[n.0].done.is_some()
    }

    /// Time from a leaf's first start until it had every chunk; `None` if it never had.
    pub fn took(&self, n: NodeNo) -> Option<Duration> {
        let node = &self.nodes[n.0];
        node.done.map(|done: Timestamp| done.since(node.began))
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.print_numbers();
    }
}
