//! Fetching of one swarm's chunks: runs a core [`Fetch`] over real connections, with one task for
//! each peer (`dial`) and one for each batch (`batch`).
//!
//! # Goals
//!
//! - The core decides which chunk to request from which peer. The driver carries each decision out
//!   and reports back what happened.
//! - The sink gets a chunk only after its bytes matched the hash in the manifest.
//! - A peer that fails, stalls or leaves costs only its open batches: the driver dials the peer
//!   again, and the core requests the rest elsewhere.
//! - A peer that sends wrong bytes is quarantined and not asked again.
//!
//! # Non-goals
//!
//! - The driver chooses neither chunks nor peers: `distd_core::swarm` does.
//! - It stores nothing: a [`ChunkSink`] does, a device's target or a relay's store.
//! - It fetches no manifest: the caller brings the chunk list as a [`ChunkTable`] (see
//!   [`crate::manifest_fetch`]).
//!
//! # Example
//!
//! A device wants the chunks 7, 8 and 9. Its parents are a relay (index 0) and the origin (index
//! 1).
//!
//! 1. [`Driver::fetch_all`] registers both parents with the core as awaited, starts a dialling task
//!    for each, and wants 7–9. The core requests nothing yet.
//! 2. The origin connects first. The relay is nearer, so the driver waits for it up to
//!    `NEARER_GRACE` (1 s). The relay connects, and its certificate shows that it is a relay.
//! 3. `Fetch::poll_request` returns a batch of 7–9 for the relay. A batch task opens a stream,
//!    sends REQUEST 7–9 and finishes its side.
//! 4. The relay sends DATA 7 and DATA 9. The batch task checks both against their hashes, gives
//!    them to the sink and reports them to the driver. The core marks them as fetched.
//! 5. The relay waits 10 s for its own parent in vain and sends DONT_HAVE 8 (upstream failed). The
//!    core wants 8 again, pauses the relay, and requests 8 from it when the pause is over: a first
//!    upstream failure does not yet send the device to the origin. After a second failure the core
//!    requests 8 from the origin.
//! 6. DATA 8 arrives. The core is idle, and `fetch_all` returns `Ok`. Had every parent answered
//!    that 8 is not in the swarm, it would have returned [`FetchError::Unavailable`]; the sink
//!    would keep 7 and 9.

mod batch;
mod dial;
mod verified;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::proto::frame::{DontHaveReason, PeerRecord};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::{HEARSAY_DIALS_MAX, NEARER_GRACE, NEIGHBOURS_MAX};
use distd_core::swarm::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, ManifestId, NodeId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::batch::{BatchFailure, run_batch};
use self::dial::{Caller, DialTarget};
pub use self::verified::Verified;
use crate::clock::monotonic_now;
use crate::neighbours::{Neighbour, Neighbourhood};
use crate::net::SwarmHandle;
use crate::parents::{Parents, tier_of};
use crate::rates::Throttle;
use crate::share::Holdings;
use crate::table::ChunkTable;

/// Number of neighbours from earlier sessions that are dialled at the start.
const REMEMBERED_TRIED: usize = 8;

/// Interval at which the driver checks which peers its own download limit holds back. It is shorter
/// than the time after which the core requests the chunks of one silent peer from another.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Destination of verified chunks. Calls block at most for the disk.
pub trait ChunkSink: Send + Sync + 'static {
    /// Takes a chunk whose bytes matched its hash.
    ///
    /// # Errors
    /// An error ends the whole fetch: the sink cannot go on.
    fn accept(&self, entry: &Entry, packed: &PackedChunk, raw: &[u8]) -> Result<(), SinkError>;

    /// Takes several chunks that came together.
    ///
    /// # Errors
    /// The same as [`Self::accept`].
    fn accept_all(&self, chunks: &[Verified<'_>]) -> Result<(), SinkError> {
        chunks.iter().try_for_each(|chunk| self.accept(chunk.entry, chunk.packed, chunk.raw))
    }

    /// Whether the sink holds the chunk already, in which case it is not requested.
    fn holds(&self, _entry: &Entry) -> bool {
        false
    }

    /// Reports chunks that no parent can send.
    fn unavailable(&self, _chunks: &ChunkRanges) {}

    /// Reports chunks that are no longer wanted and not in flight.
    fn given_up(&self, _chunks: &ChunkRanges) {}
}

/// Reason why a sink cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("could not store a chunk")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Reason why a fetch ended without all its chunks.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// No remaining parent has these chunks.
    #[error("{count} chunks are not available from any parent{}", last_words(.last))]
    Unavailable {
        /// Number of chunks.
        count: u64,
        /// Last problem with a parent, for the message.
        last: Option<String>,
    },
}

