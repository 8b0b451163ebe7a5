//! Fetching of one swarm's chunks: runs a core [`Asker`] over real connections, with one task for
//! each dialled peer (`dial`) and one for each batch (`batch`).
//!
//! # Goals
//!
//! - The core decides which peer to dial and when, and which chunk to request from which peer. The
//!   driver carries each decision out and reports back what happened.
//! - The sink gets a chunk only after its bytes matched the hash in the manifest.
//! - A peer that fails, stalls or leaves costs only its open batches: the core has the peer dialled
//!   again, and requests the rest elsewhere.
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
//! 1. [`Driver::fetch_all`] wants 7–9. The core has both parents dialled, and requests nothing yet.
//! 2. The origin connects first. The relay is nearer, so the core waits for it up to a second. The
//!    relay connects, and its certificate shows that it is a relay.
//! 3. [`Asker::poll_action`] returns a request of 7–9 at the relay. A batch task opens a stream,
//!    sends REQUEST 7–9 and finishes its side.
//! 4. The relay sends DATA 7 and DATA 9. The batch task checks both against their hashes, gives
//!    them to the sink and reports them to the driver. The core marks them as fetched.
//! 5. The relay waits 10 s for its own parent in vain and sends DONT_HAVE 8 (upstream failed). The
//!    core wants 8 again, backs off from the relay, and requests 8 from it when the backoff is
//!    over: a first upstream failure does not yet send the device to the origin. After a second
//!    failure the core requests 8 from the origin.
//! 6. DATA 8 arrives. The core is idle, and `fetch_all` returns `Ok`. Had every parent answered
//!    that 8 is not in the swarm, it would have returned [`FetchError::Unavailable`]; the sink
//!    would keep 7 and 9.

mod batch;
mod dial;
mod verified;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use distd_core::manifest::Entry;
use distd_core::packing::PackedChunk;
use distd_core::proto::frame::{DontHaveReason, PeerRecord};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    Asker, AskerAction, BatchId, DialTarget, FetchConfig, Neighbour, NeighbourSource, PeerFault, PeerId,
};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, ManifestId, NodeId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::batch::{BatchFailure, run_batch};
use self::dial::{Caller, Route};
pub use self::verified::Verified;
use crate::clock::monotonic_now;
use crate::neighbours::Neighbourhood;
use crate::net::SwarmHandle;
use crate::parents::{Parents, tier_of};
use crate::rates::Throttle;
use crate::share::Holdings;
use crate::table::ChunkTable;

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
        /// Whether that problem was that this node is not authorised.
        is_shut_out: bool,
    },
}

fn last_words(last: &Option<String>) -> String {
    last.as_ref().map_or(String::new(), |text| format!("; last problem: {text}"))
}

enum Message {
    Connected(PeerId, SwarmHandle),
    /// The peer answered the handshake of the swarm.
    Handshake(PeerId),
    /// The connection ended, or could not be made. The peer's task has ended.
    Lost(PeerId, Problem),
    /// The peer broke the protocol on its control stream.
    Breach(PeerId, String),
    Choked(PeerId, Duration),
    /// The peer announced chunks.
    Have(PeerId, ChunkRanges),
    /// Nodes that the peer, on behalf of several nodes of the site, asks this device not to use.
    Distrusted(PeerId, BTreeSet<NodeId>),
    /// Records of neighbours that a peer advertised.
    Peers(Vec<PeerRecord>),
    /// Neighbours found by multicast DNS.
    Local(Vec<Neighbour>),
    /// A node may have dialled this device for the same swarm.
    Called,
    HeldBack(BatchId),
    Chunks(BatchId, Vec<ChunkId>),
    DontHave(BatchId, ChunkRanges, DontHaveReason),
    BatchEnd(BatchId),
    BatchFailed(PeerSwarm, BatchId, String, PeerFault),
    SinkFailed(SinkError),
}

