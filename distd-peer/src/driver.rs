//! Runs a core [`Fetch`] over real connections: one task a swarm, one task a batch.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use distd_core::manifest::Entry;
use distd_core::packing::{PackedChunk, Unpacker};
use distd_core::proto::batch::{BatchAsk, BatchEvent};
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::ControlEvent;
use distd_core::proto::frame::DontHaveReason;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, Fetch, FetchConfig, FetchEvent, PeerFault, PeerId, Tier};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, ManifestId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::clock::monotonic_now;
use crate::net::{Link, LinkError, SwarmHandle};
use crate::parents::{Parents, ParentsError, tier_of};
use crate::table::ChunkTable;

/// First pause before a lost parent is dialled again; doubles up to [`REDIAL_MAX`].
const REDIAL: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(5);

/// How long nearer parents may take to connect before a farther one is asked: a round trip over a slow link, and a repetition.
const NEARER_GRACE: Duration = Duration::from_secs(1);

/// Where verified chunks go. Calls block at most for the disk.
pub trait ChunkSink: Send + Sync + 'static {
    /// Takes a chunk whose bytes matched its hash.
    ///
    /// # Errors
    /// An error ends the whole fetch: the sink cannot go on.
    fn accept(&self, entry: &Entry, packed: PackedChunk, raw: &[u8]) -> Result<(), SinkError>;

    /// Whether the sink holds the chunk already, so that it is not asked for.
    fn holds(&self, _entry: &Entry) -> bool {
        false
    }

    /// No parent can send these.
    fn unavailable(&self, _chunks: &ChunkRanges) {}
}

/// Why a sink cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("could not store a chunk")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Why a fetch ended without its chunks.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// No parent that is left has these chunks.
    #[error("{count} chunks cannot be had from any parent{}", last_words(.last))]
    Unavailable {
        /// How many.
        count: u64,
        /// The last thing that went wrong with a parent.
        last: Option<String>,
    },
}

fn last_words(last: &Option<String>) -> String {
    last.as_ref().map_or(String::new(), |text| format!("; last problem: {text}"))
}

enum Message {
    Connected(PeerId, SwarmHandle),
    Lost(PeerId, String),
    /// The link of this peer cannot be used at all.
    Breach(PeerId, String, PeerFault),
    Choked(PeerId, Duration),
    Chunk(BatchId, ChunkId),
    DontHave(BatchId, ChunkRanges, DontHaveReason),
    BatchEnd(BatchId),
    BatchFailed(PeerId, BatchId, String, PeerFault),
    SinkFailed(SinkError),
}

/// Asks a running driver for more chunks.
#[derive(Clone)]
pub struct DriverHandle(mpsc::UnboundedSender<ChunkRanges>);

impl DriverHandle {
    /// Wants these chunks too; those held or on their way are not asked for again.
    pub fn want(&self, chunks: ChunkRanges) {
        // A driver that has ended has told its sink.
        let _ = self.0.send(chunks);
    }
}

/// One swarm's fetching.
pub struct Driver {
    parents: Arc<Parents>,
    manifest: ManifestId,
    table: Arc<ChunkTable>,
    sink: Arc<dyn ChunkSink>,
    fetch: Fetch,
    swarms: HashMap<PeerId, SwarmHandle>,
    /// Parents that have connected or failed at least once.
    heard: HashSet<PeerId>,
    started: Timestamp,
    messages_tx: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    wants: mpsc::UnboundedReceiver<ChunkRanges>,
    batches: HashMap<BatchId, AbortHandle>,
    dialers: Vec<AbortHandle>,
    tasks: JoinSet<()>,
    last_problem: Option<String>,
}

