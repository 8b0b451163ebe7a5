//! [`Sim`]: the nodes, the links, the queue of future events, and the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use distd_core::ManifestId;
use distd_core::proto::Frame;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, Linger, WaitId};
use distd_core::time::Timestamp;

use super::conn::{Conn, ConnNo, End, Message, Payload};
use super::log::Log;
use super::net::{LAN_LATENCY, Pipe, Wan, Weather};
use super::node::{Node, NodeNo};
use super::queue::Queue;
use super::rules::Rule;
use crate::Rng;

/// Epoch of every monotonic clock, so that a clock may be behind.
const EPOCH: i64 = 30 * 24 * 3600 * 1_000_000;

/// True unix seconds at the start of a run.
const UNIX: i64 = 1_700_000_000;

/// Bytes of a frame of a control stream or a request, with its packet.
const SMALL_BYTES: u64 = 200;

/// Wake-ups, arrivals and delayed actions. A node's events name the start to which they belong, so
/// that a crash makes them void.
#[derive(Debug)]
pub(super) enum Event {
    /// A message reaches a stage of its path.
    Hop(Message, Stage),
    Arrive(Message),
    /// The answerer learns that a chunk has arrived.
    Acked(ConnNo),
    Wake(NodeNo, u64),
    DialTimeout(ConnNo),
    /// A connection may have been silent for too long.
    Idle(ConnNo, End),
    /// One end of a connection may have news for the other.
    Gossip(ConnNo, End),
    SlotWait(ConnNo, BatchId, WaitId),
    Upstream(ConnNo, BatchId),
    Start(NodeNo),
    Linger(NodeNo, u64, Linger),
}

/// Stages of the path of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    Out,
    Up,
    Down,
    In,
}

/// One run of the simulation.
pub struct Sim {
    pub(super) queue: Queue<Event>,
    /// Number of the run, and the random numbers that follow from it.
    pub(super) rng_seed: u64,
    pub(super) rng: Rng,
    pub(super) log: Log,
    pub(super) manifest: ManifestId,
    /// The chunks of the swarm.
    pub(super) swarm: ChunkRanges,
    /// Length of a chunk, bytes.
    pub(super) chunk_bytes: u64,
    pub(super) weather: Weather,
    pub(super) wans: Vec<(Wan, Pipe, Pipe)>,
    pub(super) nodes: Vec<Node>,
    pub(super) conns: Vec<Conn>,
    /// Messages that wait for a partition to heal.
    pub(super) parked: Vec<Message>,
    /// Number of chunks that the origin sent into each site, and the bounds on it.
    pub(super) egress: BTreeMap<usize, u64>,
    pub(super) egress_max: BTreeMap<usize, u64>,
    /// Whether received bytes are compared with the hash; a test of the invariants switches it off.
    pub(super) verifies: bool,
    /// Rules that are switched off.
    pub(super) off: BTreeSet<Rule>,
    /// Number of leaves that are up, or about to be, and lack something.
    pub(super) incomplete: usize,
}

