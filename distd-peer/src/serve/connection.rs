//! One accepted connection: the identity of its peer, and its streams.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::proto::stream::StreamKind;
use quinn::Incoming;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::budget::NodeBudget;
use super::door::{STRANGER_TIME, Stranger};
use super::sites::Member;
use super::{Server, Swarm, batch, control, news, streams};
use crate::apt;
use crate::clock::unix_now;
use crate::net::{Accepted, FrameReader, FrameWriter, Greeted, HttpsAccepted, LocalAccepted, Meter};
use crate::trust::tls::{PeerIdentity, identity_in};

/// How long a request stream waits for the handshake of its swarm, which travels on another stream.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(30);

/// Number of recent swarms remembered for each peer, to report to them if the peer leaves because
/// of wrong bytes.
const SERVED_MAX: usize = 32;

/// A swarm whose handshake was answered.
pub(super) struct OpenSwarm {
    pub(super) content: Arc<dyn Swarm>,
    /// The peer's part in the exchange of its site, if it takes part.
    pub(super) member: Option<Member>,
    /// End of the peer's permit, unix seconds; 0 when it was withdrawn.
    pub(super) permitted_until: watch::Sender<u64>,
}

/// Longest wait between two looks at the clock, which may be set meanwhile.
pub(super) const PERMIT_LOOK: Duration = Duration::from_secs(30);

impl OpenSwarm {
    /// Does a part of the swarm's work, until the peer's permit ends.
    ///
    /// # Errors
    /// Those of the work, and [`CloseCode::Unauthorised`].
    pub(super) async fn while_permitted<T>(
        &self,
        work: impl Future<Output = Result<T, CloseCode>>,
    ) -> Result<T, CloseCode> {
        let mut until = self.permitted_until.subscribe();
        let end = async {
            loop {
                let left = until.borrow_and_update().saturating_sub(unix_now());
                if left == 0 {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(left).min(PERMIT_LOOK)) => {}
                    // The sender lives as long as `self`.
                    _ = until.changed() => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = end => Err(CloseCode::Unauthorised),
            done = work => done,
        }
    }
}

/// The streams of one connection that may be control streams, by stream id, and the swarms of the
/// control streams. A channel is made only when another stream asks for it, since most streams are
/// no control streams.
///
/// Streams are accepted in the order in which they were opened. The control stream of a swarm is
/// therefore known here before any stream that names it.
#[derive(Default)]
pub(super) struct Swarms {
    streams: Mutex<HashMap<u64, Option<watch::Sender<SwarmState>>>>,
}

/// Progress of a swarm's handshake.
#[derive(Clone, Default)]
pub(super) enum SwarmState {
    #[default]
    Pending,
    Open(Arc<OpenSwarm>),
    Refused(CloseCode),
}

impl Swarms {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Option<watch::Sender<SwarmState>>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an accepted stream whose kind is not known yet.
    fn accepted(&self, id: u64) {
        self.streams().entry(id).or_default();
    }

    /// Records the answer to the handshake of a control stream.
    pub(super) fn set(&self, control: u64, state: SwarmState) {
        if let Some(stream) = self.streams().get_mut(&control) {
            stream.get_or_insert_default().send_replace(state);
        }
    }

    /// Removes a stream that is no control stream or has ended.
    pub(super) fn forget(&self, id: u64) {
        self.streams().remove(&id);
    }

