//! Request ids. Each request has one, which appears in the response's header, in the log, and in
//! the advice of an internal error.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use distd_peer::gateway::without_token;
use distd_peer::random;

use super::App;

/// Header that carries the id, in requests and responses.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id that is taken over from a caller, bytes.
const ID_BYTES_MAX: usize = 64;

tokio::task_local! {
    static ID: Arc<str>;
}

/// Id of the request for which the current task works; `-` outside of a request.
pub(super) fn current() -> Arc<str> {
    ID.try_with(Arc::clone).unwrap_or_else(|_| "-".into())
}

/// Runs `work` under the current request's id, for work that moves to another task.
pub(super) fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    ID.scope(current(), work)
}

/// Outermost layer: sets the request's id, counts the answer and logs it.
pub(super) async fn layer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let plain = |id: &&str| {
        (1..=ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let sent = request.headers().get(HEADER).and_then(|v| v.to_str().ok()).filter(plain);
    let id: Arc<str> = sent.map_or_else(fresh, Arc::from);
    let header = HeaderValue::from_str(&id).expect("plain characters are a header value");
    // The route's pattern, not the path, because a metric's label must have few values.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let path = without_token(request.uri().path()).into_owned();
    let began = Instant::now();
    let mut response = ID.scope(id.clone(), next.run(request)).await;
    let elapsed = began.elapsed();
    let status = response.status().as_u16();
    app.metrics.count(&method, route.as_ref().map_or("unmatched", MatchedPath::as_str), status, elapsed);
    tracing::debug!(request = %id, %method, path, status, ms = elapsed.as_millis(), "answered");
    response.headers_mut().insert(HEADER, header);
    response
}

fn fresh() -> Arc<str> {
    hex::encode(random::bytes::<8>()).into()
}