fn last_words(last: &Option<String>) -> String {
    last.as_ref().map_or(String::new(), |text| format!("; last problem: {text}"))
}

enum Message {
    Connected(PeerId, SwarmHandle),
    Lost(PeerId, String),
    /// The link to this peer cannot be used any more.
    Breach(PeerId, String, PeerFault),
    Choked(PeerId, Duration),
    /// A neighbour announced chunks.
    Have(PeerId, ChunkRanges),
    /// Nodes that the peer, on behalf of several nodes of the site, asks this device not to use.
    DistrustedByOrigin(PeerId, BTreeSet<NodeId>),
    /// Records of neighbours that a peer advertised.
    Peers(Vec<PeerRecord>),
    /// Neighbours found by multicast DNS.
    Local(Vec<Neighbour>),
    /// A node may have dialled this device for the same swarm.
    Called,
    /// A neighbour has not answered several dials, and is not dialled any more.
    Gone(PeerId),
    HeldBack(BatchId),
    Chunks(BatchId, Vec<ChunkId>),
    DontHave(BatchId, ChunkRanges, DontHaveReason),
    BatchEnd(BatchId),
    BatchFailed(PeerId, BatchId, String, PeerFault),
    SinkFailed(SinkError),
}

/// Message to a running driver.
enum Want {
    More(ChunkRanges),
    NoMore(ChunkRanges),
    ReportedBadData,
}

/// Handle through which a running driver is asked for more chunks.
#[derive(Clone)]
pub struct DriverHandle(mpsc::UnboundedSender<Want>);

impl DriverHandle {
    /// Wants these chunks too. Chunks that are held or in flight are not requested again.
    pub fn want(&self, chunks: ChunkRanges) {
        // A driver that has ended has reported that to its sink.
        let _ = self.0.send(Want::More(chunks));
    }

    /// Drops the wish for chunks that nobody waits for any more. Those in flight still come.
    pub fn want_no_more(&self, chunks: ChunkRanges) {
        let _ = self.0.send(Want::NoMore(chunks));
    }

    /// Reports that a peer left because it got wrong bytes from this node.
    pub fn reported_bad_data(&self) {
        let _ = self.0.send(Want::ReportedBadData);
    }
}

/// A device's part in the exchange between the nodes of its site.
#[derive(Clone)]
pub struct Exchange {
    /// The device's neighbours and the connections to them.
    pub neighbourhood: Arc<Neighbourhood>,
    /// Chunks of the swarm that the device holds, announced as they grow.
    pub holdings: Arc<Holdings>,
}

/// A peer and the swarm opened at it.
#[derive(Clone)]
struct Joined {
    peer: PeerId,
    handle: SwarmHandle,
}

/// The fetch of one swarm.
pub struct Driver {
    parents: Arc<Parents>,
    manifest: ManifestId,
    table: Arc<ChunkTable>,
    sink: Arc<dyn ChunkSink>,
    fetch: Fetch,
    exchange: Option<Exchange>,
    wanted: Arc<ChunkRanges>,
    download: Option<Arc<Throttle>>,
    swarms: HashMap<PeerId, SwarmHandle>,
    /// Dialled neighbours. Their peer ids follow those of the parents.
    neighbours: HashMap<Neighbour, PeerId>,
    next_peer: u32,
    /// Parents that have connected or failed at least once.
    heard: HashSet<PeerId>,
    /// Nodes that the origin distrusts: several nodes of the site got wrong bytes from them.
    distrusted_by_origin: BTreeSet<NodeId>,
    started: Timestamp,
    messages_tx: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    wants: mpsc::UnboundedReceiver<Want>,
    batches: HashMap<BatchId, (PeerId, AbortHandle)>,
    /// When the driver last checked which peers its own limit holds back.
    looked: Timestamp,
    dialers: HashMap<PeerId, AbortHandle>,
    tasks: JoinSet<()>,
    last_problem: Option<String>,
}

impl Driver {
    /// Creates a driver for the swarm of `manifest`, whose chunks `table` lists.
    pub fn new(
        parents: Arc<Parents>,
        manifest: ManifestId,
        table: Arc<ChunkTable>,
        sink: Arc<dyn ChunkSink>,
        config: FetchConfig,
    ) -> (Self, DriverHandle) {
        let (messages_tx, messages) = mpsc::channel(1024);
        let (wants_tx, wants) = mpsc::unbounded_channel();
        let driver = Self {
            next_peer: parents.len() as u32,
            parents,
            manifest,
            table,
            sink,
            fetch: Fetch::new(config),
            exchange: None,
            wanted: Arc::default(),
            download: None,
            swarms: HashMap::new(),
            neighbours: HashMap::new(),
            heard: HashSet::new(),
            distrusted_by_origin: BTreeSet::new(),
            started: monotonic_now(),
            messages_tx,
            messages,
            wants,
            batches: HashMap::new(),
            looked: Timestamp::default(),
            dialers: HashMap::new(),
            tasks: JoinSet::new(),
            last_problem: None,
        };
        (driver, DriverHandle(wants_tx))
    }

