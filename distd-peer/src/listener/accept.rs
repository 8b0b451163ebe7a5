//! The loop that accepts connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use distd_core::error::Chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::{Authenticated, Connections};

/// Longest duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pause after an accept failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server of the connections that [`accept`] takes.
pub trait ConnectionServer: Send + Sync + 'static {
    /// Counts a connection that was closed because too many were open.
    fn refused(&self);

    /// Counts a connection that begins.
    fn opened(&self) {}

    /// Counts the end of a connection that began.
    fn closed(&self) {}

    /// Serves a connection until it ends. The server marks `authenticated` once the caller has
    /// shown a token, and finishes the request under way when `stop` becomes true.
    fn serve(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        authenticated: Authenticated,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send;
}

/// Accepts connections on `listener` until `stop` becomes true or its sender is gone. Returns the
/// connections that are still open, for the caller to wait for.
pub async fn accept(
    listener: TcpListener,
    server: Arc<impl ConnectionServer>,
    mut stop: watch::Receiver<bool>,
) -> TaskTracker {
    let connections = Arc::<Connections>::default();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = connections.admit(from.ip()) else {
            server.refused();
            continue;
        };
        // Answers are small and must not wait for more data. If the socket refuses the option, it
        // is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let (server, stop) = (server.clone(), stop.clone());
        tasks.spawn(async move {
            server.opened();
            tokio::select! {
                () = server.serve(stream, from, slot.authenticated.clone(), stop) => {}
                () = slot.evicted.cancelled() => server.refused(),
            }
            server.closed();
        });
    }
    tasks.close();
    tasks
}

/// Waits until a server stops. A dropped sender means the same.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves a connection until its end. Once `stop` becomes true, `shut_down` tells the connection to
/// end after the request under way.
pub async fn serve_until<C: Future>(
    connection: C,
    stop: &mut watch::Receiver<bool>,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = stopped(stop) => shut_down(connection.as_mut()),
    }
    connection.await
}

/// Does the TLS handshake of a connection.
///
/// # Errors
/// When the handshake fails, or takes longer than ten seconds.
pub async fn secured(stream: TcpStream, acceptor: &TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")))
}