/// Reason why a peer was lost.
struct Problem {
    text: String,
    /// Whether the peer ended the swarm because this node is not authorised.
    is_shut_out: bool,
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
struct PeerSwarm {
    peer: PeerId,
    handle: SwarmHandle,
}

/// A peer whose task dials it or follows its control stream.
struct Dialled {
    /// Address, for the log.
    name: String,
    task: AbortHandle,
    /// The swarm at the peer, while it is connected.
    swarm: Option<SwarmHandle>,
}

/// The fetch of one swarm.
pub struct Driver {
    parents: Arc<Parents>,
    manifest: ManifestId,
    table: Arc<ChunkTable>,
    sink: Arc<dyn ChunkSink>,
    asker: Asker,
    exchange: Option<Exchange>,
    wanted: Arc<ChunkRanges>,
    download: Option<Arc<Throttle>>,
    peers: HashMap<PeerId, Dialled>,
    messages_tx: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    wants: mpsc::UnboundedReceiver<Want>,
    batches: HashMap<BatchId, (PeerId, AbortHandle)>,
    /// When the driver last checked which peers its own limit holds back.
    looked: Timestamp,
    tasks: JoinSet<()>,
    last_problem: Option<String>,
    /// Whether the last problem was that this node is not authorised.
    is_shut_out: bool,
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
            asker: Asker::new(monotonic_now(), config, parents.len(), table.ids().clone()),
            parents,
            manifest,
            table,
            sink,
            exchange: None,
            wanted: Arc::default(),
            download: None,
            peers: HashMap::new(),
            messages_tx,
            messages,
            wants,
            batches: HashMap::new(),
            looked: Timestamp::default(),
            tasks: JoinSet::new(),
            last_problem: None,
            is_shut_out: false,
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
        self.watch_site();
        self.add_wanted(&wanted);
        while !self.asker.is_idle() {
            if let Some(count) = self.step(false).await? {
                let (last, is_shut_out) = (self.last_problem.take(), self.is_shut_out);
                return Err(FetchError::Unavailable { count, last, is_shut_out });
            }
        }
        Ok(())
    }

    /// Serves wishes until every [`DriverHandle`] is gone. Reports unavailable chunks to the sink.
    ///
    /// # Errors
    /// [`FetchError::Sink`].
    pub async fn run(mut self) -> Result<(), FetchError> {
        self.watch_site();
        while !(self.wants.is_closed() && self.wants.is_empty() && self.asker.is_idle()) {
            self.step(true).await?;
        }
        Ok(())
    }

    /// Takes neighbours of earlier sessions, and reports those that are found from now on.
    fn watch_site(&mut self) {
        let Some(exchange) = &self.exchange else { return };
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
        self.asker.handle_neighbours(monotonic_now(), NeighbourSource::Remembered, known);
    }

    fn dial(&mut self, peer: PeerId, target: DialTarget) {
        let (name, route) = match (target, &self.exchange) {
            (DialTarget::Parent(index), _) => {
                (self.parents.address(index).to_owned(), Route::Parent(self.parents.clone(), index))
            }
            (DialTarget::Neighbour(neighbour), Some(exchange)) => {
                let name = neighbour.address.to_string();
                (name, Route::Neighbour(exchange.neighbourhood.clone(), neighbour))
            }
            // Neighbours are found through the exchange alone.
            (DialTarget::Neighbour(_), None) => return self.asker.handle_lost(monotonic_now(), peer),
        };
        let (manifest, exchange, tx) = (self.manifest, self.exchange.clone(), self.messages_tx.clone());
        let (parents, wanted) = (self.parents.clone(), self.wanted.clone());
        let caller = Caller { peer, route, manifest, parents, exchange, wanted, tx };
        let task = self.tasks.spawn(caller.run());
        self.peers.insert(peer, Dialled { name, task, swarm: None });
    }

    fn swarm(&self, peer: PeerId) -> Option<&SwarmHandle> {
        self.peers.get(&peer).and_then(|dialled| dialled.swarm.as_ref())
    }

    fn add_wanted(&mut self, wanted: &ChunkRanges) {
        let missing: ChunkRanges = wanted
            .ids()
            .filter(|id| self.table.get(*id).is_some_and(|entry| !self.sink.holds(&entry)))
            .collect();
        self.asker.want(&missing);
    }