    /// Takes part in the exchange between the nodes of the site.
    #[must_use]
    pub fn exchanging(mut self, exchange: Option<Exchange>) -> Self {
        self.exchange = exchange;
        self
    }

    /// Limits the download rate.
    #[must_use]
    pub fn limited(mut self, download: Option<Arc<Throttle>>) -> Self {
        self.download = download;
        self
    }

    /// Fetches `wanted` and returns when the sink has all of it.
    ///
    /// # Errors
    /// [`FetchError`]; chunks that the sink took before the error stay there.
    pub async fn fetch_all(mut self, wanted: ChunkRanges) -> Result<(), FetchError> {
        self.wanted = Arc::new(wanted.clone());
        self.dial_all();
        self.add_wanted(&wanted);
        while !self.fetch.is_idle() {
            if let Some(count) = self.step(false).await? {
                return Err(FetchError::Unavailable { count, last: self.last_problem.take() });
            }
        }
        Ok(())
    }

    /// Serves wishes until every [`DriverHandle`] is gone. Reports unavailable chunks to the sink.
    ///
    /// # Errors
    /// [`FetchError::Sink`].
    pub async fn run(mut self) -> Result<(), FetchError> {
        self.dial_all();
        while !(self.wants.is_closed() && self.wants.is_empty() && self.fetch.is_idle()) {
            self.step(true).await?;
        }
        Ok(())
    }

    fn dial_all(&mut self) {
        for index in 0..self.parents.len() {
            // Known to the core from the start, so that chunks wait for this parent instead of
            // being given up.
            self.dial(PeerId(index as u32), Tier::Origin, DialTarget::Parent(self.parents.clone(), index));
        }
        if let Some(exchange) = &self.exchange {
            let known = exchange.neighbourhood.remembered();
            let (mut local, tx) = (exchange.neighbourhood.local(), self.messages_tx.clone());
            local.mark_changed();
            self.tasks.spawn(async move {
                while local.changed().await.is_ok() {
                    let found = local.borrow_and_update().iter().cloned().collect();
                    if tx.send(Message::Local(found)).await.is_err() {
                        return;
                    }
                }
            });
            let (mut calls, tx) = (exchange.neighbourhood.calls(), self.messages_tx.clone());
            self.tasks.spawn(async move {
                while calls.changed().await.is_ok() && tx.send(Message::Called).await.is_ok() {}
            });
            self.dial_neighbours(known.into_iter().take(REMEMBERED_TRIED).collect(), HEARSAY_DIALS_MAX);
        }
    }

    fn dial(&mut self, peer: PeerId, tier: Tier, target: DialTarget) {
        self.fetch.handle_connected(monotonic_now(), peer, tier);
        self.fetch.handle_awaiting(peer);
        let (manifest, exchange, tx) = (self.manifest, self.exchange.clone(), self.messages_tx.clone());
        let task = Caller { peer, target, manifest, exchange, wanted: self.wanted.clone(), tx }.run();
        self.dialers.insert(peer, self.tasks.spawn(task));
    }

    /// Dials further neighbours, up to `most` in all.
    fn dial_neighbours(&mut self, neighbours: Vec<Neighbour>, most: usize) {
        let Some(exchange) = self.exchange.clone() else { return };
        for neighbour in neighbours {
            if self.neighbours.len() >= most || self.neighbours.contains_key(&neighbour) {
                continue;
            }
            let peer = PeerId(self.next_peer);
            self.next_peer += 1;
            self.neighbours.insert(neighbour.clone(), peer);
            self.dial(peer, Tier::Site, DialTarget::Neighbour(exchange.neighbourhood.clone(), neighbour));
        }
    }

    /// Name of a peer in the log.
    fn name(&self, peer: PeerId) -> String {
        match self.neighbours.iter().find(|(_, known)| **known == peer) {
            Some((neighbour, _)) => neighbour.address.to_string(),
            None => self.parents.address(peer.0 as usize).to_owned(),
        }
    }

    fn is_neighbour(&self, peer: PeerId) -> bool {
        peer.0 as usize >= self.parents.len()
    }