    /// Returns the swarm of a control stream once its handshake is answered. A stream id that is
    /// not known is a breach.
    pub(super) async fn wait(&self, control: u64) -> Result<Arc<OpenSwarm>, CloseCode> {
        let mut stream = {
            let mut streams = self.streams();
            streams.get_mut(&control).ok_or(CloseCode::Protocol)?.get_or_insert_default().subscribe()
        };
        let answered = stream.wait_for(|state| !matches!(state, SwarmState::Pending));
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

/// State that the streams of one connection share.
pub(super) struct Peer {
    pub(super) server: Arc<Server>,
    pub(super) identity: PeerIdentity,
    pub(super) swarms: Swarms,
    pub(super) meter: Arc<Meter>,
    /// Address at which the peer was seen.
    pub(super) observed: SocketAddr,
    /// Budget of the peer's node, over all its connections.
    pub(super) budget: Arc<NodeBudget>,
    /// Recently opened swarms, as long as they are still in use.
    served: Mutex<VecDeque<Weak<dyn Swarm>>>,
}

impl Peer {
    /// Remembers that the peer opened a swarm.
    pub(super) fn remember_swarm(&self, content: &Arc<dyn Swarm>) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() == SERVED_MAX {
            served.pop_front();
        }
        served.push_back(Arc::downgrade(content));
    }

    /// Tells the peer's swarms that the peer left because of wrong bytes.
    fn was_reported(&self) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().filter_map(Weak::upgrade).for_each(|content| content.reported_bad_data());
    }
}

/// Serves one connection over QUIC.
pub(super) async fn serve(server: Arc<Server>, incoming: Incoming, mut place: Stranger) {
    let remote = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let done = tokio::select! {
        done = tokio::time::timeout(STRANGER_TIME, handshake) => done,
        () = place.lost() => return server.count_refused(),
    };
    match done {
        Ok(Ok(connection)) => answer(server, Accepted::Quic(connection), place).await,
        Ok(Err(error)) => unusable(&server, remote, &error),
        Err(slow) => unusable(&server, remote, &slow),
    }
}

/// Serves one connection over TCP.
pub(super) async fn serve_tcp(
    server: Arc<Server>,
    stream: TcpStream,
    remote: SocketAddr,
    tls: Arc<TlsAcceptor>,
    mut place: Stranger,
) {
    let done = tokio::select! {
        done = HttpsAccepted::handshake(stream, remote, &tls) => done,
        () = place.lost() => return server.count_refused(),
    };
    match done {
        Ok(Greeted::Streams(accepted)) => answer(server, Accepted::Https(accepted), place).await,
        Ok(Greeted::Apt(stream, chain)) => serve_apt(server, *stream, &chain, remote, place).await,
        Err(error) => unusable(&server, remote, &error),
    }
}

/// Serves one connection inside this process.
pub(super) async fn serve_local(server: Arc<Server>, accepted: LocalAccepted) {
    let accepted = Accepted::Local(accepted);
    match server.door.stranger(accepted.remote()) {
        Some(place) => answer(server, accepted, place).await,
        None => accepted.close(CloseCode::Busy),
    }
}

/// Serves a connection with requests to the proxy for apt, under the same rules as any other of a
/// node.
async fn serve_apt(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    chain: &[CertificateDer<'static>],
    remote: SocketAddr,
    stranger: Stranger,
) {
    server.counters.connections.fetch_add(1, Ordering::Relaxed);
    let identity = match identity_in(chain, unix_now()) {
        Ok(identity) if !server.config.revoked.holds(&identity.node_id) => identity,
        Ok(_) => return server.count_refused(),
        Err(error) => return unusable(&server, remote, &error),
    };
    let proxy = server.config.apt.clone();
    let (Some(proxy), Some(mut place)) = (proxy, server.door.node(identity.node_id, identity.role)) else {
        return server.count_refused();
    };
    drop(stranger);
    let left = Duration::from_secs(identity.expires.saturating_sub(unix_now()));
    // The connection ends with the process; the sender lives as long as the connection.
    let (_going_on, stop) = watch::channel(false);
    tokio::select! {
        _ = tokio::time::timeout(left, apt::serve_node(stream, remote, proxy, stop)) => {}
        () = server.config.revoked.until(identity.node_id) => {}
        () = place.lost() => server.count_refused(),
    }
}

fn unusable(server: &Server, remote: SocketAddr, error: &(dyn std::error::Error + 'static)) {
    server.count_refused();
    tracing::debug!(%remote, error, "handshake failed");
}

async fn answer(server: Arc<Server>, mut connection: Accepted, mut stranger: Stranger) {
    let remote = connection.remote();
    server.counters.connections.fetch_add(1, Ordering::Relaxed);
    if connection.enrols() {
        let deadline = server.config.stall;
        let exchange = async {
            // A connection carries one enrolment; then the asker closes it.
            let _ = tokio::time::timeout(deadline, enroll(&server, &mut connection)).await;
            let _ = tokio::time::timeout(STRANGER_TIME, connection.finish()).await;
        };
        tokio::select! {
            () = exchange => {}
            () = stranger.lost() => server.count_refused(),
        }
        return;
    }
    let identity = match connection.identity(unix_now()) {
        Ok(identity) => identity,
        Err(error) => {
            server.count_refused();
            tracing::debug!(%remote, error = %Chain(&error), "peer refused");
            connection.close(CloseCode::Unauthorised);
            return;
        }
    };
    if server.config.revoked.holds(&identity.node_id) {
        server.count_refused();
        return connection.close(CloseCode::Unauthorised);
    }
    let Some(mut place) = server.door.node(identity.node_id, identity.role) else {
        server.count_refused();
        return connection.close(CloseCode::Busy);
    };
    drop(stranger);
    let left = Duration::from_secs(identity.expires.saturating_sub(unix_now()));
    let budget = server.budgets.of(&identity);
    connection.allow_streams(budget.streams());
    let (swarms, meter) = (Swarms::default(), Arc::default());
    let peer = Arc::new(Peer {
        server,
        identity,
        swarms,
        meter,
        observed: remote,
        budget,
        served: Mutex::default(),
    });
    let ended = tokio::select! {
        // The connection ends when the certificate expires.
        served = tokio::time::timeout(left, accept_streams(&peer, &mut connection)) => {
            served.err().map(|_| CloseCode::Unauthorised)
        }
        () = peer.server.config.revoked.until(peer.identity.node_id) => {
            tracing::info!(node = %peer.identity.node_id, "closing the connection of a revoked node");
            Some(CloseCode::Unauthorised)
        }
        () = place.lost() => {
            peer.server.count_refused();
            Some(CloseCode::Busy)
        }
    };
    match ended {
        Some(code) => connection.close(code),
        None if connection.closed_with() == Some(CloseCode::IntegrityFailed) => peer.was_reported(),
        None => {}
    }
    let unknown = peer.meter.read().unknown_frames;
    peer.server.counters.unknown_frames.fetch_add(unknown, Ordering::Relaxed);
}

async fn enroll(server: &Server, connection: &mut Accepted) {
    let Some((_, send, recv)) = connection.next().await else { return };
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv, Arc::new(Meter::default()), STRANGER_TIME);
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
        peer.swarms.accepted(id);
        tasks.spawn(async move {
            let mut writer = FrameWriter::new(send);
            let mut reader = FrameReader::new(recv, peer.meter.clone(), peer.server.config.stall);
            let kind = reader.stream_kind().await;
            if !matches!(kind, Ok(StreamKind::Control)) {
                peer.swarms.forget(id);
            }
            let result = match kind {
                Ok(StreamKind::Control) => control::answer(&peer, id, &mut writer, &mut reader).await,
                Ok(StreamKind::Batch { control }) => {
                    batch::answer(&peer, control, &mut writer, &mut reader).await
                }
                Ok(StreamKind::Nodes { control }) => {
                    streams::nodes(&peer, control, &mut writer, &mut reader).await
                }
                Ok(StreamKind::Metadata) => streams::metadata(&peer, &mut writer, &mut reader).await,
                Ok(StreamKind::News) => news::answer(&peer, &mut writer, &mut reader).await,
                Ok(StreamKind::Enroll) => Err(CloseCode::Protocol),
                Err(error) => Err(error.close_code()),
            };
            match result {
                Ok(()) => writer.finish(),
                Err(code) => {
                    if code == CloseCode::Protocol {
                        peer.server.counters.breaches.fetch_add(1, Ordering::Relaxed);
                        let node = peer.identity.node_id;
                        match peer.server.refusals.due((Some(node), "breach")) {
                            Some(times) => {
                                tracing::info!(%node, times, "peer broke the protocol on a stream")
                            }
                            None => tracing::debug!(%node, "peer broke the protocol on a stream"),
                        }
                    }
                    reader.stop(code);
                    writer.reset(code);
                }
            }
        });
    }
}
