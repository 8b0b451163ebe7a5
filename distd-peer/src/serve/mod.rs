//! The answering side of the protocol, the same for origin, relay and device. They differ in their
//! [`Content`].
//!
//! # Goals
//!
//! - Every node is served within one budget over all its connections, and no node uses the budget
//!   of another.
//! - Where chunks are leased, each chunk is sent into a site once; elsewhere a chunk recently sent
//!   to a site is left to its neighbours while many askers are answered at once.
//! - Each request is answered completely or refused with a reason: a DONT_HAVE, a CHOKE or a close
//!   code.
//!
//! # Non-goals
//!
//! - The server stores and fetches nothing. [`Content`] and [`Swarm`] do; a relay's swarm fetches
//!   from its parent.
//! - It does not decide which node may have which manifest: [`Content::permit`] does. The server
//!   asks it before it tells anything of a swarm, and again when a permit ends.
//! - It does not verify chunks: the asker hashes each one. It does not look into metadata or
//!   enrolments either.
//!
//! # Example
//!
//! A device that takes part in the exchange asks a relay for the chunks 7, 8 and 9. The relay's
//! store has 7 and 9, but not 8. Half a second ago the relay sent 9 to a neighbour that serves, and
//! the relay is answering at least 32 batches.
//!
//! 1. The device connects. Its certificate gives the node id, by which the server finds the node's
//!    budget.
//! 2. The device opens a control stream with HANDSHAKE and its peer record. The server takes a
//!    place for one more swarm and calls [`Content::permit`] with the capability in the handshake,
//!    then [`Content::swarm`]. The relay returns its [`Swarm`], after
//!    it has fetched the manifest if it did not have it. The server answers the handshake.
//! 3. The device opens a batch stream and sends REQUEST 7–9. The server sends DONT_HAVE 9 (leased):
//!    the device will get 9 from its neighbour, or ask again.
//! 4. The server takes an upload slot for the batch and calls [`Swarm::chunks`] with 7 and 8.
//! 5. The swarm requests 8 from its parent, charged to the device's budget, and sends
//!    [`ChunkAnswer::Data`] with 7 meanwhile. When 8 has arrived, it sends 8 and returns. If
//!    nothing arrives for 10 s, it sends [`ChunkAnswer::DontHave`] with 8 instead. Either way 7 and
//!    8 are answered exactly once.
//! 6. The server writes each answer to the stream as it comes, finishes the stream when
//!    [`Swarm::chunks`] returns, and gives the slot back.

mod batch;
mod budget;
mod connection;
mod control;
mod door;
mod manifest_nodes;
mod news;
mod sites;
mod slots;
mod streams;

