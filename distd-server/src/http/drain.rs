//! A caller that is refused before it has sent its body still hears why.
//!
//! A server that answers and closes while the caller writes makes the caller's system throw the answer away (a reset
//! arrives first). So what is left of a body is read and forgotten before the answer goes out, within bounds.

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

/// Bytes read for nothing at most: two requests' worth of chunks. A caller that sends more gets a closed connection.
const BYTES_MAX: usize = 64 << 20;

/// How long at most.
const TIME_MAX: Duration = Duration::from_secs(10);

struct Shared {
    stream: BodyDataStream,
    begun: bool,
    ended: bool,
}

/// Lets the handler read the body, then reads the rest.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    if !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    // Such a caller waits to be told before it sends anything; reading would tell it.
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
        // Either way the answer goes out now.
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
