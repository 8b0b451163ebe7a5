//! Connections of a proxy.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::error::Chain;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::address::host_and_port;
use super::counters::count;
use super::{Asker, Proxy, Reply};
use crate::clock::unix_now;
use crate::gateway::{Body, Refusal};
use crate::listener::{Authenticated, ConnectionServer, Unstalled, accept, secured, serve_until};
use crate::trust::tls::identity_in;

/// Longest time for a request's head, which is also how long an idle connection stays open.
const HEAD: Duration = Duration::from_secs(60);

/// Largest head of a request, and bytes read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Time that downloads have to end when the proxy stops.
const GRACE: Duration = Duration::from_secs(2);

/// Path of the question whether the proxy runs, asked by the program that apt runs to find it.
pub const DETECT_PATH: &str = "/distd-apt";

/// Serves programs on `listener` until `stop` becomes true or its sender is gone.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>, stop: watch::Receiver<bool>) {
    let open = accept(listener, Arc::new(Server(proxy)), stop).await;
    let _ = timeout(GRACE, open.wait()).await;
}

/// Serves the connection of a node of the realm, which has shown its certificate, until it ends.
pub async fn serve_node(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    proxy: Arc<Proxy>,
    stop: watch::Receiver<bool>,
) {
    requests(stream, from, &proxy, Asker::Node, stop).await;
}

/// Serves the neighbours of a device on `listener` until `stop` becomes true or its sender is gone.
/// Only nodes of the realm are answered, with files that are in the cache.
pub async fn serve_neighbours(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    proxy: Arc<Proxy>,
    stop: watch::Receiver<bool>,
) {
    let server = NeighbourServer { proxy, acceptor: TlsAcceptor::from(Arc::new(tls)) };
    let open = accept(listener, Arc::new(server), stop).await;
    let _ = timeout(GRACE, open.wait()).await;
}

struct NeighbourServer {
    proxy: Arc<Proxy>,
    acceptor: TlsAcceptor,
}

impl ConnectionServer for NeighbourServer {
    fn refused(&self) {
        count(&self.proxy.counters.connections_refused);
    }

    async fn serve(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        authenticated: Authenticated,
        stop: watch::Receiver<bool>,
    ) {
        let stream = match secured(stream, &self.acceptor).await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%from, error = %Chain(&error), "TLS handshake failed"),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        if let Err(error) = identity_in(&chain, unix_now()) {
            count(&self.proxy.counters.clients_refused);
            return tracing::debug!(%from, error = %Chain(&error), "a neighbour was refused");
        }
        authenticated.set();
        requests(stream, from, &self.proxy, Asker::Neighbour, stop).await;
    }
}

struct Server(Arc<Proxy>);

impl ConnectionServer for Server {
    fn refused(&self) {
        count(&self.0.counters.connections_refused);
    }

    async fn serve(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        _authenticated: Authenticated,
        stop: watch::Receiver<bool>,
    ) {
        if !self.0.settings.admits(from.ip()) {
            count(&self.0.counters.clients_refused);
            tracing::debug!(%from, "a client of no allowed network");
            return;
        }
        requests(stream, from, &self.0, Asker::Program, stop).await;
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    proxy: &Arc<Proxy>,
    asker: Asker,
    mut stop: watch::Receiver<bool>,
) {
    let (proxy, until) = (proxy.clone(), stop.clone());
    let service = service_fn(move |request| {
        let (proxy, until) = (proxy.clone(), until.clone());
        async move { Ok::<_, Infallible>(answer(&proxy, request, asker, until).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER_BYTES);
    let connection = server.serve_connection(TokioIo::new(Unstalled::new(stream)), service).with_upgrades();
    let result = serve_until(connection, &mut stop, |connection| connection.graceful_shutdown()).await;
    if let Err(error) = result {
        tracing::debug!(%from, error = %Chain(&error), "connection of a client of apt's proxy ended");
    }
}

async fn answer(
    proxy: &Arc<Proxy>,
    request: Request<Incoming>,
    asker: Asker,
    stop: watch::Receiver<bool>,
) -> Response<Reply> {
    if request.uri().authority().is_none() {
        return detect(proxy, &request).map(Reply::File);
    }
    count(&proxy.counters.requests);
    let method = request.method().clone();
    let mut response = match method {
        Method::CONNECT if asker == Asker::Program => proxy.connect(request, stop).await,
        _ => {
            let response = proxy.respond(&request, asker).await;
            tracing::debug!(address = %request.uri(), status = response.status().as_u16(), "answered for apt");
            response
        }
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        count(&proxy.counters.refused);
    }
    if method != Method::CONNECT
        && let Ok(via) = header::HeaderValue::try_from(format!("1.1 {}", proxy.name))
    {
        response.headers_mut().insert(header::VIA, via);
    }
    let counters = proxy.counters.clone();
    response.map(|body| {
        body.counted(Arc::new(move |bytes| {
            counters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        }))
    })
}

/// Answers a request that is for the proxy itself: whether it would ask the host in the query.
fn detect(proxy: &Proxy, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() != DETECT_PATH {
        let refusal = Refusal::new(
            StatusCode::BAD_REQUEST,
            "this is a proxy for apt, and no server",
            "let apt use it: distd apt enable",
        );
        return refusal.into_response();
    }
    let host = request.uri().query().and_then(|query| query.strip_prefix("host=")).unwrap_or_default();
    let usual = [80, 443];
    let takes = usual.iter().any(|usual| {
        host_and_port(host, *usual).is_ok_and(|(host, port)| proxy.mirrors.reach().allows(&host, port))
    });
    match takes {
        true => Response::new(Body::text("distd-apt\n")),
        false => Refusal::not_found("this host is not asked", "").into_response(),
    }
}
