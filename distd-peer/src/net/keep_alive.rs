//! Detection of dead TCP connections: QUIC's timers, with PING of HTTP/2.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::endpoint::{IDLE, KEEP_ALIVE};

/// Pings a silent peer. Returns when the peer has been silent for as long as QUIC's idle timeout.
pub(super) async fn keep_alive(ping: Option<PingPong>, mut heard: watch::Receiver<Instant>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    keep_alive_with(&mut ping, &mut heard).await;
}

/// Like [`keep_alive`], with borrowed arguments.
pub(super) async fn keep_alive_with(ping: &mut PingPong, heard: &mut watch::Receiver<Instant>) {
    loop {
        let last = *heard.borrow();
        if last.elapsed() >= IDLE {
            return;
        }
        tokio::time::sleep_until(last + KEEP_ALIVE).await;
        if heard.borrow().elapsed() < KEEP_ALIVE {
            continue;
        }
        // Only one ping can be open, so take the answer to the last one first, if it came.
        let _ = poll_fn(|cx| ping.poll_pong(cx)).now_or_never();
        let _ = ping.send_ping(Ping::opaque());
        tokio::time::sleep(KEEP_ALIVE / 2).await;
    }
}

/// A stream that records when something was last read from it.
pub(crate) struct Heard<S> {
    stream: S,
    last: watch::Sender<Instant>,
}

impl<S> Heard<S> {
    pub(super) fn new(stream: S) -> (Self, watch::Receiver<Instant>) {
        let (last, heard) = watch::channel(Instant::now());
        (Self { stream, last }, heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if result.is_ready() {
            self.last.send_replace(Instant::now());
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_kept_and_a_silent_one_is_dropped() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (near, heard) = Heard::new(near);
        let (client, server) = tokio::join!(
            h2::client::Builder::new().handshake::<_, bytes::Bytes>(near),
            h2::server::handshake(far)
        );
        let ((_requests, mut connection), mut server) = (client.expect("client"), server.expect("server"));
        let ping = connection.ping_pong();
        tokio::spawn(connection);
        let (freeze, frozen) = tokio::sync::oneshot::channel::<()>();
        let answering = tokio::spawn(async move {
            tokio::select! {
                () = async { while server.accept().await.is_some() {} } => {}
                _ = frozen => {}
            }
            // The server's end of the pipe stays open, and nobody reads it.
            std::future::pending::<()>().await;
            drop(server);
        });
        let mut left = std::pin::pin!(keep_alive(ping, heard));
        assert!(tokio::time::timeout(Duration::from_secs(600), &mut left).await.is_err(), "it answers");
        freeze.send(()).expect("it runs");
        tokio::time::timeout(Duration::from_secs(60), left).await.expect("left after half a minute");
        answering.abort();
    }
}