impl Driver {
    /// A driver for the swarm of `manifest`, whose chunks `table` lists.
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
            parents,
            manifest,
            table,
            sink,
            fetch: Fetch::new(config),
            swarms: HashMap::new(),
            heard: HashSet::new(),
            started: monotonic_now(),
            messages_tx,
            messages,
            wants,
            batches: HashMap::new(),
            dialers: Vec::new(),
            tasks: JoinSet::new(),
            last_problem: None,
        };
        (driver, DriverHandle(wants_tx))
    }

    /// Fetches `wanted` and returns when the sink has all of it.
    ///
    /// # Errors
    /// [`FetchError`]; what the sink took until then stays.
    pub async fn fetch_all(mut self, wanted: ChunkRanges) -> Result<(), FetchError> {
        self.dial_all();
        self.add_wanted(&wanted);
        while !self.fetch.is_idle() {
            if let Some(count) = self.step(false).await? {
                return Err(FetchError::Unavailable { count, last: self.last_problem.take() });
            }
        }
        Ok(())
    }

    /// Serves wants until every [`DriverHandle`] is gone. What cannot be had is reported to the sink.
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
            let peer = PeerId(index as u32);
            // Known from the start, so that chunks wait for it instead of being given up.
            self.fetch.handle_connected(monotonic_now(), peer, Tier::Origin);
            self.fetch.handle_awaiting(peer);
            let task = dial(self.parents.clone(), index, self.manifest, self.messages_tx.clone());
            self.dialers.push(self.tasks.spawn(task));
        }
    }

    fn add_wanted(&mut self, wanted: &ChunkRanges) {
        let missing: ChunkRanges = wanted
            .ids()
            .filter(|id| self.table.get(*id).is_some_and(|entry| !self.sink.holds(&entry)))
            .collect();
        self.fetch.want(&missing);
    }

    /// One turn of the loop; how many chunks turned out to be unavailable, if any.
    async fn step(&mut self, serving: bool) -> Result<Option<u64>, FetchError> {
        let now = monotonic_now();
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
                    if let Some(task) = self.batches.remove(&batch) {
                        task.abort();
                    }
                }
                FetchEvent::Unavailable(chunks) => {
                    self.sink.unavailable(&chunks);
                    unavailable = Some(chunks.len());
                }
                FetchEvent::Dropped(peer, fault) => {
                    let address = self.parents.address(peer.0 as usize);
                    tracing::warn!(parent = address, ?fault, "parent is not asked any more");
                    self.dialers[peer.0 as usize].abort();
                    self.swarms.remove(&peer);
                }
            }
        }
        if unavailable.is_some() || (!serving && self.fetch.is_idle()) {
            return Ok(unavailable);
        }
        let wake = waiting.or_else(|| self.fetch.poll_timeout().map(|at| at.since(now)));
        let sleep = tokio::time::sleep(wake.unwrap_or(Duration::from_secs(3600)));
        tokio::select! {
            Some(message) = self.messages.recv() => self.handle(message)?,
            wanted = self.wants.recv(), if serving && !(self.wants.is_closed() && self.wants.is_empty()) => {
                if let Some(wanted) = wanted {
                    self.add_wanted(&wanted);
                }
            }
            () = sleep => {}
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(None)
    }

    /// How long to wait yet for parents that come before a connected one and have neither connected nor failed: a farther parent that
    /// answers faster must not be asked for everything meanwhile.
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
            }
            Message::Lost(peer, problem) => {
                self.heard.insert(peer);
                tracing::debug!(problem, "parent lost");
                self.last_problem = Some(problem);
                let tier = self.swarms.remove(&peer).map_or(Tier::Origin, |s| tier_of(s.link.role()));
                self.fetch.handle_disconnected(now, peer, tier);
            }
            Message::Breach(peer, problem, fault) => {
                self.last_problem = Some(problem);
                self.fetch.handle_fault(now, peer, fault);
            }
            Message::Choked(peer, retry_after) => self.fetch.handle_choked(now, peer, retry_after),
            Message::Chunk(batch, id) => {
                self.fetch.handle_chunk(now, batch, id);
            }
            Message::DontHave(batch, chunks, reason) => {
                let for_now = matches!(reason, DontHaveReason::Busy | DontHaveReason::Upstream);
                self.fetch.handle_dont_have(now, batch, &chunks, for_now);
            }
            Message::BatchEnd(batch) => {
                self.batches.remove(&batch);
                self.fetch.handle_batch_end(batch);
            }
            Message::BatchFailed(peer, batch, problem, fault) => {
                tracing::debug!(problem, ?fault, "batch failed");
                self.batches.remove(&batch);
                if fault == PeerFault::WrongBytes
                    && let Some(swarm) = self.swarms.get(&peer)
                {
                    tracing::warn!(parent = swarm.link.address(), problem, "parent sent wrong bytes");
                    self.parents.quarantine(&swarm.link);
                }
                self.last_problem = Some(problem);
                self.fetch.handle_fault(now, peer, fault);
            }
            Message::SinkFailed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn start_batch(&mut self, peer: PeerId, batch: BatchId, chunks: ChunkRanges) {
        let Some(swarm) = self.swarms.get(&peer).cloned() else {
            self.fetch.handle_batch_end(batch);
            return;
        };
        let (table, sink, tx) = (self.table.clone(), self.sink.clone(), self.messages_tx.clone());
        let task = async move {
            let end = match run_batch(&swarm, batch, chunks, &table, &*sink, &tx).await {
                Ok(()) => Message::BatchEnd(batch),
                Err(BatchFailure::Sink(error)) => Message::SinkFailed(error),
                Err(BatchFailure::Peer(problem, fault)) => Message::BatchFailed(peer, batch, problem, fault),
            };
            // The driver is gone only when nobody waits for the answer.
            let _ = tx.send(end).await;
        };
        self.batches.insert(batch, self.tasks.spawn(task));
    }
}

