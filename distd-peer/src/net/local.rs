//! Connections inside one process: the answering side of the protocol serves a file of this
//! machine, and this machine's own asker dials it as it dials a parent.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use distd_core::proto::close::CloseCode;
use distd_core::role::Role;
use tokio::sync::{mpsc, watch};

use super::WireError;
use super::stream::{RecvStream, SendStream};
use crate::serve::Server;
use crate::trust::identity::NodeId;
use crate::trust::tls::PeerIdentity;

/// Streams that wait to be accepted.
const OPENED_MAX: usize = 64;

/// Pieces of a stream that wait to be read. A piece is at most a chunk.
const PIECES_MAX: usize = 8;

/// Address that both ends of such a connection show.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A parent inside this process.
#[derive(Clone)]
pub struct LocalParent {
    server: Arc<Server>,
    node: NodeId,
}

impl fmt::Debug for LocalParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalParent({})", self.node)
    }
}

impl LocalParent {
    /// Creates a parent that `server` answers for. `node` stands for it in the list of parents that
    /// sent wrong bytes.
    pub fn new(server: Arc<Server>, node: NodeId) -> Self {
        Self { server, node }
    }

    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// Connects to the parent. Needs a runtime.
    pub(super) fn connect(&self) -> Dialled {
        let (opens, opened) = mpsc::channel(OPENED_MAX);
        let closed = Arc::new(watch::Sender::new(None));
        let identity = PeerIdentity { node_id: self.node, role: Role::Relay, expires: u64::MAX };
        let accepted = Accepted { opened, identity: identity.clone(), closed: closed.clone() };
        tokio::spawn(self.server.clone().serve_local(accepted));
        Dialled { opens, next: Arc::default(), identity, closed }
    }
}

/// Code with which a connection was closed, once it is.
type Closed = Arc<watch::Sender<Option<CloseCode>>>;

type Opened = (u64, SendStream, RecvStream);

/// The dialling end of a connection.
#[derive(Clone)]
pub(crate) struct Dialled {
    opens: mpsc::Sender<Opened>,
    /// Id of the next stream.
    next: Arc<AtomicU64>,
    identity: PeerIdentity,
    closed: Closed,
}

impl Dialled {
    pub(super) async fn open(&self) -> Result<Opened, WireError> {
        let lost = || WireError::Connection("the file is not served any more".into());
        if self.is_closed() {
            return Err(lost());
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to_server, from_dialler) = pipe();
        let (to_dialler, from_server) = pipe();
        let theirs = (id, SendStream::Local(to_dialler), RecvStream::Local(from_dialler));
        self.opens.send(theirs).await.map_err(|_| lost())?;
        Ok((id, SendStream::Local(to_server), RecvStream::Local(from_server)))
    }

    pub(super) fn identity(&self) -> PeerIdentity {
        self.identity.clone()
    }

    pub(super) fn remote(&self) -> SocketAddr {
        ADDRESS
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some() || self.opens.is_closed()
    }

    pub(super) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            _ = closed.wait_for(Option::is_some) => {}
            () = self.opens.closed() => {}
        }
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.closed.send_replace(Some(code));
    }
}

/// The accepting end of a connection.
pub(crate) struct Accepted {
    opened: mpsc::Receiver<Opened>,
    identity: PeerIdentity,
    closed: Closed,
}

impl Accepted {
    pub(super) async fn next(&mut self) -> Option<Opened> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => None,
            opened = self.opened.recv() => opened,
        }
    }

    pub(super) fn identity(&self) -> PeerIdentity {
        self.identity.clone()
    }

    pub(super) fn remote(&self) -> SocketAddr {
        ADDRESS
    }

    pub(super) fn closed_with(&self) -> Option<CloseCode> {
        *self.closed.borrow()
    }

    pub(super) fn close(self, code: CloseCode) {
        self.closed.send_replace(Some(code));
    }

    /// Waits until the dialler has closed the connection or is gone.
    pub(super) async fn ended(&mut self) {
        while self.next().await.is_some() {}
    }
}

/// Codes with which the two ends of a pipe gave up.
#[derive(Default)]
struct Ends {
    /// Given by the writer.
    reset: Option<CloseCode>,
    /// Given by the reader.
    stopped: Option<CloseCode>,
}

/// One direction of a stream.
fn pipe() -> (PipeIn, PipeOut) {
    let (send, recv) = mpsc::channel(PIECES_MAX);
    let ends = Arc::<Mutex<Ends>>::default();
    (PipeIn { send: Some(send), ends: ends.clone() }, PipeOut { recv, ends })
}

fn with<T>(ends: &Mutex<Ends>, work: impl FnOnce(&mut Ends) -> T) -> T {
    work(&mut ends.lock().unwrap_or_else(PoisonError::into_inner))
}

/// End of a pipe that is written to.
pub(crate) struct PipeIn {
    /// `None` after the end of the stream.
    send: Option<mpsc::Sender<Bytes>>,
    ends: Arc<Mutex<Ends>>,
}

impl PipeIn {
    fn refused(&self) -> WireError {
        WireError::Closed(with(&self.ends, |ends| ends.stopped).unwrap_or(CloseCode::Done))
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), WireError> {
        let Some(send) = &self.send else { return Err(WireError::Truncated) };
        send.send(bytes).await.map_err(|_| self.refused())
    }

    pub(super) async fn stopped(&self) -> WireError {
        if let Some(send) = &self.send {
            send.closed().await;
        }
        self.refused()
    }

    pub(super) fn finish(&mut self) {
        self.send = None;
    }

    pub(super) fn reset(&mut self, code: CloseCode) {
        with(&self.ends, |ends| ends.reset = Some(code));
        self.send = None;
    }
}

/// End of a pipe that is read.
pub(crate) struct PipeOut {
    recv: mpsc::Receiver<Bytes>,
    ends: Arc<Mutex<Ends>>,
}

impl PipeOut {
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, WireError> {
        match self.recv.recv().await {
            Some(bytes) => Ok(Some(bytes)),
            None => with(&self.ends, |ends| ends.reset).map_or(Ok(None), |code| Err(WireError::Closed(code))),
        }
    }

    pub(super) fn stop(&mut self, code: CloseCode) {
        with(&self.ends, |ends| ends.stopped = Some(code));
        self.recv.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_sees_the_end_and_a_reset() {
        let (mut input, mut output) = pipe();
        input.write(Bytes::from_static(b"a")).await.expect("room");
        input.finish();
        assert_eq!(output.read().await.expect("no reset").as_deref(), Some(&b"a"[..]));
        assert!(output.read().await.expect("no reset").is_none());
        let (mut input, mut output) = pipe();
        input.reset(CloseCode::Busy);
        assert!(matches!(output.read().await, Err(WireError::Closed(CloseCode::Busy))));
    }

    #[tokio::test]
    async fn a_writer_learns_why_nobody_reads() {
        let (mut input, mut output) = pipe();
        output.stop(CloseCode::Stalled);
        assert!(matches!(input.stopped().await, WireError::Closed(CloseCode::Stalled)));
        let refused = input.write(Bytes::from_static(b"a")).await;
        assert!(matches!(refused, Err(WireError::Closed(CloseCode::Stalled))));
        let (input, output) = pipe();
        drop(output);
        assert!(matches!(input.stopped().await, WireError::Closed(CloseCode::Done)));
    }
}
