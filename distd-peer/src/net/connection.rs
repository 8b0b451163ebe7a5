//! A connection over either transport, which opens and accepts streams.

use std::net::SocketAddr;

use distd_core::proto::close::CloseCode;
use quinn::ConnectionError;
use serde::{Deserialize, Serialize};

use super::WireError;
use super::endpoint::STREAMS_MOST;
use super::error::close_code;
use super::https;
use super::local;
use super::stream::{RecvStream, SendStream};
use crate::trust::tls::{
    ALPN_ENROLL, PeerIdentity, PeerRefused, identity_in, negotiated_alpn, peer_identity,
};

/// Transport of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// QUIC, over UDP.
    Quic,
    /// HTTP/2 over TLS, over TCP.
    Https,
    /// No network: the parent is a file of this machine.
    Local,
}

impl Carrier {
    /// Name of the carrier in settings and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Https => "https",
            Self::Local => "local",
        }
    }
}

/// The dialling end of a connection.
#[derive(Clone)]
pub(crate) enum Connection {
    Quic(quinn::Connection),
    Https(https::Dialled),
    Local(local::Dialled),
}

impl Connection {
    /// Opens a stream; its id is the same on both sides.
    pub(crate) async fn open(&self) -> Result<(u64, SendStream, RecvStream), WireError> {
        match self {
            Self::Quic(connection) => {
                let opened = connection.open_bi().await;
                let (send, recv) = opened.map_err(|e| WireError::Connection(e.into()))?;
                Ok((u64::from(send.id()), SendStream::Quic(send, None), RecvStream::Quic(recv)))
            }
            Self::Https(dialled) => dialled.open().await,
            Self::Local(dialled) => dialled.open().await,
        }
    }

    pub(crate) fn carrier(&self) -> Carrier {
        match self {
            Self::Quic(_) => Carrier::Quic,
            Self::Https(_) => Carrier::Https,
            Self::Local(_) => Carrier::Local,
        }
    }

    /// Address that packets are sent to: the proxy's, if there is one.
    pub(crate) fn remote(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Https(dialled) => dialled.remote(),
            Self::Local(dialled) => dialled.remote(),
        }
    }

    /// Returns the identity of the peer at `now` (unix seconds).
    pub(crate) fn identity(&self, now: u64) -> Result<PeerIdentity, PeerRefused> {
        match self {
            Self::Quic(connection) => peer_identity(connection, now),
            Self::Https(dialled) => identity_in(dialled.certificates(), now),
            Self::Local(dialled) => Ok(dialled.identity()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Quic(connection) => connection.close_reason().is_some(),
            Self::Https(dialled) => dialled.is_closed(),
            Self::Local(dialled) => dialled.is_closed(),
        }
    }

    /// Whether the connection ran over UDP and ended because nothing came any more.
    pub(crate) fn starved(&self) -> bool {
        matches!(self, Self::Quic(connection) if connection.close_reason() == Some(ConnectionError::TimedOut))
    }

    pub(crate) async fn closed(&self) {
        match self {
            Self::Quic(connection) => drop(connection.closed().await),
            Self::Https(dialled) => dialled.closed().await,
            Self::Local(dialled) => dialled.closed().await,
        }
    }

    /// Closes the connection with a code.
    pub(crate) fn close(&self, code: CloseCode) {
        match self {
            Self::Quic(connection) => connection.close(close_code(code), b""),
            Self::Https(dialled) => dialled.close(code),
            Self::Local(dialled) => dialled.close(code),
        }
    }
}

/// The accepting end of a connection.
pub(crate) enum Accepted {
    Quic(quinn::Connection),
    Https(Box<https::Accepted>),
    Local(local::Accepted),
}

impl Accepted {
    /// Returns the next stream and its id; `None` when the connection is over. Cancelling the
    /// future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<(u64, SendStream, RecvStream)> {
        match self {
            Self::Quic(connection) => {
                let (send, recv) = connection.accept_bi().await.ok()?;
                let send = SendStream::Quic(send, Some(connection.clone()));
                Some((u64::from(recv.id()), send, RecvStream::Quic(recv)))
            }
            Self::Https(accepted) => accepted.next().await,
            Self::Local(accepted) => accepted.next().await,
        }
    }

    /// Whether the peer may only enrol. Over TCP this is every peer without a certificate.
    pub(crate) fn enrols(&self) -> bool {
        match self {
            Self::Quic(connection) => negotiated_alpn(connection).as_deref() == Some(ALPN_ENROLL),
            Self::Https(accepted) => accepted.certificates().is_empty(),
            Self::Local(_) => false,
        }
    }

    /// Code with which the peer closed the connection, if it did.
    pub(crate) fn closed_with(&self) -> Option<CloseCode> {
        match self {
            Self::Quic(connection) => match connection.close_reason()? {
                ConnectionError::ApplicationClosed(close) => {
                    Some(CloseCode::from_code(close.error_code.into_inner()))
                }
                _ => None,
            },
            Self::Https(accepted) => accepted.closed_with(),
            Self::Local(accepted) => accepted.closed_with(),
        }
    }

    /// Returns the identity of the peer at `now` (unix seconds).
    pub(crate) fn identity(&self, now: u64) -> Result<PeerIdentity, PeerRefused> {
        match self {
            Self::Quic(connection) => peer_identity(connection, now),
            Self::Https(accepted) => identity_in(accepted.certificates(), now),
            Self::Local(accepted) => Ok(accepted.identity()),
        }
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Https(accepted) => accepted.remote(),
            Self::Local(accepted) => accepted.remote(),
        }
    }

    /// Sets how many streams the peer may have open at once.
    pub(crate) fn allow_streams(&mut self, streams: usize) {
        match self {
            Self::Quic(connection) => {
                let streams = u32::try_from(streams).unwrap_or(STREAMS_MOST).min(STREAMS_MOST);
                connection.set_max_concurrent_bi_streams(quinn::VarInt::from_u32(streams));
            }
            Self::Https(accepted) => accepted.allow_streams(streams),
            // Both ends are this process.
            Self::Local(_) => {}
        }
    }

    /// Refuses every further stream until the connection is over.
    pub(crate) async fn refuse(&mut self) {
        match self {
            Self::Quic(connection) => drop(connection.closed().await),
            Self::Https(accepted) => accepted.refuse().await,
            Self::Local(accepted) => accepted.ended().await,
        }
    }

    /// Waits until everything written has been sent and the connection is over.
    pub(crate) async fn finish(&mut self) {
        match self {
            Self::Quic(connection) => drop(connection.closed().await),
            Self::Https(accepted) => accepted.finish().await,
            Self::Local(accepted) => accepted.ended().await,
        }
    }

    /// Closes the connection with a code. Over TCP the peer does not learn the code.
    pub(crate) fn close(self, code: CloseCode) {
        match self {
            Self::Quic(connection) => connection.close(close_code(code), b""),
            Self::Https(accepted) => drop(accepted),
            Self::Local(accepted) => accepted.close(code),
        }
    }
}
