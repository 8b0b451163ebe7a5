//! Makes sure that a caller whose request is refused early still receives the answer.
//!
//! If a server answers and closes while the caller still writes, a TCP reset can arrive before the
//! answer and make the caller's system discard it. So this layer reads the rest of the body, within
//! bounds, and discards it before the answer goes out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use futures::stream::poll_fn;
use tokio::time::timeout;

/// Most bytes that are read and discarded: two requests' worth of chunks. If the caller sends more,
/// the connection closes.
const BYTES_MAX: usize = 64 << 20;

/// Longest time for reading and discarding.
const TIME_MAX: Duration = Duration::from_secs(10);

struct Shared {
    stream: BodyDataStream,
    begun: bool,
    ended: bool,
}

/// Lets the handler read the body, then reads and discards the rest.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    // A caller with `Expect` sends the body only after a 100 Continue, which the first read here
    // would send.
    let waits = headers.contains_key(EXPECT);
    let shared = Shared { stream: body.into_data_stream(), begun: false, ended: false };
    let shared = Arc::new(Mutex::new(shared));
    let handlers = stream_of(shared.clone());
    let response = next.run(Request::from_parts(parts, Body::from_stream(handlers))).await;
    let left = {
        let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        !shared.ended && (shared.begun || !waits)
    };
    if left {
        let mut rest = Box::pin(stream_of(shared));
        let read = async {
            let mut bytes = 0;
            while let Some(Ok(piece)) = rest.next().await {
                bytes += piece.len();
                if bytes > BYTES_MAX {
                    break;
                }
            }
        };
        // The answer goes out now, whether or not the whole body was read.
        let _ = timeout(TIME_MAX, read).await;
    }
    response
}

fn stream_of(
    shared: Arc<Mutex<Shared>>,
) -> impl futures::Stream<Item = Result<bytes::Bytes, axum::Error>> + Send + 'static {
    poll_fn(move |cx| {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.begun = true;
        let piece = shared.stream.poll_next_unpin(cx);
        if let std::task::Poll::Ready(None | Some(Err(_))) = piece {
            shared.ended = true;
        }
        piece
    })
}