    /// Runs one turn of the loop. Returns the number of chunks found unavailable, if any.
    async fn step(&mut self, serving: bool) -> Result<Option<u64>, FetchError> {
        let now = monotonic_now();
        self.excuse_held_back(now);
        let mut unavailable = None;
        while let Some(action) = self.asker.poll_action(now) {
            match action {
                AskerAction::Dial(peer, target) => self.dial(peer, target),
                AskerAction::Request(peer, batch, chunks) => self.start_batch(peer, batch, chunks),
                AskerAction::Withdraw(_, batch) => {
                    if let Some((_, task)) = self.batches.remove(&batch) {
                        task.abort();
                    }
                }
                AskerAction::Drop(peer, fault) => {
                    if let Some(dialled) = self.peers.remove(&peer) {
                        tracing::warn!(peer = dialled.name, ?fault, "peer is not asked any more");
                        dialled.task.abort();
                    }
                }
                AskerAction::Unavailable(chunks) => {
                    self.sink.unavailable(&chunks);
                    unavailable = Some(chunks.len());
                }
            }
        }
        if unavailable.is_some() || (!serving && self.asker.is_idle()) {
            return Ok(unavailable);
        }
        let mut wake = self.asker.poll_timeout(now).map(|at| at.since(now));
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
                let given_up = self.asker.want_no_more(monotonic_now(), &chunks);
                self.sink.given_up(&given_up);
            }
            Want::ReportedBadData => self.asker.handle_reported_bad_data(monotonic_now()),
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
            let swarm = self.peers.get(peer).and_then(|dialled| dialled.swarm.as_ref());
            if swarm.is_some_and(|swarm| limit.holds(&swarm.link.node_id())) {
                self.asker.handle_held_back(now, *batch);
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<(), FetchError> {
        let now = monotonic_now();
        match message {
            Message::Connected(peer, swarm) => {
                if let Some(dialled) = self.peers.get_mut(&peer) {
                    let (node, tier) = (swarm.link.node_id(), tier_of(swarm.link.role()));
                    dialled.swarm = Some(swarm);
                    self.asker.handle_connected(now, peer, node, tier);
                }
            }
            Message::Handshake(peer) => self.asker.handle_handshake(peer),
            Message::Lost(peer, Problem { text, is_shut_out }) => {
                let name = self.peers.remove(&peer).map(|dialled| dialled.name);
                tracing::debug!(peer = name, problem = text, "peer lost");
                self.last_problem = Some(text);
                self.is_shut_out = is_shut_out;
                self.asker.handle_lost(now, peer);
            }
            Message::Breach(peer, problem) => {
                self.last_problem = Some(problem);
                self.asker.handle_fault(now, peer, PeerFault::Protocol);
            }
            Message::Choked(peer, retry_after) => self.asker.handle_choked(now, peer, retry_after),
            Message::Have(peer, chunks) => self.asker.handle_have(now, peer, &chunks),
            Message::Distrusted(peer, nodes) => self.asker.handle_distrusted(now, peer, nodes),
            Message::Peers(records) => {
                if let Some(exchange) = &self.exchange {
                    let found = exchange.neighbourhood.take(self.manifest, records);
                    self.asker.handle_neighbours(now, NeighbourSource::Advertised, found);
                }
            }
            Message::Local(found) => {
                self.asker.handle_neighbours(now, NeighbourSource::Advertised, found);
            }
            Message::Called => {
                if let Some(exchange) = &self.exchange {
                    let callers = exchange.neighbourhood.callers(&self.manifest);
                    self.asker.handle_neighbours(now, NeighbourSource::Caller, callers);
                }
            }
            Message::HeldBack(batch) => self.asker.handle_held_back(now, batch),
            Message::Chunks(batch, ids) => {
                for id in ids {
                    self.asker.handle_chunk(now, batch, id);
                }
            }
            Message::DontHave(batch, chunks, reason) => {
                self.asker.handle_dont_have(now, batch, &chunks, reason);
            }
            Message::BatchEnd(batch) => {
                self.batches.remove(&batch);
                self.asker.handle_batch_end(now, batch);
            }
            Message::BatchFailed(from, batch, problem, fault) => {
                tracing::debug!(problem, ?fault, "batch failed");
                self.batches.remove(&batch);
                // The peer may be lost already: its node is known from the batch.
                if fault.leads_to_quarantine() {
                    let link = &from.handle.link;
                    tracing::warn!(peer = link.address(), problem, "peer sent wrong bytes");
                    self.parents.quarantine(link);
                }
                self.last_problem = Some(problem);
                self.asker.handle_fault(now, from.peer, fault);
            }
            Message::SinkFailed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn start_batch(&mut self, peer: PeerId, batch: BatchId, chunks: ChunkRanges) {
        let Some(handle) = self.swarm(peer).cloned() else {
            return self.asker.handle_batch_end(monotonic_now(), batch);
        };
        let (swarm, download) = (PeerSwarm { peer, handle }, self.download.clone());
        let (table, sink, tx) = (self.table.clone(), self.sink.clone(), self.messages_tx.clone());
        let task = async move {
            let end = match run_batch(&swarm, batch, chunks, &table, &*sink, download.as_deref(), &tx).await {
                Ok(()) => Message::BatchEnd(batch),
                Err(BatchFailure::Sink(error)) => Message::SinkFailed(error),
                Err(BatchFailure::Peer(problem, fault)) => Message::BatchFailed(swarm, batch, problem, fault),
            };
            // The receiver is gone only if nobody waits for the driver's result.
            let _ = tx.send(end).await;
        };
        self.batches.insert(batch, (peer, self.tasks.spawn(task)));
    }
}
