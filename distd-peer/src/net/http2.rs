//! Streams of HTTP/2. The request's body is the asker's half, the response's body the answerer's
//! (docs/protocol.md, "Over TCP").

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use distd_core::proto::close::CloseCode;
use h2::Reason;
use h2::client::ResponseFuture;
use http::StatusCode;
use tokio::sync::OwnedSemaphorePermit;

use super::WireError;

/// Number added to a close code in RST_STREAM, as HTTP/2's own error codes are small numbers. ASCII
/// "di" in the upper half.
const CODE_BASE: u32 = 0x6469_0000;

/// Maximum number of bytes requested at once from flow control.
const PIECE_MAX: usize = 256 << 10;

fn reason(code: CloseCode) -> Reason {
    let low = u16::try_from(code.code()).unwrap_or(u16::MAX);
    Reason::from(CODE_BASE | u32::from(low))
}

fn was_reset(reason: Reason) -> WireError {
    WireError::Closed(close_code_of(reason))
}

fn close_code_of(reason: Reason) -> CloseCode {
    match u32::from(reason) {
        code if code & 0xffff_0000 == CODE_BASE => CloseCode::from_code(u64::from(code & 0xffff)),
        // HTTP/2's own codes: a stream whose reader or writer was dropped.
        _ if reason == Reason::CANCEL || reason == Reason::NO_ERROR => CloseCode::Cancelled,
        _ if reason == Reason::REFUSED_STREAM => CloseCode::Busy,
        code => CloseCode::Unknown(u64::from(code)),
    }
}

/// Converts an error of HTTP/2 to an error of the stream.
pub(super) fn wire_error(error: h2::Error) -> WireError {
    match error.reason() {
        Some(reason) if error.is_reset() => WireError::Closed(close_code_of(reason)),
        _ => WireError::Connection(error.into()),
    }
}

/// Sender of a stream, shared because either half may reset the stream. The lock is never held
/// across an await.
type Shared = Arc<Mutex<h2::SendStream<Bytes>>>;

fn lock(stream: &Shared) -> MutexGuard<'_, h2::SendStream<Bytes>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half of a stream that this side sends.
pub(crate) struct BodyOut {
    stream: Shared,
    ended: bool,
    /// Permit of the answerer, held until this half is dropped, even if the asker has reset the
    /// stream.
    _slot: Option<OwnedSemaphorePermit>,
}

/// The half of a stream that the peer sends.
pub(crate) struct BodyIn {
    state: Incoming,
    stream: Shared,
}

enum Incoming {
    /// The response has not begun.
    Awaited(ResponseFuture),
    Body(h2::RecvStream),
}

/// Makes the asker's halves of a stream.
pub(super) fn asked(response: ResponseFuture, body: h2::SendStream<Bytes>) -> (BodyOut, BodyIn) {
    pair(Incoming::Awaited(response), body, None)
}

/// Makes the answerer's halves of a stream; `slot` is released when the answerer drops its sending
/// half.
pub(super) fn answered(
    request: h2::RecvStream,
    body: h2::SendStream<Bytes>,
    slot: OwnedSemaphorePermit,
) -> (BodyOut, BodyIn) {
    pair(Incoming::Body(request), body, Some(slot))
}