pub use budget::NodeBudget;
pub use manifest_nodes::answer_nodes;
pub use sites::Sites;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::proto::frame::{Cost, Data, DontHaveReason, Node, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{UPLOAD_SLOT_WAIT, UPLOAD_SLOTS};
use distd_core::{ManifestId, NodeId};
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use self::budget::Budgets;
use self::door::Door;
use self::slots::Slots;
use crate::apt;
use crate::capabilities::Permit;
use crate::metrics::Durations;
use crate::net::LocalAccepted;
use crate::news::Newsroom;
use crate::rates::Throttle;
use crate::seldom::Seldom;
use crate::trust::capability::CapabilityRefused;
use crate::trust::revoked::Revoked;
use crate::trust::tls::PeerIdentity;

/// Reason why a request is not served. The message goes to the log, never to the peer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The manifest is not known here.
    #[error("manifest {0} is not known here")]
    NoManifest(ManifestId),
    /// The peer is not permitted to have it.
    #[error("the peer is not permitted to have this")]
    Unauthorised,
    /// The capability that the peer showed does not permit it.
    #[error("the peer is not permitted to have this")]
    NotPermitted(#[source] CapabilityRefused),
    /// The parent of this node could not be asked, or did not help.
    #[error("could not ask the parent")]
    Upstream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This node failed for a reason of its own.
    #[error("this node could not serve the request")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The data that a node serves. One per [`Server`]; see the module's example.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// Decides what a peer may do with the swarm of a manifest, by the capability that the peer
    /// showed last, which may be empty. The server asks before it answers the peer's handshake, and
    /// again until the permit ends. What must be asked elsewhere is charged to `budget`, the
    /// peer's.
    async fn permit(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        shown: &Bytes,
    ) -> Result<Permit, ServeError>;

    /// Receiver that is marked as changed when permits may have to end before their time. `None`:
    /// they do not.
    fn permit_changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Returns the swarm of a manifest for this peer. The cost of anything that must be fetched for
    /// it is charged to `budget`, the asker's.
    async fn swarm(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError>;

    /// Answers a TUF metadata question of a peer. Question and answer are opaque to the server
    /// (docs/trust.md, "Metadata exchange").
    async fn metadata(&self, peer: &PeerIdentity, query: Bytes) -> Result<Bytes, ServeError>;

    /// Answers an enrolment or renewal; request and reply are opaque to the server.
    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError>;
}

/// Part of the answer to a request for chunks.
#[derive(Clone, Debug)]
pub enum ChunkAnswer {
    /// One chunk, packed.
    Data(Data),
    /// Chunks that will not come, and the reason.
    DontHave(ChunkRanges, DontHaveReason),
}

/// Answer to a NODE_REQUEST.
#[derive(Clone, Debug, Default)]
pub struct NodesAnswer {
    /// The nodes, highest level first.
    pub nodes: Vec<Node>,
    /// Number of requested nodes that are not here, or `NodesEnd::HELD_UNKNOWN`.
    pub missing: u32,
}

/// One swarm as this node serves it: the chunks and manifest nodes of one manifest.
#[async_trait]
pub trait Swarm: Send + Sync + 'static {
    /// Whether chunks that are not held are fetched from a parent on request.
    fn fetches_upstream(&self) -> bool;

    /// Ids of all chunks of the manifest.
    fn ids(&self) -> ChunkRanges;

    /// Receiver that is marked as changed when more chunks are held. `None`: the server polls
    /// [`Self::held`] instead.
    fn growth(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Reports that a peer disconnected because data from this node failed verification.
    fn reported_bad_data(&self) {}

    /// Ids of the chunks that are held and verified.
    async fn held(&self) -> Result<ChunkRanges, ServeError>;

    /// Returns how many packed bytes some chunks would take. The default knows the cost of no
    /// chunk.
    async fn cost(&self, _wanted: &ChunkRanges) -> Result<Cost, ServeError> {
        Ok(Cost::default())
    }

    /// Returns manifest nodes.
    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError>;

    /// Answers for each of `wanted` exactly once, as chunks become ready. Stops when the receiver
    /// is gone. The cost of chunks that must be fetched is charged to `budget`, the asker's.
    async fn chunks(&self, budget: &Arc<NodeBudget>, wanted: ChunkRanges, answers: mpsc::Sender<ChunkAnswer>);
}

/// Bounds and settings of the answering side.
#[derive(Clone)]
pub struct ServeConfig {
    /// Maximum number of connections of nodes. A further one takes the place of a connection of the
    /// node with the most.
    pub connections_max: usize,
    /// Maximum number of batches answered at once.
    pub upload_slots_max: usize,
    /// Maximum number of batches of one node answered at once, over all its connections; fewer
    /// while other nodes wait.
    pub upload_slots_per_peer: usize,
    /// How long a batch may wait for an upload slot before it is choked.
    pub upload_slot_wait: Duration,
    /// How long an asker may stay silent inside a request, or leave its answer unread.
    pub stall: Duration,
    /// Rate limit for sending chunks.
    pub upload: Option<Arc<Throttle>>,
    /// Directory of the sites whose nodes exchange chunks; without it no neighbours are advertised.
    pub sites: Option<Arc<Sites>>,
    /// Nodes that are not served although their certificates are valid.
    pub revoked: Arc<Revoked>,
    /// News for the nodes that listen; without it news streams are refused as by an earlier
    /// version.
    pub news: Option<Arc<Newsroom>>,
    /// Maximum number of news streams. Each keeps a connection open, so nodes that are refused one
    /// poll, and the other connections are for those that fetch.
    pub news_streams_max: usize,
    /// Proxy for apt that nodes may use; without it, connections for one are refused.
    pub apt: Option<Arc<apt::Proxy>>,
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
            news: None,
            news_streams_max: 2048,
            apt: None,
        }
    }
}

