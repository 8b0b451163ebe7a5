//! Building a simulation: nodes, sites, and their special behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use distd_core::ranges::ChunkRanges;
use distd_core::time::Timestamp;
use distd_core::{ChunkId, ManifestId};

use super::log::Log;
use super::net::{Pipe, Rate, Wan, Weather};
use super::node::{Answering, Behaviour, LeafConfig, Node, NodeNo, Role, Store};
use super::queue::Queue;
use super::world::{Event, Sim};
use crate::Rng;

/// Number of the origin's site.
const ORIGIN_SITE: usize = 0;

/// Rate of a node's own link.
const NODE_RATE: Rate = Rate::megabits(1000);

/// The right bytes of a chunk.
pub(super) fn right_bytes(id: ChunkId) -> [u8; 8] {
    id.0.to_be_bytes()
}

/// The chunks from `first` to `last`.
pub(super) fn set(first: u64, last: u64) -> ChunkRanges {
    [ChunkId(first)..=ChunkId(last)].into_iter().collect()
}

impl Sim {
    /// Makes a swarm of the chunks 1 to `chunks`, 64 KiB each, and an origin that has them.
    /// `rng_seed` determines the run.
    pub fn new(rng_seed: u64, chunks: u64) -> (Self, NodeNo) {
        // A data centre's link.
        let wan = Wan {
            up: Rate::megabits(10_000),
            down: Rate::megabits(10_000),
            latency: Duration::from_millis(5),
        };
        let mut sim = Self {
            queue: Queue::new(),
            rng_seed,
            rng: Rng::new(rng_seed),
            log: Log::new(),
            manifest: ManifestId([7; 32]),
            swarm: set(1, chunks),
            chunk_bytes: 64 << 10,
            weather: Weather::default(),
            wans: Vec::new(),
            nodes: Vec::new(),
            conns: Vec::new(),
            parked: Vec::new(),
            egress: BTreeMap::new(),
            egress_max: BTreeMap::new(),
            verifies: true,
            off: BTreeSet::new(),
            incomplete: 0,
        };
        sim.site(wan);
        let origin = sim.node(Role::Origin, ORIGIN_SITE, &[], LeafConfig::default());
        let all = sim.swarm.clone();
        sim.give(origin, &all);
        sim.nodes[origin.0].tx = Pipe::new(wan.up);
        sim.nodes[origin.0].rx = Pipe::new(wan.down);
        sim.nodes[origin.0].up = true;
        (sim, origin)
    }

    /// Adds a site behind a link of its own and returns its number.
    pub fn site(&mut self, wan: Wan) -> usize {
        self.wans.push((wan, Pipe::new(wan.up), Pipe::new(wan.down)));
        self.wans.len() - 1
    }

    fn node(&mut self, role: Role, site: usize, parents: &[NodeNo], leaf: LeafConfig) -> NodeNo {
        self.nodes.push(Node {
            role,
            site,
            parents: parents.to_vec(),
            leaf,
            behaviour: Behaviour::default(),
            up: false,
            starts: 0,
            store: Store::default(),
            asking: None,
            answering: Answering::of(role),
            conns: BTreeSet::new(),
            quarantine: Default::default(),
            dial_backoff: Default::default(),
            tx: Pipe::new(NODE_RATE),
            rx: Pipe::new(NODE_RATE),
            island: 0,
            clock_ahead: 0,
            wall_ahead: 0,
            done: None,
            began: Timestamp(0),
            failed_attempts: 0,
            received: BTreeMap::new(),
            twice: 0,
            wrong: BTreeMap::new(),
        });
        NodeNo(self.nodes.len() - 1)
    }

    /// Adds a relay to a site; it starts at once.
    pub fn relay(&mut self, site: usize, parents: &[NodeNo]) -> NodeNo {
        let relay = self.node(Role::Relay, site, parents, LeafConfig::default());
        self.queue.after(Duration::ZERO, Event::Start(relay));
        relay
    }

    /// Adds a leaf that asks `parents`, the nearest first; it starts after `delay`.
    pub fn leaf_as(&mut self, site: usize, parents: &[NodeNo], leaf: LeafConfig, delay: Duration) -> NodeNo {
        let leaf = self.node(Role::Leaf, site, parents, leaf);
        self.incomplete += 1;
        self.queue.after(delay, Event::Start(leaf));
        leaf
    }

    /// Adds `count` ordinary leaves, which start within 20 milliseconds.
    pub fn leaves(&mut self, count: usize, site: usize, parents: &[NodeNo]) -> Vec<NodeNo> {
        (0..count)
            .map(|_| {
                let delay = Duration::from_micros(self.rng.below(20_000));
                self.leaf_as(site, parents, LeafConfig::default(), delay)
            })
            .collect()
    }

    /// Puts verified chunks on a node's disk.
    pub fn give(&mut self, n: NodeNo, chunks: &ChunkRanges) {
        let store = &mut self.nodes[n.0].store;
        store.held.extend(chunks);
        store.bytes.extend(chunks.ids().map(|id| (id, right_bytes(id))));
    }

    /// Puts the chunks from `first` to `last` on a node's disk.
    pub fn give_range(&mut self, n: NodeNo, first: u64, last: u64) {
        self.give(n, &set(first, last));
    }

    /// Changes how a node answers.
    pub fn behave(&mut self, n: NodeNo, behaviour: Behaviour) {
        self.nodes[n.0].behaviour = behaviour;
    }

    /// Gives a node a link of another rate.
    pub fn link(&mut self, n: NodeNo, rate: Rate) {
        self.nodes[n.0].tx = Pipe::new(rate);
        self.nodes[n.0].rx = Pipe::new(rate);
    }

    /// Sets a node's clocks ahead: the monotonic one, which starts anywhere, and the wall clock.
    pub fn skew(&mut self, n: NodeNo, monotonic_seconds: i64, wall_seconds: i64) {
        self.nodes[n.0].clock_ahead = monotonic_seconds * 1_000_000;
        self.nodes[n.0].wall_ahead = wall_seconds;
    }

    /// Loses `permille` messages in a thousand.
    pub fn lose(&mut self, permille: u64) {
        self.weather.loss_permille = permille;
    }

    /// Delays each message by a random time up to `most`.
    pub fn jitter(&mut self, most: Duration) {
        self.weather.jitter = most;
    }

    /// Fails the run as soon as the origin has sent a site more than `percent` of the swarm.
    pub fn bound_egress(&mut self, site: usize, percent: u64) {
        self.egress_max.insert(site, self.swarm.len() * percent / 100);
    }

    /// Stores received chunks without comparing them, so that a test can check that the invariants
    /// notice wrong bytes.
    pub fn verify_nothing(&mut self) {
        self.verifies = false;
    }
}
