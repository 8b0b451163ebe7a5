//! One accepted connection: who it is, and its streams.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use distd_core::proto::close::CloseCode;
use distd_core::proto::stream::StreamKind;
use quinn::Incoming;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::sites::Member;
use super::{Server, Swarm, batch, control, streams};
use crate::clock::unix_now;
use crate::net::{Accepted, FrameReader, FrameWriter, HttpsAccepted, Meter};
use crate::trust::tls::PeerIdentity;

/// How long a request stream waits for the handshake of its swarm, which travels on another stream.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(30);

/// Most swarms open on one connection.
const SWARMS_MAX: usize = 8;

/// A swarm whose handshake was answered.
pub(super) struct OpenSwarm {
    pub(super) content: Arc<dyn Swarm>,
    /// The peer's part in the exchange of its site, if it takes any.
    pub(super) member: Option<Member>,
}

/// Swarms of one connection by the id of their control stream. `None` until the handshake has been answered.
#[derive(Default)]
pub(super) struct Swarms {
    open: Mutex<HashMap<u64, watch::Sender<SwarmState>>>,
}

/// Where the handshake of a swarm stands.
#[derive(Clone, Default)]
pub(super) enum SwarmState {
    #[default]
    Pending,
    Open(Arc<OpenSwarm>),
    Refused(CloseCode),
}

impl Swarms {
    fn slot(&self, control: u64) -> Option<watch::Receiver<SwarmState>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= SWARMS_MAX && !open.contains_key(&control) {
            return None;
        }
        Some(open.entry(control).or_default().subscribe())
    }

    pub(super) fn set(&self, control: u64, state: SwarmState) {
        // The slot is made if a request stream has not made it yet.
        drop(self.slot(control));
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = open.get(&control) {
            slot.send_replace(state);
        }
    }

    pub(super) fn forget(&self, control: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&control);
    }

    /// The swarm of a control stream, once its handshake is answered.
    pub(super) async fn wait(&self, control: u64) -> Result<Arc<OpenSwarm>, CloseCode> {
        let mut slot = self.slot(control).ok_or(CloseCode::Protocol)?;
        let answered = slot.wait_for(|state| !matches!(state, SwarmState::Pending));
        match tokio::time::timeout(HANDSHAKE_WAIT, answered).await {
            Ok(Ok(state)) => match &*state {
                SwarmState::Open(swarm) => Ok(swarm.clone()),
                SwarmState::Refused(code) => Err(*code),
                SwarmState::Pending => Err(CloseCode::Internal),
            },
            _ => Err(CloseCode::Protocol),
        }
    }
}

/// What the streams of one connection share.
pub(super) struct Peer {
    pub(super) server: Arc<Server>,
    pub(super) identity: PeerIdentity,
    pub(super) swarms: Swarms,
    pub(super) meter: Arc<Meter>,
    /// Where it was seen.
    pub(super) observed: SocketAddr,
    /// What of the upload slots it may have.
    pub(super) slots: Semaphore,
    /// What it was served from last, as long as that is kept.
    served: Mutex<VecDeque<Weak<dyn Swarm>>>,
}

impl Peer {
    /// The peer opened a swarm.
    pub(super) fn serves(&self, content: &Arc<dyn Swarm>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() == SWARMS_MAX {
            served.pop_front();
        }
        served.push_back(Arc::downgrade(content));
    }

    /// The peer left because it had wrong bytes.
    fn disbelieves(&self) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().filter_map(Weak::upgrade).for_each(|content| content.disbelieved());
    }
}

/// Serves one connection over QUIC.
pub(super) async fn serve(server: Arc<Server>, incoming: Incoming) {
    let remote = incoming.remote_address();
    match incoming.await {
        Ok(connection) => answer(server, Accepted::Quic(connection)).await,
        Err(error) => unusable(&server, remote, &error),
    }
}

