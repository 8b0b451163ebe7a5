//! Connections of the HTTP API: TLS, limits in time and number, and a graceful stop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::error::Chain;
use distd_peer::listener::{Authenticated, ConnectionServer, Unstalled, accept, secured, serve_until};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::gateway::From;
use super::{App, router};

/// Longest time for a request's head, which is also how long an idle connection stays open.
const HEAD: Duration = Duration::from_secs(30);

/// Largest head of a request, and bytes read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Whether the connection of a request is encrypted; an extension of each request.
#[derive(Clone, Copy)]
pub(super) struct Encrypted(#[cfg_attr(not(feature = "ui"), expect(dead_code))] pub(super) bool);

/// Serves connections on `listener` until `stop` becomes true. Connections with a request under way
/// then finish it. Without `tls` the API speaks plain HTTP. Returns when all connections are
/// closed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Arc<App>,
    stop: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router(app.clone()));
    let server = Server { app, service, acceptor: tls.map(TlsAcceptor::from) };
    accept(listener, Arc::new(server), stop).await.wait().await;
}

type Service = TowerToHyperService<axum::Router>;

struct Server {
    app: Arc<App>,
    service: Service,
    acceptor: Option<TlsAcceptor>,
}

impl ConnectionServer for Server {
    fn refused(&self) {
        self.app.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    fn opened(&self) {
        self.app.metrics.connections.fetch_add(1, Ordering::Relaxed);
        self.app.metrics.connections_open.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self) {
        self.app.metrics.connections_open.fetch_sub(1, Ordering::Relaxed);
    }

    async fn serve(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        authenticated: Authenticated,
        stop: watch::Receiver<bool>,
    ) {
        let (service, from) = (self.service.clone(), from.ip());
        let Some(acceptor) = &self.acceptor else {
            return requests(stream, (from, Encrypted(false)), service, authenticated, stop).await;
        };
        match secured(stream, acceptor).await {
            Ok(stream) => requests(stream, (from, Encrypted(true)), service, authenticated, stop).await,
            Err(error) => {
                self.app.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(error = %Chain(&error), "TLS handshake failed");
            }
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (from, encrypted): (IpAddr, Encrypted),
    service: Service,
    authenticated: Authenticated,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(authenticated.clone());
        request.extensions_mut().insert(From(from.to_canonical()));
        request.extensions_mut().insert(encrypted);
        service.call(request)
    });
    let io = TokioIo::new(Unstalled::new(stream));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, service);
    let result = serve_until(connection, &mut stop, |connection| connection.graceful_shutdown()).await;
    if let Err(error) = result {
        tracing::debug!(error = %Chain(&error), "connection ended");
    }
}
