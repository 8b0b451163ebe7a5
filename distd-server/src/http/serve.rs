//! Connections of the HTTP API: TLS, limits in time and number, and a graceful stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::error::Chain;
use distd_peer::listener::{Authenticated, Connections, Unstalled};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::gateway::From;
use super::{App, router};

/// Longest duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Longest time for a request's head, which is also how long an idle connection stays open.
const HEAD: Duration = Duration::from_secs(30);

/// Largest head of a request, and bytes read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Pause after an accept failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections on `listener` until `stop` becomes true. Connections with a request under way
/// then finish it. Without `tls` the API speaks plain HTTP. Returns when all connections are
/// closed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Arc<App>,
    mut stop: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router(app.clone()));
    let acceptor = tls.map(TlsAcceptor::from);
    let connections = Arc::<Connections>::default();
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = connections.admit(address.ip()) else {
            app.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (acceptor, service, stop, app) = (acceptor.clone(), service.clone(), stop.clone(), app.clone());
        tasks.spawn(async move {
            app.metrics.connections.fetch_add(1, Ordering::Relaxed);
            app.metrics.connections_open.fetch_add(1, Ordering::Relaxed);
            let authenticated = slot.authenticated.clone();
            tokio::select! {
                () = connection((stream, address.ip()), acceptor, service, authenticated, &app, stop) => {}
                () = slot.evicted.cancelled() => {
                    app.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            app.metrics.connections_open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// Waits until the origin stops. A dropped sender means the same.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

type Service = TowerToHyperService<axum::Router>;

async fn connection(
    (stream, from): (TcpStream, IpAddr),
    acceptor: Option<TlsAcceptor>,
    service: Service,
    authenticated: Authenticated,
    app: &App,
    stop: watch::Receiver<bool>,
) {
    // Answers are small and must not wait for more data. If the socket refuses the option, it is
    // about to fail anyway.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return requests(stream, from, service, authenticated, stop).await;
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, from, service, authenticated, stop).await,
        Ok(Err(error)) => {
            app.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(error = %Chain(&error), "TLS handshake failed");
        }
        Err(_) => {
            app.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("TLS handshake took too long");
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: IpAddr,
    service: Service,
    authenticated: Authenticated,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(authenticated.clone());
        request.extensions_mut().insert(From(from.to_canonical()));
        service.call(request)
    });
    let io = TokioIo::new(Unstalled::new(stream));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = %Chain(&error), "connection ended");
    }
}