/// Serves one connection over TCP.
pub(super) async fn serve_tcp(
    server: Arc<Server>,
    stream: TcpStream,
    remote: SocketAddr,
    tls: Arc<TlsAcceptor>,
) {
    match HttpsAccepted::handshake(stream, remote, &tls).await {
        Ok(accepted) => answer(server, Accepted::Https(Box::new(accepted))).await,
        Err(error) => unusable(&server, remote, &error),
    }
}

fn unusable(server: &Server, remote: SocketAddr, error: &(dyn std::error::Error + 'static)) {
    server.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(%remote, error, "handshake failed");
}

async fn answer(server: Arc<Server>, mut connection: Accepted) {
    let remote = connection.remote();
    server.counters.connections.fetch_add(1, Ordering::Relaxed);
    if connection.enrols() {
        let deadline = server.config.stall;
        // One exchange, then the asker closes.
        let _ = tokio::time::timeout(deadline, enroll(&server, &mut connection)).await;
        let _ = tokio::time::timeout(deadline, connection.finish()).await;
        return;
    }
    let identity = match connection.identity(unix_now()) {
        Ok(identity) => identity,
        Err(error) => {
            server.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%remote, error = &error as &dyn std::error::Error, "peer refused");
            connection.close(CloseCode::Unauthorised);
            return;
        }
    };
    let left = Duration::from_secs(identity.expires.saturating_sub(unix_now()));
    let slots = Semaphore::new(server.config.upload_slots_per_peer);
    let (swarms, meter) = (Swarms::default(), Arc::default());
    let peer =
        Arc::new(Peer { server, identity, swarms, meter, observed: remote, slots, served: Mutex::default() });
    // A certificate that ends ends what it allowed.
    if tokio::time::timeout(left, accept_streams(&peer, &mut connection)).await.is_err() {
        connection.close(CloseCode::Unauthorised);
    } else if connection.closed_with() == Some(CloseCode::IntegrityFailed) {
        peer.disbelieves();
    }
    let unknown = peer.meter.read().unknown_frames;
    peer.server.counters.unknown_frames.fetch_add(unknown, Ordering::Relaxed);
}

async fn enroll(server: &Server, connection: &mut Accepted) {
    let Some((_, send, recv)) = connection.next().await else { return };
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv, Arc::new(Meter::default()), server.config.stall);
    tokio::select! {
        () = streams::enroll(server, &mut writer, &mut reader) => {}
        () = connection.refuse() => {}
    }
}

async fn accept_streams(peer: &Arc<Peer>, connection: &mut Accepted) {
    let mut tasks = JoinSet::new();
    while let Some((id, send, recv)) = connection.next().await {
        while tasks.try_join_next().is_some() {}
        let peer = peer.clone();
        tasks.spawn(async move {
            let mut writer = FrameWriter::new(send);
            let mut reader = FrameReader::new(recv, peer.meter.clone(), peer.server.config.stall);
            let result = match reader.stream_kind().await {
                Ok(StreamKind::Control) => control::answer(&peer, id, &mut writer, &mut reader).await,
                Ok(StreamKind::Batch { control }) => {
                    batch::answer(&peer, control, &mut writer, &mut reader).await
                }
                Ok(StreamKind::Nodes { control }) => {
                    streams::nodes(&peer, control, &mut writer, &mut reader).await
                }
                Ok(StreamKind::Metadata) => streams::metadata(&peer, &mut writer, &mut reader).await,
                Ok(StreamKind::Enroll) => Err(CloseCode::Protocol),
                Err(error) => Err(error.close_code()),
            };
            match result {
                Ok(()) => writer.finish(),
                Err(code) => {
                    if code == CloseCode::Protocol {
                        peer.server.counters.breaches.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(node = %peer.identity.node_id, "peer broke the protocol on a stream");
                    }
                    reader.stop(code);
                    writer.reset(code);
                }
            }
        });
    }
}
