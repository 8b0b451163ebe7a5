//! Tunnels of CONNECT, for repositories over HTTPS: bytes that the proxy cannot read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use distd_core::error::Chain;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::address::host_and_port;
use super::counters::count;
use super::flight::Failure;
use super::mirror::MirrorError;
use super::{Proxy, Reply, reply};
use crate::gateway::Refusal;
use crate::listener::stopped;

/// Stream that counts the bytes that are read from it.
struct Counted<S> {
    stream: S,
    read: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Proxy {
    /// Answers CONNECT: opens a tunnel to a host on the list.
    pub(super) async fn connect(
        self: &Arc<Self>,
        request: Request<Incoming>,
        stop: watch::Receiver<bool>,
    ) -> Response<Reply> {
        let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
        let Ok((host, port)) = host_and_port(&authority.unwrap_or_default(), 443) else {
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, "CONNECT names no host", "");
            return refusal.into_response().map(Reply::File);
        };
        // The port of plain HTTP is none for a tunnel.
        let checked = match port {
            80 => Err(Refusal::new(StatusCode::FORBIDDEN, "no tunnel leads to port 80", "")),
            port => self.check_host(&host, port),
        };
        if let Err(refusal) = checked {
            return refusal.into_response().map(Reply::File);
        }
        let Ok(permit) = self.tunnels.clone().try_acquire_owned() else {
            return Refusal::later("too many tunnels are open", "", 10).into_response().map(Reply::File);
        };
        let server = match self.mirrors.open(&host, port).await {
            Ok(server) => server,
            Err(error) => {
                let failure = Failure::from(MirrorError::from(error));
                if matches!(failure, Failure::Refused(_)) {
                    count(&self.counters.hosts_refused);
                }
                return reply::failed(&failure);
            }
        };
        count(&self.counters.tunnels);
        let proxy = self.clone();
        tokio::spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(client) => proxy.carry(TokioIo::new(client), server, stop).await,
                Err(error) => tracing::debug!(error = %Chain(&error), "a tunnel was not taken"),
            }
            drop(permit);
        });
        Response::new(Reply::empty())
    }

    /// Carries bytes both ways until one side ends, nothing moves for too long, or the proxy stops.
    async fn carry(
        &self,
        client: impl AsyncRead + AsyncWrite + Unpin,
        server: impl AsyncRead + AsyncWrite + Unpin,
        mut stop: watch::Receiver<bool>,
    ) {
        let read = Arc::<AtomicU64>::default();
        let mut client = Counted { stream: client, read: read.clone() };
        let mut server = Counted { stream: server, read: read.clone() };
        let idle = async {
            let mut before = u64::MAX;
            loop {
                let now = read.load(Ordering::Relaxed);
                if now == before {
                    break;
                }
                before = now;
                tokio::time::sleep(self.settings.tunnel_idle).await;
            }
        };
        tokio::select! {
            carried = tokio::io::copy_bidirectional(&mut client, &mut server) => {
                if let Err(error) = carried {
                    tracing::debug!(error = %Chain(&error), "a tunnel broke");
                }
            }
            () = idle => count(&self.counters.tunnels_idle),
            () = async {
                stopped(&mut stop).await;
                // A transfer that is under way may end.
                tokio::time::sleep(DRAIN).await;
            } => {}
        }
    }
}

/// Time that tunnels have to end when the proxy stops.
const DRAIN: Duration = Duration::from_secs(2);
