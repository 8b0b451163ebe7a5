//! The answering side of the protocol, the same for origin, relay and device.

mod batch;
mod budget;
mod connection;
mod control;
mod door;
mod manifest_nodes;
mod reach;
mod site;
mod sites;
mod slots;
mod streams;

pub use budget::NodeBudget;
pub use manifest_nodes::answer_nodes;
pub use site::SiteRule;
pub use sites::Sites;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::proto::frame::{Cost, Data, DontHaveReason, Node, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::{UPLOAD_SLOT_WAIT, UPLOAD_SLOTS};
use distd_core::{ManifestId, NodeId};
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use self::budget::Budgets;
use self::door::Door;
use self::slots::Slots;
use crate::limits::Throttle;
use crate::seldom::Seldom;
use crate::trust::revoked::Revoked;
use crate::trust::tls::PeerIdentity;

/// Why something is not served. The message goes to the log, never to the peer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No such manifest here.
    #[error("manifest {0} is not known here")]
    NoManifest(ManifestId),
    /// The peer may not have it.
    #[error("the peer has no right to this")]
    Unauthorised,
    /// The parent of this node could not help.
    #[error("the parent could not be asked")]
    Upstream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This node failed.
    #[error("could not serve")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a node serves.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// The swarm of a manifest for this peer. What has to be fetched for it is taken from `budget`.
    async fn swarm(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError>;

    /// Answers a question for TUF metadata, both opaque (docs/trust.md, "Metadata exchange").
    async fn metadata(&self, query: Bytes) -> Result<Bytes, ServeError>;

    /// Answers an enrolment or renewal, body in, body out.
    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError>;
}

/// One answer to a request for chunks.
#[derive(Clone, Debug)]
pub enum ChunkAnswer {
    /// A chunk.
    Data(Data),
    /// These will not come.
    DontHave(ChunkRanges, DontHaveReason),
}

/// Nodes for a NODE_REQUEST.
#[derive(Clone, Debug, Default)]
pub struct NodesAnswer {
    /// The nodes, highest level first.
    pub nodes: Vec<Node>,
    /// How many of those named are not here, or `NodesEnd::HELD_UNKNOWN`.
    pub missing: u32,
}

/// One swarm as this node serves it.
#[async_trait]
pub trait Swarm: Send + Sync + 'static {
    /// Whether chunks that are not held are fetched from a parent.
    fn fetches_upstream(&self) -> bool;

    /// All chunks of the manifest.
    fn ids(&self) -> ChunkRanges;

    /// Marked as changed when more is held than before; `None` where that is looked up now and then.
    fn growth(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Somebody left because it had wrong bytes from here.
    fn disbelieved(&self) {}

    /// What is held and verified.
    async fn held(&self) -> Result<ChunkRanges, ServeError>;

    /// What chunks would cost. Who does not know tells of none.
    async fn cost(&self, _wanted: &ChunkRanges) -> Result<Cost, ServeError> {
        Ok(Cost::default())
    }

    /// Manifest nodes.
    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError>;

    /// Answers for each of `wanted` exactly once, as chunks become ready. Stops when the receiver is gone. What
    /// has to be fetched is taken from `budget`, the asker's.
    async fn chunks(&self, budget: &Arc<NodeBudget>, wanted: ChunkRanges, answers: mpsc::Sender<ChunkAnswer>);
}

/// Bounds of the answering side.
#[derive(Clone)]
pub struct ServeConfig {
    /// Most connections of nodes; a further one takes the place of one of whoever has most.
    pub connections_max: usize,
    /// Most batches answered at once.
    pub upload_slots_max: usize,
    /// Most batches answered at once of one node, over all its connections; fewer while others wait.
    pub upload_slots_per_peer: usize,
    /// How long a batch may wait for an upload slot before it is choked.
    pub upload_slot_wait: Duration,
    /// How long an asker may stay silent inside a request, or not read its answer.
    pub stall: Duration,
    /// What chunks may take of the link.
    pub upload: Option<Arc<Throttle>>,
    /// Who exchanges with whom; without it nobody is told of neighbours.
    pub sites: Option<Arc<Sites>>,
    /// Nodes that are served nothing although their certificates hold.
    pub revoked: Arc<Revoked>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            upload_slots_max: UPLOAD_SLOTS,
            upload_slots_per_peer: UPLOAD_SLOTS,
            upload_slot_wait: UPLOAD_SLOT_WAIT,
            stall: Duration::from_secs(30),
            upload: None,
            sites: None,
            revoked: Arc::default(),
        }
    }
}

