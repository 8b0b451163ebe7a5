//! One bidirectional stream of either transport.

use bytes::Bytes;
use distd_core::proto::close::CloseCode;

use super::endpoint::fit_send_window;
use super::error::{WireError, close_code};
use super::http2::{BodyIn, BodyOut};
use super::local::{PipeIn, PipeOut};

/// The half that this side writes. Dropping it ends the stream after everything written.
pub(crate) enum SendStream {
    /// Half of a QUIC stream. The answerer's half also has its connection, whose send window
    /// follows the path.
    Quic(quinn::SendStream, Option<quinn::Connection>),
    /// Body of an HTTP/2 message.
    Https(BodyOut),
    /// A pipe inside this process.
    Local(PipeIn),
}

/// The half that this side reads. Dropping it before its end asks the peer to stop sending.
pub(crate) enum RecvStream {
    /// Half of a QUIC stream.
    Quic(quinn::RecvStream),
    /// Body of an HTTP/2 message.
    Https(BodyIn),
    /// A pipe inside this process.
    Local(PipeOut),
}

impl SendStream {
    /// Writes all of `bytes`, and waits while the peer gives no room.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), WireError> {
        match self {
            Self::Quic(stream, connection) => {
                connection.iter().for_each(fit_send_window);
                Ok(stream.write_chunk(bytes).await?)
            }
            Self::Https(body) => body.write(bytes).await,
            Self::Local(pipe) => pipe.write(bytes).await,
        }
    }

    /// Writes all of `pieces`, which are empty afterwards.
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
            Self::Local(pipe) => {
                for piece in pieces {
                    pipe.write(std::mem::take(piece)).await?;
                }
                Ok(())
            }
        }
    }

    /// Waits until the peer wants nothing more of the stream, or is gone. Cancelling the future
    /// loses nothing.
    pub(crate) async fn stopped(&self) -> WireError {
        match self {
            Self::Quic(stream, _) => match stream.stopped().await {
                Ok(Some(code)) => WireError::Closed(CloseCode::from_code(code.into_inner())),
                Ok(None) => WireError::Closed(CloseCode::Done),
                Err(error) => WireError::Connection(error.into()),
            },
            Self::Https(body) => body.stopped().await,
            Self::Local(pipe) => pipe.stopped().await,
        }
    }

    /// Ends the stream after everything written.
    pub(crate) fn finish(&mut self) {
        match self {
            // An error means that the stream has been reset already, and its reader knows.
            Self::Quic(stream, _) => drop(stream.finish()),
            Self::Https(body) => body.finish(),
            Self::Local(pipe) => pipe.finish(),
        }
    }

    /// Ends the stream at once with a code.
    pub(crate) fn reset(&mut self, code: CloseCode) {
        match self {
            Self::Quic(stream, _) => drop(stream.reset(close_code(code))),
            Self::Https(body) => body.reset(code),
            Self::Local(pipe) => pipe.reset(code),
        }
    }
}

impl RecvStream {
    /// Reads the next bytes into `pieces` and returns the number of pieces; `None` at the end.
    /// Cancelling the future loses nothing.
    pub(crate) async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, WireError> {
        match self {
            Self::Quic(stream) => Ok(stream.read_chunks(pieces).await?),
            Self::Https(body) => {
                let Some(piece) = body.read().await? else { return Ok(None) };
                pieces[0] = piece;
                Ok(Some(1))
            }
            Self::Local(pipe) => {
                let Some(piece) = pipe.read().await? else { return Ok(None) };
                pieces[0] = piece;
                Ok(Some(1))
            }
        }
    }

    /// Asks the peer to stop sending.
    pub(crate) fn stop(&mut self, code: CloseCode) {
        match self {
            // An error means that the stream has ended already, which is the goal.
            Self::Quic(stream) => drop(stream.stop(close_code(code))),
            Self::Https(body) => body.stop(code),
            Self::Local(pipe) => pipe.stop(code),
        }
    }
}
