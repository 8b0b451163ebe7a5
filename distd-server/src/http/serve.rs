//! Connections of the HTTP API: TLS, limits in time and number, and a graceful stop.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use distd_core::error::Chain;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::connections::{Authenticated, Connections};
use super::{App, router};

/// Longest duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Longest time for a request's head, which is also how long an idle connection stays open.
const HEAD: Duration = Duration::from_secs(30);

/// Longest time for which a caller may leave a response unread.
const WRITE_STALL: Duration = Duration::from_secs(60);

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
                () = connection(stream, acceptor, service, authenticated, &app, stop) => {}
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
    stream: TcpStream,
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
        return requests(stream, service, authenticated, stop).await;
    };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, service, authenticated, stop).await,
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
    service: Service,
    authenticated: Authenticated,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(authenticated.clone());
        service.call(request)
    });
    let io = TokioIo::new(Unstalled { stream, since: None });
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

/// Stream whose writes fail once they have made no progress for [`WRITE_STALL`], so that a caller
/// cannot hold a connection by not reading.
struct Unstalled<S> {
    stream: S,
    since: Option<Pin<Box<Sleep>>>,
}

impl<S> Unstalled<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.since = None;
            return result;
        }
        let since = self.since.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + WRITE_STALL)));
        ready!(since.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, result)
    }
}