    fn add_wanted(&mut self, wanted: &ChunkRanges) {
        let missing: ChunkRanges = wanted
            .ids()
            .filter(|id| self.table.get(*id).is_some_and(|entry| !self.sink.holds(&entry)))
            .collect();
        self.fetch.want(&missing);
    }

    /// Runs one turn of the loop. Returns the number of chunks found unavailable, if any.
    async fn step(&mut self, serving: bool) -> Result<Option<u64>, FetchError> {
        let now = monotonic_now();
        self.excuse_held_back(now);
        let waiting = self.waits_for_nearer(now);
        while waiting.is_none()
            && let Some((peer, batch, chunks)) = self.fetch.poll_request(now)
        {
            self.start_batch(peer, batch, chunks);
        }
        let mut unavailable = None;
        while let Some(event) = self.fetch.poll_event() {
            match event {
                FetchEvent::Abandon(_, batch) => {
                    if let Some((_, task)) = self.batches.remove(&batch) {
                        task.abort();
                    }
                }
                FetchEvent::Unavailable(chunks) => {
                    self.sink.unavailable(&chunks);
                    unavailable = Some(chunks.len());
                }
                FetchEvent::Dropped(peer, fault) => {
                    tracing::warn!(peer = self.name(peer), ?fault, "peer is not asked any more");
                    if let Some(dialer) = self.dialers.remove(&peer) {
                        dialer.abort();
                    }
                    self.swarms.remove(&peer);
                }
            }
        }
        if unavailable.is_some() || (!serving && self.fetch.is_idle()) {
            return Ok(unavailable);
        }
        let mut wake = waiting.or_else(|| self.fetch.poll_timeout(now).map(|at| at.since(now)));
        if self.download.is_some() && !self.batches.is_empty() {
            wake = Some(wake.map_or(LOOK_EVERY, |wake| wake.min(LOOK_EVERY)));
        }
        let sleep = tokio::time::sleep(wake.unwrap_or(Duration::from_secs(3600)));
        tokio::select! {
            Some(message) = self.messages.recv() => {
                self.handle(message)?;
                // Choose the next requests once for all messages that have arrived.
                while let Ok(message) = self.messages.try_recv() {
                    self.handle(message)?;
                }
            }
            wanted = self.wants.recv(), if serving && !(self.wants.is_closed() && self.wants.is_empty()) => {
                let mut next = wanted;
                while let Some(wanted) = next {
                    self.heed(wanted);
                    next = self.wants.try_recv().ok();
                }
            }
            () = sleep => {}
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(None)
    }

    fn heed(&mut self, wanted: Want) {
        match wanted {
            Want::More(chunks) => self.add_wanted(&chunks),
            Want::NoMore(chunks) => {
                let given_up = self.fetch.want_no_more(monotonic_now(), &chunks);
                self.sink.given_up(&given_up);
            }
            Want::ReportedBadData => self.fetch.handle_reported_bad_data(monotonic_now()),
        }
    }

    /// Tells the core which batches this side's limit slows down. Their peers are not slow:
    /// whatever else such a peer sends queues behind the held-back bytes of its connection.
    fn excuse_held_back(&mut self, now: Timestamp) {
        let Some(limit) = &self.download else { return };
        if now.since(self.looked) < LOOK_EVERY {
            return;
        }
        self.looked = now;
        for (batch, (peer, _)) in &self.batches {
            if self.swarms.get(peer).is_some_and(|swarm| limit.holds(&swarm.link.node_id())) {
                self.fetch.handle_held_back(now, *batch);
            }
        }
    }

    /// Remaining time to wait for parents that come before a connected one and have neither
    /// connected nor failed. Meanwhile a farther parent that answers faster must not be asked for
    /// everything.
    fn waits_for_nearer(&self, now: Timestamp) -> Option<Duration> {
        let left = NEARER_GRACE.checked_sub(now.since(self.started)).filter(|left| !left.is_zero())?;
        let first = (0..self.parents.len()).find(|index| self.swarms.contains_key(&PeerId(*index as u32)))?;
        let heard = |index: usize| self.heard.contains(&PeerId(index as u32));
        (!(0..first).all(heard)).then_some(left)
    }

    fn handle(&mut self, message: Message) -> Result<(), FetchError> {
        let now = monotonic_now();
        match message {
            Message::Connected(peer, swarm) => {
                self.heard.insert(peer);
                self.fetch.handle_connected(now, peer, tier_of(swarm.link.role()));
                self.swarms.insert(peer, swarm);
                self.drop_distrusted(now);
            }
            Message::Lost(peer, problem) => {
                self.heard.insert(peer);
                tracing::debug!(peer = self.name(peer), problem, "peer lost");
                self.last_problem = Some(problem);
                let farthest = if self.is_neighbour(peer) { Tier::Site } else { Tier::Origin };
                let tier = self.swarms.remove(&peer).map_or(farthest, |s| tier_of(s.link.role()));
                self.fetch.handle_disconnected(now, peer, tier);
            }
            Message::Breach(peer, problem, fault) => {
                self.last_problem = Some(problem);
                self.fetch.handle_fault(now, peer, fault);
            }
            Message::Choked(peer, retry_after) => self.fetch.handle_choked(now, peer, retry_after),
            Message::Have(peer, chunks) => {
                self.fetch.handle_have(now, peer, &chunks.intersection(self.table.ids()));
            }
            Message::DistrustedByOrigin(peer, nodes) => {
                // Only the origin is believed about which relays lie.
                if self.swarms.get(&peer).is_some_and(|s| tier_of(s.link.role()) == Tier::Origin) {
                    self.distrusted_by_origin = nodes;
                    self.drop_distrusted(now);
                }
            }
            Message::Peers(records) => {
                if let Some(exchange) = &self.exchange {
                    let found = exchange.neighbourhood.take(self.manifest, records);
                    self.dial_neighbours(found, HEARSAY_DIALS_MAX);
                }
            }
            Message::Local(found) => self.dial_neighbours(found, HEARSAY_DIALS_MAX),
            Message::Called => {
                if let Some(exchange) = &self.exchange {
                    let callers = exchange.neighbourhood.callers(&self.manifest);
                    self.dial_neighbours(callers, NEIGHBOURS_MAX);
                }
            }
            Message::Gone(peer) => {
                self.fetch.handle_gone(peer);
                self.dialers.remove(&peer);
                // If the neighbour is advertised again, it is dialled again.
                self.neighbours.retain(|_, known| *known != peer);
            }
            Message::HeldBack(batch) => self.fetch.handle_held_back(now, batch),
            Message::Chunks(batch, ids) => {
                for id in ids {
                    self.fetch.handle_chunk(now, batch, id);
                }
            }
            Message::DontHave(batch, chunks, DontHaveReason::Leased) => {
                self.fetch.handle_leased(now, batch, &chunks);
            }
            Message::DontHave(batch, chunks, DontHaveReason::Upstream) => {
                self.fetch.handle_upstream_failed(now, batch, &chunks);
            }
            Message::DontHave(batch, chunks, reason) => {
                let for_now = reason == DontHaveReason::Busy;
                self.fetch.handle_dont_have(now, batch, &chunks, for_now);
            }
            Message::BatchEnd(batch) => {
                self.batches.remove(&batch);
                self.fetch.handle_batch_end(now, batch);
            }
            Message::BatchFailed(peer, batch, problem, fault) => {
                tracing::debug!(problem, ?fault, "batch failed");
                self.batches.remove(&batch);
                if fault == PeerFault::WrongBytes
                    && let Some(swarm) = self.swarms.get(&peer)
                {
                    tracing::warn!(peer = swarm.link.address(), problem, "peer sent wrong bytes");
                    self.parents.quarantine(&swarm.link);
                }
                self.last_problem = Some(problem);
                self.fetch.handle_fault(now, peer, fault);
            }
            Message::SinkFailed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn drop_distrusted(&mut self, now: Timestamp) {
        let theirs =
            self.swarms.iter().filter(|(_, swarm)| self.distrusted_by_origin.contains(&swarm.link.node_id()));
        theirs.for_each(|(peer, _)| self.fetch.handle_disowned(now, *peer));
    }

    fn start_batch(&mut self, peer: PeerId, batch: BatchId, chunks: ChunkRanges) {
        let Some(handle) = self.swarms.get(&peer).cloned() else {
            self.fetch.handle_batch_end(monotonic_now(), batch);
            return;
        };
        let (swarm, download) = (Joined { peer, handle }, self.download.clone());
        let (table, sink, tx) = (self.table.clone(), self.sink.clone(), self.messages_tx.clone());
        let task = async move {
            let end = match run_batch(&swarm, batch, chunks, &table, &*sink, download.as_deref(), &tx).await {
                Ok(()) => Message::BatchEnd(batch),
                Err(BatchFailure::Sink(error)) => Message::SinkFailed(error),
                Err(BatchFailure::Peer(problem, fault)) => Message::BatchFailed(peer, batch, problem, fault),
            };
            // The receiver is gone only if nobody waits for the driver's result.
            let _ = tx.send(end).await;
        };
        self.batches.insert(batch, (peer, self.tasks.spawn(task)));
    }
}
