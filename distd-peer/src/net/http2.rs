//! Streams of HTTP/2: the request's body is the asker's half, the response's the answerer's (docs/protocol.md, "Over TCP").

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use distd_core::proto::close::CloseCode;
use h2::Reason;
use h2::client::ResponseFuture;
use http::StatusCode;

use super::WireError;

/// What a close code is added to in RST_STREAM: HTTP/2's own error codes are small numbers. "di".
const CODE_BASE: u32 = 0x6469_0000;

/// Bytes asked for at once from flow control.
const PIECE_MAX: usize = 256 << 10;

fn reason(code: CloseCode) -> Reason {
    let low = u16::try_from(code.code()).unwrap_or(u16::MAX);
    Reason::from(CODE_BASE | u32::from(low))
}

fn close_code_of(reason: Reason) -> CloseCode {
    match u32::from(reason) {
        code if code & 0xffff_0000 == CODE_BASE => CloseCode::from_code(u64::from(code & 0xffff)),
        // A stream that was dropped by its reader or writer: HTTP/2's own codes.
        _ if reason == Reason::CANCEL || reason == Reason::NO_ERROR => CloseCode::Cancelled,
        _ if reason == Reason::REFUSED_STREAM => CloseCode::Busy,
        code => CloseCode::Unknown(u64::from(code)),
    }
}

/// What an error of HTTP/2 is to a stream.
pub(super) fn wire_error(error: h2::Error) -> WireError {
    match error.reason() {
        Some(reason) if error.is_reset() => WireError::Closed(close_code_of(reason)),
        _ => WireError::Connection(error.into()),
    }
}

/// Both bodies may end the stream, so both have this; the lock is held for no wait.
type Shared = Arc<Mutex<h2::SendStream<Bytes>>>;

fn lock(stream: &Shared) -> MutexGuard<'_, h2::SendStream<Bytes>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body this side sends.
pub(crate) struct BodyOut {
    stream: Shared,
    ended: bool,
}

/// The body the other side sends.
pub(crate) struct BodyIn {
    state: Incoming,
    stream: Shared,
}

enum Incoming {
    /// The answer has not begun.
    Awaited(ResponseFuture),
    Body(h2::RecvStream),
}

/// The asker's two halves of a stream.
pub(super) fn asked(response: ResponseFuture, body: h2::SendStream<Bytes>) -> (BodyOut, BodyIn) {
    pair(Incoming::Awaited(response), body)
}

/// The answerer's.
pub(super) fn answered(request: h2::RecvStream, body: h2::SendStream<Bytes>) -> (BodyOut, BodyIn) {
    pair(Incoming::Body(request), body)
}

fn pair(state: Incoming, body: h2::SendStream<Bytes>) -> (BodyOut, BodyIn) {
    let stream = Arc::new(Mutex::new(body));
    (BodyOut { stream: stream.clone(), ended: false }, BodyIn { state, stream })
}

impl BodyOut {
    pub(super) async fn write(&mut self, mut bytes: Bytes) -> Result<(), WireError> {
        while !bytes.is_empty() {
            let want = bytes.len().min(PIECE_MAX);
            let room = poll_fn(|cx| self.poll_room(cx, want)).await?;
            let piece = bytes.split_to(room.min(bytes.len()));
            lock(&self.stream).send_data(piece, false).map_err(wire_error)?;
        }
        Ok(())
    }

    /// How many bytes, of `want`, may be sent now.
    fn poll_room(&self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, WireError>> {
        let mut stream = lock(&self.stream);
        // A stream the peer has reset may still have room.
        if let Poll::Ready(reset) = stream.poll_reset(cx) {
            let error = reset.map_or_else(wire_error, |reason| WireError::Closed(close_code_of(reason)));
            return Poll::Ready(Err(error));
        }
        stream.reserve_capacity(want);
        loop {
            match stream.capacity() {
                0 => match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(wire_error(error))),
                    None => return Poll::Ready(Err(WireError::Truncated)),
                },
                room => return Poll::Ready(Ok(room)),
            }
        }
    }

    pub(super) fn finish(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            // An error means the stream is over, and its reader knows.
            let _ = lock(&self.stream).send_data(Bytes::new(), true);
        }
    }

    pub(super) fn reset(&mut self, code: CloseCode) {
        self.ended = true;
        lock(&self.stream).send_reset(reason(code));
    }
}

impl Drop for BodyOut {
    fn drop(&mut self) {
        self.finish();
    }
}

impl BodyIn {
    /// The next bytes, at most a frame; `None` at the end. Cancelling the future loses nothing.
    pub(super) async fn read(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            match &mut self.state {
                Incoming::Awaited(response) => {
                    let response = response.await.map_err(wire_error)?;
                    if response.status() != StatusCode::OK {
                        return Err(WireError::Status(response.status().as_u16()));
                    }
                    self.state = Incoming::Body(response.into_body());
                }
                Incoming::Body(body) => {
                    let bytes = match body.data().await {
                        Some(Ok(bytes)) => bytes,
                        // Answered to the end before the question was read to its own (RFC 9113 section 8.1).
                        Some(Err(e)) if e.is_reset() && e.reason() == Some(Reason::NO_ERROR) => {
                            return Ok(None);
                        }
                        Some(Err(error)) => return Err(wire_error(error)),
                        None => return Ok(None),
                    };
                    // Whoever reads has room again. An error comes with the next read.
                    let _ = body.flow_control().release_capacity(bytes.len());
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// HTTP/2 ends both halves at once.
    pub(super) fn stop(&mut self, code: CloseCode) {
        lock(&self.stream).send_reset(reason(code));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_come_through_and_those_of_http_are_none_of_them() {
        let all = [
            CloseCode::Done,
            CloseCode::Protocol,
            CloseCode::NoManifest,
            CloseCode::Unauthorised,
            CloseCode::IntegrityFailed,
            CloseCode::Version,
            CloseCode::Busy,
            CloseCode::Stalled,
            CloseCode::Cancelled,
            CloseCode::Internal,
        ];
        for code in all {
            assert_eq!(close_code_of(reason(code)), code);
        }
        assert_eq!(close_code_of(Reason::PROTOCOL_ERROR), CloseCode::Unknown(1));
        assert_eq!(close_code_of(Reason::CANCEL), CloseCode::Cancelled);
    }
}
