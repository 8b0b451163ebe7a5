//! Errors of streams, and the codes with which streams and connections end.

use std::time::Duration;

use distd_core::error::causes;
use distd_core::proto::DecodeError;
use distd_core::proto::close::CloseCode;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

/// Reason why a stream could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection is lost.
    #[error("connection lost")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The peer ended the stream with a code.
    #[error("the peer ended the stream: {0}")]
    Closed(CloseCode),
    /// The peer sent bytes that are not a frame.
    #[error("the peer broke the protocol")]
    Decode(#[from] DecodeError),
    /// The stream ended inside a frame, or before a required frame.
    #[error("the stream ended too soon")]
    Truncated,
    /// The stream is of a kind that this build does not know.
    #[error("the peer opened a stream of unknown kind {0}")]
    StreamKind(u8),
    /// The HTTP server that answered is not distd, or is another version of distd.
    #[error("the peer answered with HTTP status {0}")]
    Status(u16),
    /// Nothing came for this long.
    #[error("nothing arrived for {} s", .0.as_secs())]
    Stalled(Duration),
}

impl WireError {
    /// Code to end the stream with after this error.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Decode(_) | Self::Truncated | Self::StreamKind(_) => CloseCode::Protocol,
            Self::Stalled(_) => CloseCode::Stalled,
            _ => CloseCode::Internal,
        }
    }
}

impl From<ReadError> for WireError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Closed(CloseCode::from_code(code.into_inner())),
            ReadError::ConnectionLost(cause) => Self::Connection(cause.into()),
            _ => Self::Truncated,
        }
    }
}

impl From<WriteError> for WireError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Closed(CloseCode::from_code(code.into_inner())),
            WriteError::ConnectionLost(cause) => Self::Connection(cause.into()),
            _ => Self::Truncated,
        }
    }
}

/// Whether the peer ended a connection or stream because this node is not authorised: it is
/// revoked, or has no right to what it asked for. `error` and its causes are looked at.
pub fn is_shut_out(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|error| {
        let stream = matches!(error.downcast_ref(), Some(WireError::Closed(CloseCode::Unauthorised)));
        let connection = matches!(error.downcast_ref(), Some(ConnectionError::ApplicationClosed(close))
            if CloseCode::from_code(close.error_code.into_inner()) == CloseCode::Unauthorised);
        stream || connection
    })
}

/// Converts a close code to quinn's type.
pub fn close_code(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.code()).unwrap_or(VarInt::MAX)
}
