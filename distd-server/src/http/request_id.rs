//! Every request has an id: in the response, in the log, and in what an internal error tells its caller.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::App;

/// The header, in both directions.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken over from a caller, bytes.
const ID_BYTES_MAX: usize = 64;

tokio::task_local! {
    static ID: Arc<str>;
}

/// The id of the request this task works for; `-` outside of one.
pub(super) fn current() -> Arc<str> {
    ID.try_with(Arc::clone).unwrap_or_else(|_| "-".into())
}

/// Runs `work` under the present request's id, for another task.
pub(super) fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    ID.scope(current(), work)
}

/// Outermost layer: gives the id, counts and logs.
pub(super) async fn layer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let plain = |id: &&str| {
        (1..=ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let sent = request.headers().get(HEADER).and_then(|v| v.to_str().ok()).filter(plain);
    let id: Arc<str> = sent.map_or_else(fresh, Arc::from);
    let header = HeaderValue::from_str(&id).expect("plain characters are a header value");
    // The pattern, not the path: labels of a metric must be few.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
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
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has a random source");
    hex::encode(bytes).into()
}
