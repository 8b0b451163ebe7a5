//! Frame readers and writers on streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::proto::close::CloseCode;
use distd_core::proto::stream::StreamKind;
use distd_core::proto::{Frame, FrameDecoder};

use super::Meter;
use super::error::WireError;
use super::stream::{RecvStream, SendStream};

/// Maximum number of pieces read at once, each at most one packet (QUIC) or frame (HTTP/2). A
/// decoder holds at most this much beyond a frame.
const PIECES: usize = 32;

/// Number of coalesced bytes from which on a write is due.
const WRITE_BYTES: usize = 128 << 10;

/// Reader of frames from a stream, which counts the received bytes.
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    meter: Arc<Meter>,
    stall: Duration,
    pieces: [Bytes; PIECES],
}

impl FrameReader {
    /// Creates a reader that fails when nothing comes for `stall`.
    pub(crate) fn new(stream: RecvStream, meter: Arc<Meter>, stall: Duration) -> Self {
        Self { stream, decoder: FrameDecoder::default(), meter, stall, pieces: Default::default() }
    }

    /// Reads the next pieces; `None` at the end of the stream. Cancelling the future loses nothing.
    async fn read(&mut self) -> Result<Option<&mut [Bytes]>, WireError> {
        let read = self.stream.read(&mut self.pieces);
        let count =
            tokio::time::timeout(self.stall, read).await.map_err(|_| WireError::Stalled(self.stall))??;
        let Some(count) = count else { return Ok(None) };
        let pieces = &mut self.pieces[..count];
        self.meter.received(pieces.iter().map(Bytes::len).sum());
        Ok(Some(pieces))
    }

    /// Reads the header that states the kind of the stream. Called first, and only by the side that
    /// did not open the stream.
    pub async fn stream_kind(&mut self) -> Result<StreamKind, WireError> {
        let mut held = Vec::new();
        loop {
            let mut rest = &held[..];
            match StreamKind::take(&mut rest) {
                Ok(Some(kind)) => {
                    self.decoder.push(rest);
                    return Ok(kind);
                }
                Ok(None) => {}
                Err(number) => return Err(WireError::StreamKind(number)),
            }
            for piece in self.read().await?.ok_or(WireError::Truncated)? {
                held.extend_from_slice(&std::mem::take(piece));
            }
        }
    }

    /// Returns the next frame; `None` at the end of the stream. Cancelling the future loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            if let Some(frame) = self.arrived()? {
                return Ok(Some(frame));
            }
            let Some(count) = self.read().await?.map(|pieces| pieces.len()) else {
                return if self.decoder.pending() == 0 { Ok(None) } else { Err(WireError::Truncated) };
            };
            self.decoder.push_all(&self.pieces[..count]);
            self.pieces[..count].fill(Bytes::new());
        }
    }

    /// Returns the next frame if it has been read completely already.
    pub fn arrived(&mut self) -> Result<Option<Frame>, WireError> {
        let frame = self.decoder.poll()?;
        if matches!(frame, Some(Frame::Unknown { .. })) {
            self.meter.unknown_frame();
        }
        Ok(frame)
    }

    /// Asks the peer to stop sending.
    pub fn stop(&mut self, code: CloseCode) {
        self.stream.stop(code);
    }
}

/// Writer of frames to a stream.
pub struct FrameWriter {
    stream: SendStream,
    coalesced: Vec<Bytes>,
    coalesced_bytes: usize,
}

impl FrameWriter {
    /// Creates a writer on `stream`.
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, coalesced: Vec::new(), coalesced_bytes: 0 }
    }

    /// Writes the header of a stream that this side opened.
    pub async fn stream_kind(&mut self, kind: StreamKind) -> Result<(), WireError> {
        self.stream.write(kind.encode().into()).await
    }

    /// Writes one frame, after the coalesced ones.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), WireError> {
        self.gather(frame);
        self.flush().await
    }

    /// Adds a frame to those written in one go. Returns true when [`Self::flush`] should follow.
    pub fn gather(&mut self, frame: &Frame) -> bool {
        let before = self.coalesced.len();
        frame.encode_pieces(&mut self.coalesced);
        self.coalesced_bytes += self.coalesced[before..].iter().map(Bytes::len).sum::<usize>();
        self.coalesced_bytes >= WRITE_BYTES
    }

    /// Writes the coalesced frames.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        self.coalesced_bytes = 0;
        let written = self.stream.write_all(&mut self.coalesced).await;
        self.coalesced.clear();
        written
    }

    /// Writes part of a frame's bytes.
    pub async fn write_piece(&mut self, piece: Bytes) -> Result<(), WireError> {
        self.stream.write(piece).await
    }

    /// Waits until the peer wants nothing more of the stream, or is gone. Cancelling the future
    /// loses nothing.
    pub async fn stopped(&self) -> WireError {
        self.stream.stopped().await
    }

    /// Ends the stream after everything written.
    pub fn finish(&mut self) {
        self.stream.finish();
    }

    /// Ends the stream at once with a code.
    pub fn reset(&mut self, code: CloseCode) {
        self.stream.reset(code);
    }
}