enum BatchFailure {
    Sink(SinkError),
    Peer(String, PeerFault),
}

/// A problem with all its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

impl From<LinkError> for BatchFailure {
    fn from(error: LinkError) -> Self {
        let fault = if error.is_breach() { PeerFault::Protocol } else { PeerFault::Failed };
        Self::Peer(chain(&error), fault)
    }
}

async fn run_batch(
    swarm: &SwarmHandle,
    batch: BatchId,
    chunks: ChunkRanges,
    table: &ChunkTable,
    sink: &dyn ChunkSink,
    tx: &mpsc::Sender<Message>,
) -> Result<(), BatchFailure> {
    let link = &swarm.link;
    let (mut ask, requests) = BatchAsk::new(chunks).expect("the fetch asks for 1 to batch_chunks chunks");
    let (mut writer, mut reader) = swarm.open_batch().await?;
    for frame in requests {
        writer.send(&frame).await.map_err(|e| link.wire(e))?;
    }
    writer.finish();
    let mut unpacker = Unpacker::default();
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(e) => return Err(link.wire(e).into()),
        };
        let event = ask.handle_frame(frame).map_err(|e| breach(link, &e))?;
        let message = match event {
            BatchEvent::Data(data) => {
                let entry = table.get(data.id).expect("only chunks of the table are asked for");
                let raw = unpacker.unpack(data.codec, &data.bytes, entry.len, &entry.hash).map_err(|e| {
                    reader.stop(CloseCode::IntegrityFailed);
                    BatchFailure::Peer(format!("{}: {}", link.address(), chain(&e)), PeerFault::WrongBytes)
                })?;
                let packed = PackedChunk { codec: data.codec, raw_len: entry.len, bytes: data.bytes };
                sink.accept(&entry, packed, raw).map_err(BatchFailure::Sink)?;
                Message::Chunk(batch, entry.id)
            }
            BatchEvent::DontHave(dont) => Message::DontHave(batch, dont.ranges.to_set(), dont.reason),
            BatchEvent::Choked(choke) => {
                let _ = tx.send(Message::DontHave(batch, ask.open().clone(), DontHaveReason::Busy)).await;
                tracing::debug!(parent = link.address(), ?choke, "choked");
                continue;
            }
            BatchEvent::Unknown => continue,
        };
        let _ = tx.send(message).await;
    }
    ask.handle_end().map_err(|e| breach(link, &e))
}

fn breach(link: &Link, error: &dyn std::error::Error) -> BatchFailure {
    BatchFailure::Peer(format!("{}: {}", link.address(), chain(error)), PeerFault::Protocol)
}

/// Keeps one parent connected and in the swarm, and says when it is not.
async fn dial(parents: Arc<Parents>, index: usize, manifest: ManifestId, tx: mpsc::Sender<Message>) {
    let peer = PeerId(index as u32);
    let mut pause = REDIAL;
    loop {
        let problem = match join(&parents, index, manifest).await {
            Ok(mut swarm) => {
                if tx.send(Message::Connected(peer, swarm.handle())).await.is_err() {
                    return;
                }
                loop {
                    match swarm.next_event().await {
                        Ok(Some(ControlEvent::Choked(choke))) => {
                            let _ = tx.send(Message::Choked(peer, choke.retry_after)).await;
                        }
                        Ok(Some(ControlEvent::Open(_))) => pause = REDIAL,
                        Ok(Some(_)) => {}
                        Ok(None) => break format!("{} left the swarm", parents.address(index)),
                        Err(error) if error.is_breach() => {
                            let _ = tx.send(Message::Breach(peer, chain(&error), PeerFault::Protocol)).await;
                            break chain(&error);
                        }
                        Err(error) => break chain(&error),
                    }
                }
            }
            Err(error) => chain(&error),
        };
        if tx.send(Message::Lost(peer, problem)).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

async fn join(
    parents: &Parents,
    index: usize,
    manifest: ManifestId,
) -> Result<crate::net::SwarmLink, ParentsError> {
    let link = parents.link(index).await?;
    Ok(link.open_swarm(manifest).await?)
}
