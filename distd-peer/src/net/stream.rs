//! One bidirectional stream, of whichever transport.

use bytes::Bytes;
use distd_core::proto::close::CloseCode;

use super::WireError;
use super::endpoint::fit_send_window;
use super::http2::{BodyIn, BodyOut};
use super::wire::close_code;

/// The half this side writes. Dropped, it ends after what was written.
pub(crate) enum SendStream {
    /// Of a QUIC stream; that of an answer with its connection, whose window follows the path.
    Quic(quinn::SendStream, Option<quinn::Connection>),
    /// A body of HTTP/2.
    Https(BodyOut),
}

/// The half this side reads. Dropped before its end, the peer is told to send no more.
pub(crate) enum RecvStream {
    /// Of a QUIC stream.
    Quic(quinn::RecvStream),
    /// A body of HTTP/2.
    Https(BodyIn),
}

impl SendStream {
    /// Writes all of `bytes`, as far as the peer makes room.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), WireError> {
        match self {
            Self::Quic(stream, connection) => {
                connection.iter().for_each(fit_send_window);
                Ok(stream.write_chunk(bytes).await?)
            }
            Self::Https(body) => body.write(bytes).await,
        }
    }

    /// The same for all of `pieces`, which are empty then.
    pub(crate) async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), WireError> {
        match self {
            Self::Quic(stream, connection) if !pieces.is_empty() => {
                connection.iter().for_each(fit_send_window);
                Ok(stream.write_all_chunks(pieces).await?)
            }
            Self::Quic(..) => Ok(()),
            Self::Https(body) => {
                for piece in pieces {
                    body.write(std::mem::take(piece)).await?;
                }
                Ok(())
            }
        }
    }

    /// Returns when the peer wants nothing more of it, or is gone. Cancelling the future loses nothing.
    pub(crate) async fn stopped(&self) -> WireError {
        match self {
            Self::Quic(stream, _) => match stream.stopped().await {
                Ok(Some(code)) => WireError::Closed(CloseCode::from_code(code.into_inner())),
                Ok(None) => WireError::Closed(CloseCode::Done),
                Err(error) => WireError::Connection(error.into()),
            },
            Self::Https(body) => body.stopped().await,
        }
    }

    /// Ends the stream after what was written.
    pub(crate) fn finish(&mut self) {
        match self {
            // An error means the stream has been reset already, and its reader knows.
            Self::Quic(stream, _) => drop(stream.finish()),
            Self::Https(body) => body.finish(),
        }
    }

    /// Ends the stream at once with a code.
    pub(crate) fn reset(&mut self, code: CloseCode) {
        match self {
            Self::Quic(stream, _) => drop(stream.reset(close_code(code))),
            Self::Https(body) => body.reset(code),
        }
    }
}

impl RecvStream {
    /// The next bytes, in as many pieces as have come; how many that are, `None` at the end. Cancelling the future loses nothing.
    pub(crate) async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, WireError> {
        match self {
            Self::Quic(stream) => Ok(stream.read_chunks(pieces).await?),
            Self::Https(body) => {
                let Some(piece) = body.read().await? else { return Ok(None) };
                pieces[0] = piece;
                Ok(Some(1))
            }
        }
    }

    /// Tells the peer to send no more.
    pub(crate) fn stop(&mut self, code: CloseCode) {
        match self {
            // An error means the stream has ended already, which is what was wanted.
            Self::Quic(stream) => drop(stream.stop(close_code(code))),
            Self::Https(body) => body.stop(code),
        }
    }
}