/// Counters of the answering side, for `/metrics` and tests. Only grow.
#[derive(Debug, Default)]
pub struct ServeCounters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections refused or ended: too many, or not of this realm.
    pub connections_refused: AtomicU64,
    /// Batches answered.
    pub batches: AtomicU64,
    /// Chunks sent.
    pub chunks: AtomicU64,
    /// Packed chunk bytes sent.
    pub chunk_bytes: AtomicU64,
    /// Batches choked.
    pub choked: AtomicU64,
    /// Chunks left to a neighbour of the asker that is fetching them.
    pub leased: AtomicU64,
    /// Nodes that got nothing of what was left to their neighbours, and were sent everything from then on.
    pub alone: Arc<AtomicU64>,
    /// Nodes sent.
    pub nodes: AtomicU64,
    /// Metadata, node and enrolment answers' bytes sent.
    pub control_bytes: AtomicU64,
    /// Streams ended because the peer broke the protocol.
    pub breaches: AtomicU64,
    /// Frames of unknown type ignored.
    pub unknown_frames: AtomicU64,
}

/// Pause after the system gave no connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers connections over QUIC and over TCP.
pub struct Server {
    content: Arc<dyn Content>,
    config: ServeConfig,
    slots: Arc<Slots>,
    door: Door,
    budgets: Budgets,
    /// Lines about what nodes were refused.
    refusals: Seldom<(Option<NodeId>, &'static str)>,
    /// Counters.
    pub counters: Arc<ServeCounters>,
}

impl Server {
    /// A server for `content`.
    pub fn new(content: Arc<dyn Content>, config: ServeConfig) -> Arc<Self> {
        let alone = config.sites.as_ref().map(|sites| sites.alone.clone()).unwrap_or_default();
        Arc::new(Self {
            content,
            slots: Slots::new(config.upload_slots_max, config.upload_slots_per_peer),
            door: Door::new(config.connections_max),
            budgets: Budgets::default(),
            refusals: Seldom::default(),
            config,
            counters: Arc::new(ServeCounters { alone, ..ServeCounters::default() }),
        })
    }

    fn count_refused(&self) {
        self.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Accepts connections over TCP until the future is dropped, and all connections with it.
    pub async fn run_tcp(self: Arc<Self>, listener: TcpListener, tls: rustls::ServerConfig) {
        let tls = Arc::new(TlsAcceptor::from(Arc::new(tls)));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = self.door.stranger(remote) else {
                self.count_refused();
                continue;
            };
            let (server, tls) = (self.clone(), tls.clone());
            connections.spawn(connection::serve_tcp(server, stream, remote, tls, place));
        }
    }

    /// Accepts connections over QUIC until the endpoint is closed, then waits for none of them.
    pub async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let place = if incoming.remote_address_validated() {
                self.door.stranger(incoming.remote_address())
            } else {
                self.door.unvalidated()
            };
            match place {
                Some(place) => drop(tokio::spawn(connection::serve(self.clone(), incoming, place))),
                // Its client says that it is there, or goes away. Nothing is kept of it meanwhile.
                None if incoming.may_retry() => drop(incoming.retry()),
                // Its client sends the packet again in a second.
                None => {
                    self.count_refused();
                    incoming.ignore();
                }
            }
        }
    }
}