impl Sim {
    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.queue.now().since(Timestamp(0))
    }

    /// The time that a node's monotonic clock shows.
    pub(super) fn clock(&self, n: NodeNo) -> Timestamp {
        self.clock_at(n, self.queue.now())
    }

    fn clock_at(&self, n: NodeNo, at: Timestamp) -> Timestamp {
        Timestamp((at.0 as i64 + EPOCH + self.nodes[n.0].clock_ahead) as u64)
    }

    /// Virtual time at which a node's clock will show `shown`.
    pub(super) fn when(&self, n: NodeNo, shown: Timestamp) -> Timestamp {
        let ahead = self.clock_at(n, Timestamp(0));
        Timestamp(shown.0.saturating_sub(ahead.0))
    }

    /// The time that a node's wall clock shows, unix seconds.
    pub(super) fn unix(&self, n: NodeNo) -> u64 {
        let true_now = UNIX + self.now().as_secs() as i64;
        (true_now + self.nodes[n.0].wall_ahead) as u64
    }

    /// Runs until `done`, which is evaluated before each event, returns true.
    ///
    /// # Panics
    /// If `limit` of virtual time passes before, no event is left, or an invariant breaks.
    pub fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.queue.now() + limit;
        while !done(self) {
            match self.queue.pop(end) {
                Some(event) => self.step(event),
                None => self.fail(&format!("not {what} within {limit:?}\n{}", self.unfinished())),
            }
        }
    }

    /// Runs until every leaf that is up has everything.
    ///
    /// # Panics
    /// As [`Sim::run_until`].
    pub fn run_until_complete(&mut self, limit: Duration) {
        self.run_until("complete", limit, |sim| sim.incomplete == 0);
        self.check_all();
    }

    /// Runs for `time`.
    ///
    /// # Panics
    /// If an invariant breaks.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.queue.now() + time;
        while let Some(event) = self.queue.pop(end) {
            self.step(event);
        }
        self.queue.rest_until(end);
        self.check_all();
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Hop(message, stage) => self.hop(message, stage),
            Event::Arrive(message) => self.arrive(message),
            Event::Acked(conn) => self.acked(conn),
            Event::Wake(n, starts) => {
                // A wake-up is void when an earlier one replaced it.
                let now = self.queue.now();
                let due = self.is_start(n, starts).then_some(self.nodes[n.0].asking.as_mut()).flatten();
                if let Some(asking) = due.filter(|asking| asking.wake_at == Some(now)) {
                    asking.wake_at = None;
                    self.note("wake", n.0, [0, 0]);
                    self.drive(n);
                }
            }
            Event::DialTimeout(conn) => self.dial_timeout(conn),
            Event::Idle(conn, end) => self.idle(conn, end),
            Event::Gossip(conn, end) => {
                let now = self.queue.now();
                self.conns[conn.0].looks(end).remove(&now);
                self.gossip(conn, end);
            }
            Event::SlotWait(conn, batch, wait) => self.slot_waited(conn, batch, wait),
            Event::Upstream(conn, batch) => self.upstream_waited(conn, batch),
            Event::Start(n) => self.start(n),
            Event::Linger(n, starts, linger) => {
                if self.is_start(n, starts) {
                    self.linger(n, linger);
                }
            }
        }
        self.check_bounds();
    }

    pub(super) fn is_start(&self, n: NodeNo, starts: u64) -> bool {
        self.nodes[n.0].up && self.nodes[n.0].starts == starts
    }

    pub(super) fn note(&mut self, what: &'static str, who: usize, numbers: [u64; 2]) {
        self.log.note(self.queue.now(), what, who, numbers);
    }

    /// Latency of the path between two nodes, one way.
    pub(super) fn latency(&self, a: NodeNo, b: NodeNo) -> Duration {
        let (a, b) = (self.nodes[a.0].site, self.nodes[b.0].site);
        if a == b { LAN_LATENCY } else { self.wans[a].0.latency + self.wans[b].0.latency }
    }

    /// Sends a message from one end of a connection. Nothing happens when that end is closed.
    pub(super) fn send(&mut self, conn: ConnNo, from: End, payload: Payload) {
        let c = &self.conns[conn.0];
        let large = matches!(payload, Payload::Answer(_, Frame::Data(_)));
        let bytes = if large { self.chunk_bytes } else { SMALL_BYTES };
        let message = Message { conn, to: from.other(), bytes, payload };
        if large {
            return self.hop(message, Stage::Out);
        }
        let (a, b) = (c.node(from), c.node(from.other()));
        if self.nodes[a.0].island != self.nodes[b.0].island {
            self.parked.push(message);
            return;
        }
        let latency = self.latency(a, b);
        let at = self.queue.now() + self.weather.delay(&mut self.rng, latency);
        self.arrive_at(at, message);
    }

    /// Schedules the arrival of a small message behind earlier ones in the same direction.
    fn arrive_at(&mut self, at: Timestamp, message: Message) {
        let last = self.conns[message.conn.0].last_to(message.to);
        *last = at.max(*last);
        let at = *last;
        self.queue.at(at, Event::Arrive(message));
    }

    fn hop(&mut self, message: Message, stage: Stage) {
        let c = &self.conns[message.conn.0];
        let (from, to) = (c.node(message.to.other()), c.node(message.to));
        let (here, there) = (self.nodes[from.0].site, self.nodes[to.0].site);
        let now = self.queue.now();
        let (passed, next) = match stage {
            Stage::Out => {
                let next = if here == there { Stage::In } else { Stage::Up };
                (self.nodes[from.0].tx.pass(now, message.bytes), Some(next))
            }
            Stage::Up => (self.wans[here].1.pass(now, message.bytes), Some(Stage::Down)),
            Stage::Down => (self.wans[there].2.pass(now, message.bytes), Some(Stage::In)),
            Stage::In => (self.nodes[to.0].rx.pass(now, message.bytes), None),
        };
        let Some(next) = next else {
            self.queue.at(passed, Event::Arrive(message));
            return;
        };
        // The path between two nodes begins after the site's own link, or within one site after the
        // node's.
        let crosses = matches!(stage, Stage::Up) || here == there;
        if crosses && self.nodes[from.0].island != self.nodes[to.0].island {
            self.parked.push(message);
            return;
        }
        let delay = if crosses {
            let latency = self.latency(from, to);
            self.weather.delay(&mut self.rng, latency)
        } else {
            Duration::ZERO
        };
        self.queue.at(passed + delay, Event::Hop(message, next));
    }

    /// Sends messages that a partition held back, as far as it has healed.
    pub(super) fn unpark(&mut self) {
        for message in std::mem::take(&mut self.parked) {
            let c = &self.conns[message.conn.0];
            let (from, to) = (c.node(message.to.other()), c.node(message.to));
            if self.nodes[from.0].island != self.nodes[to.0].island {
                self.parked.push(message);
                continue;
            }
            let latency = self.latency(from, to);
            let at = self.queue.now() + self.weather.delay(&mut self.rng, latency);
            if message.bytes > SMALL_BYTES {
                self.queue.at(at, Event::Hop(message, Stage::In));
            } else {
                self.arrive_at(at, message);
            }
        }
    }

    fn arrive(&mut self, message: Message) {
        let Message { conn, to, payload, .. } = message;
        let c = &self.conns[conn.0];
        let (n, from) = (c.node(to), c.node(to.other()));
        let (what, numbers) = describe(&payload);
        self.note(what, n.0, [conn.0 as u64, numbers]);
        if !self.nodes[n.0].up {
            return;
        }
        if matches!(payload, Payload::Hello) {
            return self.welcome(conn);
        }
        // The opener's end opens with the welcome message.
        let dialled = to == End::Opener && matches!(payload, Payload::Welcome | Payload::Close(_));
        if !self.conns[conn.0].is_open(to) && !dialled {
            if self.conns[conn.0].is_open(to.other()) && !matches!(payload, Payload::Close(_)) {
                // Another process answers, or no process: a stateless reset.
                self.send(conn, to, Payload::Close(false));
            }
            return;
        }
        if matches!(payload, Payload::Answer(_, Frame::Data(_))) {
            self.queue.after(self.latency(n, from), Event::Acked(conn));
        }
        match payload {
            Payload::Hello => {}
            Payload::Welcome => self.connected(conn),
            Payload::Close(wrong_bytes) => self.closed(conn, to, wrong_bytes),
            Payload::Control(frame) => self.control(conn, to, frame),
            Payload::Request(batch, wanted) => self.requested(conn, batch, wanted),
            Payload::Withdraw(batch) => self.withdrawn(conn, batch),
            Payload::Answer(batch, frame) => self.answered(n, batch, conn, frame),
            Payload::Fin(batch, frames) => self.answer_ended(n, batch, conn, frames),
        }
    }
}

/// Name and number of a message in the log.
fn describe(payload: &Payload) -> (&'static str, u64) {
    match payload {
        Payload::Hello => ("hello", 0),
        Payload::Welcome => ("welcome", 0),
        Payload::Control(Frame::Have(ranges)) => ("have", ranges.to_set().len()),
        Payload::Control(_) => ("control", 0),
        Payload::Request(_, wanted) => ("request", wanted.len()),
        Payload::Answer(_, Frame::Data(data)) => ("data", data.id.0),
        Payload::Answer(..) => ("refusal", 0),
        Payload::Fin(batch, _) => ("fin", batch.0),
        Payload::Withdraw(batch) => ("withdraw", batch.0),
        Payload::Close(wrong_bytes) => ("close", u64::from(*wrong_bytes)),
    }
}
