//! Connections of HTTP/2 over TLS over TCP that carry the same streams as QUIC (docs/protocol.md,
//! "Over TCP").

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use h2::client::ResponseFuture;
use h2::{PingPong, Reason};
use http::{Method, Request, Response, StatusCode, Uri};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::WireError;
use super::endpoint::{
    CONNECTION_WINDOW, REQUEST_CONNECTION_WINDOW, REQUEST_STREAM_WINDOW, STREAM_WINDOW, STREAMS_MAX,
    STREAMS_MOST,
};
use super::http2::{answered, asked, wire_error};
use super::keep_alive::{Heard, keep_alive, keep_alive_with};
use super::stream::{RecvStream, SendStream};
use crate::trust::identity::PARENT_NAME;
use crate::trust::tls::{ALPN_APT, ALPN_HTTP2};

/// Path to which streams are posted.
pub(crate) const XFER_PATH: &str = "/v1/xfer";

/// Path to which the end of a connection is posted, followed by the close code.
const CLOSE_PATH: &str = "/v1/close/";

/// Time that the peer has to receive the close code.
const FAREWELL: Duration = Duration::from_secs(1);

/// Time that TLS and the HTTP/2 handshake of a dialling peer may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Maximum length of a DATA frame accepted: a few TLS records, so that streams take turns.
const FRAME_MAX: u32 = 64 << 10;

/// Maximum size of the head of a request or response, bytes. Those of distd have five fields.
const HEAD_MAX: u32 = 8 << 10;

/// Maximum number of bytes of a stream that wait to be sent.
const SEND_BUFFER: usize = 256 << 10;

/// Transport below TLS: a TCP connection, or a tunnel through one.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The dialling end of a connection.
#[derive(Clone)]
pub(crate) struct Dialled {
    requests: h2::client::SendRequest<Bytes>,
    remote: SocketAddr,
    certificates: Vec<CertificateDer<'static>>,
    /// Closed when the connection ends, as its sender lives as long as the connection.
    alive: watch::Receiver<()>,
    /// Ends the connection: after the given response if there is one, else at once.
    farewell: mpsc::Sender<Option<ResponseFuture>>,
}

impl Dialled {
    /// Performs the TLS handshake with `tls`, expecting a parent, and the HTTP/2 handshake inside.
    pub(super) async fn establish(
        wire: Box<dyn Wire>,
        remote: SocketAddr,
        tls: Arc<rustls::ClientConfig>,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(PARENT_NAME).expect("the role's name is a DNS name");
        let (wire, heard) = Heard::new(wire);
        let stream = TlsConnector::from(tls).connect(name, wire).await?;
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(ALPN_HTTP2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2"));
        }
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|cert| cert.clone().into_owned()).collect();
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEAD_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(0)
            .enable_push(false)
            .handshake(stream);
        let (requests, mut connection) = handshake.await.map_err(io::Error::other)?;
        let ping = connection.ping_pong();
        let (alive_tx, alive) = watch::channel(());
        let (farewell, mut closing) = mpsc::channel(1);
        tokio::spawn(async move {
            let said = tokio::select! {
                ended = &mut connection => return if let Err(error) = ended {
                    tracing::debug!(error = %Chain(&error), "connection to a parent ended");
                },
                () = keep_alive(ping, heard) => return tracing::debug!("a parent fell silent"),
                Some(said) = closing.recv() => said,
            };
            drop(alive_tx);
            let Some(said) = said else { return };
            let answered = async {
                tokio::select! { _ = connection => {} _ = said => {} }
            };
            let _ = tokio::time::timeout(FAREWELL, answered).await;
        });
        Ok(Self { requests, remote, certificates, alive, farewell })
    }

    /// Opens a stream. Its id is the same on both sides.
    pub(super) async fn open(&self) -> Result<(u64, SendStream, RecvStream), WireError> {
        let mut requests = self.requests.clone().ready().await.map_err(wire_error)?;
        let (response, body) = requests.send_request(post(XFER_PATH), false).map_err(wire_error)?;
        let id = u64::from(body.stream_id().as_u32());
        let (out, body) = asked(response, body);
        Ok((id, SendStream::Https(out), RecvStream::Https(body)))
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn is_closed(&self) -> bool {
        self.alive.has_changed().is_err()
    }

    pub(super) async fn closed(&self) {
        // Nothing is ever sent: the call returns when the sender is dropped.
        let _ = self.alive.clone().changed().await;
    }

    /// Closes the connection with a code. Data in flight may still arrive until the peer has
    /// received the code.
    pub(super) fn close(&self, code: CloseCode) {
        let path = format!("{CLOSE_PATH}{}", code.code());
        let said = self.requests.clone().send_request(post(&path), true);
        // A full queue means that the connection is already closing.
        let _ = self.farewell.try_send(said.ok().map(|(response, _)| response));
    }
}