/// Counters of the answering side, for `/metrics` and tests. They only grow.
#[derive(Debug)]
pub struct ServeCounters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections refused or ended, because there were too many or the peer may not connect.
    pub connections_refused: AtomicU64,
    /// Batches answered.
    pub batches: AtomicU64,
    /// Chunks sent.
    pub chunks: AtomicU64,
    /// Packed chunk bytes sent.
    pub chunk_bytes: AtomicU64,
    /// Batches choked.
    pub choked: AtomicU64,
    /// Chunks refused because a neighbour of the asker is fetching them or was recently sent them.
    pub leased: AtomicU64,
    /// Nodes found not to reach their neighbours, and sent everything from then on.
    pub alone: Arc<AtomicU64>,
    /// Manifest nodes sent.
    pub nodes: AtomicU64,
    /// Bytes of metadata, manifest-node and enrolment answers sent.
    pub control_bytes: AtomicU64,
    /// Streams ended because the peer broke the protocol.
    pub breaches: AtomicU64,
    /// Frames of unknown type ignored.
    pub unknown_frames: AtomicU64,
    /// Times from the begin of a batch until each of its chunks was on its way.
    pub chunk_seconds: Durations,
    /// Times from the begin of a batch until its answer was written.
    pub batch_seconds: Durations,
}

impl Default for ServeCounters {
    fn default() -> Self {
        Self {
            connections: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            batches: AtomicU64::default(),
            chunks: AtomicU64::default(),
            chunk_bytes: AtomicU64::default(),
            choked: AtomicU64::default(),
            leased: AtomicU64::default(),
            alone: Arc::default(),
            nodes: AtomicU64::default(),
            control_bytes: AtomicU64::default(),
            breaches: AtomicU64::default(),
            unknown_frames: AtomicU64::default(),
            chunk_seconds: Durations::short(),
            batch_seconds: Durations::short(),
        }
    }
}

/// Pause after the system failed to accept a connection, mostly because file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers connections over QUIC and over TCP.
pub struct Server {
    content: Arc<dyn Content>,
    config: ServeConfig,
    slots: Arc<Slots>,
    door: Door,
    budgets: Budgets,
    /// Places for news streams.
    news_places: Semaphore,
    /// Suppresses repeated log lines about refused requests.
    refusals: Seldom<(Option<NodeId>, &'static str)>,
    /// Counters of this server.
    pub counters: Arc<ServeCounters>,
}

impl Server {
    /// Creates a server for `content`.
    pub fn new(content: Arc<dyn Content>, config: ServeConfig) -> Arc<Self> {
        let alone = config.sites.as_ref().map(|sites| sites.alone.clone()).unwrap_or_default();
        Arc::new(Self {
            content,
            slots: Slots::new(config.upload_slots_max, config.upload_slots_per_peer),
            door: Door::new(config.connections_max),
            budgets: Budgets::default(),
            news_places: Semaphore::new(config.news_streams_max),
            refusals: Seldom::default(),
            config,
            counters: Arc::new(ServeCounters { alone, ..ServeCounters::default() }),
        })
    }

    fn count_refused(&self) {
        self.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Accepts connections over TCP until the future is dropped, which also drops all connections.
    pub async fn run_tcp(self: Arc<Self>, listener: TcpListener, tls: rustls::ServerConfig) {
        let tls = Arc::new(TlsAcceptor::from(Arc::new(tls)));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "could not accept a connection");
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

    /// Serves a connection inside this process until it ends.
    pub(crate) async fn serve_local(self: Arc<Self>, accepted: LocalAccepted) {
        connection::serve_local(self, accepted).await;
    }

    /// Accepts connections over QUIC until the endpoint is closed. Does not wait for the
    /// connections to end.
    pub async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let place = if incoming.remote_address_validated() {
                self.door.stranger(incoming.remote_address())
            } else {
                self.door.unvalidated()
            };
            match place {
                Some(place) => drop(tokio::spawn(connection::serve(self.clone(), incoming, place))),
                // The client proves its address or goes away. Meanwhile nothing is stored for it.
                None if incoming.may_retry() => drop(incoming.retry()),
                // The client repeats its packet in a second.
                None => {
                    self.count_refused();
                    incoming.ignore();
                }
            }
        }
    }
}