fn pair(
    state: Incoming,
    body: h2::SendStream<Bytes>,
    slot: Option<OwnedSemaphorePermit>,
) -> (BodyOut, BodyIn) {
    let stream = Arc::new(Mutex::new(body));
    (BodyOut { stream: stream.clone(), ended: false, _slot: slot }, BodyIn { state, stream })
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

    /// Waits until the peer has reset the stream.
    pub(super) async fn stopped(&self) -> WireError {
        poll_fn(|cx| lock(&self.stream).poll_reset(cx)).await.map_or_else(wire_error, was_reset)
    }

    /// Returns how many of `want` bytes may be sent now.
    fn poll_room(&self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, WireError>> {
        let mut stream = lock(&self.stream);
        // A stream that the peer has reset may still have room.
        if let Poll::Ready(reset) = stream.poll_reset(cx) {
            return Poll::Ready(Err(reset.map_or_else(wire_error, was_reset)));
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
    /// Reads the next bytes, at most one frame; `None` at the end of the body. Cancelling the
    /// future loses nothing.
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
                    let Some(bytes) = body.data().await.transpose().map_err(wire_error)? else {
                        return Ok(None);
                    };
                    // Give the peer room for more. An error here is reported by the next read.
                    let _ = body.flow_control().release_capacity(bytes.len());
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// Resets the stream, which in HTTP/2 ends both halves at once.
    pub(super) fn stop(&mut self, code: CloseCode) {
        lock(&self.stream).send_reset(reason(code));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    /// Makes the halves of one stream on both sides, over a pipe.
    async fn stream() -> ((BodyOut, BodyIn), (BodyOut, BodyIn)) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (client, server) = tokio::join!(
            h2::client::Builder::new().handshake(near),
            h2::server::Builder::new().max_send_buffer_size(64 << 10).handshake(far)
        );
        let ((requests, connection), mut server) = (client.expect("client"), server.expect("server"));
        tokio::spawn(connection);
        let mut requests = requests.ready().await.expect("ready");
        let request = http::Request::post("https://parent/").body(()).expect("a request");
        let (response, body) = requests.send_request(request, false).expect("sent");
        let (request, mut respond) = server.accept().await.expect("a stream").expect("a request");
        let answer = respond.send_response(http::Response::new(()), false).expect("answered");
        // Drives the connection; the tests need no further streams.
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one is free");
        (asked(response, body), answered(request.into_body(), answer, slot))
    }

    async fn all(mut body: BodyIn) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::new();
        while let Some(bytes) = body.read().await? {
            out.extend_from_slice(&bytes);
        }
        Ok(out)
    }

    #[tokio::test]
    async fn both_halves_are_open_at_once_and_may_exceed_any_window() {
        let ((mut ask, answers), (mut answer, mut asked)) = stream().await;
        let long: Bytes = (0..3_000_000u32).map(|n| n as u8).collect();
        // The answer begins before the request ends, and the request continues after that.
        ask.write(Bytes::from_static(b"first")).await.expect("written");
        assert_eq!(asked.read().await.expect("read").as_deref(), Some(&b"first"[..]));
        let writing = async {
            answer.write(long.clone()).await.expect("written");
            answer.finish();
        };
        let asking = async {
            ask.write(long.clone()).await.expect("written");
            drop(ask);
        };
        let ((), (), answered, rest) = tokio::join!(writing, asking, all(answers), all(asked));
        assert!(answered.expect("whole") == long && rest.expect("whole") == long);
    }

    #[tokio::test]
    async fn a_reset_by_either_side_reaches_reader_and_writer_with_its_code() {
        let closed = |error| match error {
            WireError::Closed(code) => code,
            other => panic!("{other:?}"),
        };
        let ((_ask, mut answers), (mut answer, _asked)) = stream().await;
        answer.write(Bytes::from_static(b"part")).await.expect("written");
        answers.read().await.expect("read");
        answer.reset(CloseCode::NoManifest);
        assert_eq!(closed(answers.read().await.expect_err("reset")), CloseCode::NoManifest);

        let ((_ask, mut answers), (mut answer, _asked)) = stream().await;
        answer.write(Bytes::from_static(b"part")).await.expect("written");
        answers.read().await.expect("read");
        answers.stop(CloseCode::Cancelled);
        let refused = loop {
            if let Err(error) = answer.write(Bytes::from_static(&[0; 4096])).await {
                break error;
            }
        };
        assert_eq!(closed(refused), CloseCode::Cancelled);
    }

    #[tokio::test]
    async fn an_answer_is_complete_although_the_request_was_not_read_to_its_end() {
        let ((mut ask, answers), (mut answer, asked)) = stream().await;
        ask.write(Bytes::from_static(b"more than is read")).await.expect("written");
        answer.write(Bytes::from_static(b"enough")).await.expect("written");
        answer.finish();
        drop((answer, asked));
        // Write until the news arrives that no more of the request is wanted.
        while ask.write(Bytes::from_static(b"more")).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(all(answers).await.expect("whole"), b"enough");
    }

    #[test]
    fn close_codes_survive_and_codes_of_http2_stay_distinct() {
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