/// Makes a request to a parent.
fn post(path: &str) -> Request<()> {
    let uri = Uri::builder().scheme("https").authority(PARENT_NAME).path_and_query(path).build();
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.expect("a constant and a number make a URI");
    *request.version_mut() = http::Version::HTTP_2;
    request
}

/// Returns the close code of a request that ends the connection.
fn close_in(path: &str) -> Option<CloseCode> {
    path.strip_prefix(CLOSE_PATH)?.parse().ok().map(CloseCode::from_code)
}

/// Transport of an accepted connection.
type ServedStream = tokio_rustls::server::TlsStream<Heard<TcpStream>>;

/// The accepting end of a connection. It makes progress only while [`Accepted::next`] is awaited.
pub(crate) struct Accepted<S = ServedStream> {
    connection: h2::server::Connection<S, Bytes>,
    /// One permit for each stream that may be answered at once. HTTP/2's own limit does not count
    /// streams that the asker has reset, even while this side still works on the answer.
    slots: Arc<Semaphore>,
    closed_with: Option<CloseCode>,
    ping: Option<(PingPong, watch::Receiver<Instant>)>,
    remote: SocketAddr,
    certificates: Vec<CertificateDer<'static>>,
}

/// A connection whose handshake is done.
pub(crate) enum Greeted {
    /// One that carries streams.
    Streams(Box<Accepted>),
    /// One with requests to the proxy for apt, and the certificates that its peer has shown.
    Apt(Box<ServedStream>, Vec<CertificateDer<'static>>),
}

impl Accepted {
    /// Performs the TLS handshake, and that of HTTP/2 unless the peer asks for the proxy for apt.
    ///
    /// # Errors
    /// The error of either handshake, or `TimedOut`.
    pub(crate) async fn handshake(
        stream: TcpStream,
        remote: SocketAddr,
        tls: &TlsAcceptor,
    ) -> io::Result<Greeted> {
        // Frames are written as a whole, so waiting for more would only delay them. A socket that
        // refuses the option is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let establish = async {
            let (wire, heard) = Heard::new(stream);
            let stream = tls.accept(wire).await?;
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates: Vec<_> = certificates.iter().map(|cert| cert.clone().into_owned()).collect();
            if stream.get_ref().1.alpn_protocol() == Some(ALPN_APT) {
                return Ok(Greeted::Apt(Box::new(stream), certificates));
            }
            let accepted = Self::greet(stream, heard, remote, certificates).await?;
            Ok(Greeted::Streams(Box::new(accepted)))
        };
        tokio::time::timeout(HANDSHAKE, establish)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Accepted<S> {
    /// Performs the HTTP/2 handshake.
    async fn greet(
        stream: S,
        heard: watch::Receiver<Instant>,
        remote: SocketAddr,
        certificates: Vec<CertificateDer<'static>>,
    ) -> io::Result<Self> {
        let handshake = h2::server::Builder::new()
            .initial_window_size(REQUEST_STREAM_WINDOW)
            .initial_connection_window_size(REQUEST_CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEAD_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(STREAMS_MOST)
            .handshake(stream);
        let mut connection = handshake.await.map_err(io::Error::other)?;
        let ping = connection.ping_pong().map(|ping| (ping, heard));
        let slots = Arc::new(Semaphore::new(STREAMS_MAX as usize));
        Ok(Self { connection, slots, closed_with: None, ping, remote, certificates })
    }

    /// Sets how many streams the peer may have open at once. HTTP/2 has announced the most that any
    /// peer may have; a stream beyond the peer's own number is refused.
    pub(crate) fn allow_streams(&mut self, streams: usize) {
        self.slots.add_permits(streams.min(STREAMS_MOST as usize).saturating_sub(STREAMS_MAX as usize));
    }

    /// Returns the next stream; `None` when the connection is over. Cancelling the future loses
    /// nothing.
    pub(crate) async fn next(&mut self) -> Option<(u64, SendStream, RecvStream)> {
        let Self { connection, ping, slots, closed_with, .. } = self;
        if closed_with.is_some() {
            return None;
        }
        loop {
            let silent = async {
                match ping {
                    Some((ping, heard)) => keep_alive_with(ping, heard).await,
                    None => std::future::pending().await,
                }
            };
            let accepted = tokio::select! {
                accepted = connection.accept() => accepted?,
                () = silent => return None,
            };
            let (request, mut respond) = accepted.ok()?;
            *closed_with = close_in(request.uri().path());
            if closed_with.is_some() {
                return None;
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                respond.send_reset(Reason::REFUSED_STREAM);
                continue;
            };
            let status = match (request.uri().path(), request.method()) {
                (XFER_PATH, &Method::POST) => StatusCode::OK,
                (XFER_PATH, _) => StatusCode::METHOD_NOT_ALLOWED,
                _ => StatusCode::NOT_FOUND,
            };
            let mut response = Response::new(());
            *response.status_mut() = status;
            // The head of the response is sent at once, as the body may depend on what the asker
            // has yet to send.
            let Ok(body) = respond.send_response(response, status != StatusCode::OK) else { continue };
            if status == StatusCode::OK {
                let id = u64::from(respond.stream_id().as_u32());
                let (out, body) = answered(request.into_body(), body, slot);
                return Some((id, SendStream::Https(out), RecvStream::Https(body)));
            }
        }
    }

    /// Code with which the peer ended the connection, if it did.
    pub(super) fn closed_with(&self) -> Option<CloseCode> {
        self.closed_with
    }

    /// Accepts no more streams, and returns when the open ones have ended.
    pub(crate) async fn finish(&mut self) {
        self.connection.graceful_shutdown();
        while self.next().await.is_some() {}
    }

    /// Lets running streams finish and refuses new ones, until the connection is over.
    pub(crate) async fn refuse(&mut self) {
        while let Some((_, mut send, _)) = self.next().await {
            send.reset(CloseCode::Protocol);
        }
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reset_streams_count_until_the_answerer_is_done_with_them() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let heard = watch::channel(Instant::now()).1;
        let server = Accepted::greet(far, heard, ([127, 0, 0, 1], 1).into(), Vec::new());
        let (client, server) = tokio::join!(h2::client::handshake(near), server);
        let ((requests, connection), mut server) = (client.expect("client"), server.expect("server"));
        tokio::spawn(connection);
        let (taken_tx, mut taken) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(stream) = server.next().await {
                let _ = taken_tx.send(stream);
            }
        });
        let open = async || {
            let request =
                Request::post(format!("https://{PARENT_NAME}{XFER_PATH}")).body(()).expect("a request");
            let mut requests = requests.clone().ready().await.expect("ready");
            let (response, body) = requests.send_request(request, false).expect("sent");
            asked(response, body)
        };
        let mut held = Vec::new();
        for _ in 0..STREAMS_MAX {
            let (mut out, _) = open().await;
            held.push(taken.recv().await.expect("answered"));
            out.reset(CloseCode::Cancelled);
        }
        let refused = open().await.1.read().await.expect_err("one too many");
        assert!(matches!(refused, WireError::Closed(CloseCode::Busy)), "{refused:?}");
        held.pop();
        let _asked = open().await;
        taken.recv().await.expect("there is room again");
    }
}
