//! Request bodies and parameters: bounded in length and time, and refused in the API's own error
//! format.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::{ApiError, App};

/// Longest time without a new byte of a body. It is longer than outages from which TCP recovers
/// unnoticed.
const STALL: Duration = Duration::from_secs(60);

/// Length of a window, after which the rate of a body is checked. Only time that the origin spends
/// waiting for the caller counts.
const PACE: Duration = Duration::from_secs(30);
/// Bytes that have to arrive in each such window: 16 kB/s, less than any link that publishers use.
const PACE_BYTES: u64 = 480_000;

/// Longest time for a whole body that has a deadline: 32 MiB at 0.5 Mbit/s.
const WHOLE: Duration = Duration::from_secs(600);

/// Largest JSON body, bytes. The description of a product or token takes a few hundred.
const JSON_BYTES_MAX: u64 = 64 << 10;

/// Request body of at most `MAX` bytes, read piece by piece.
pub(super) struct Incoming<const MAX: u64> {
    stream: BodyDataStream,
    read: u64,
    /// Length that the caller announced in `Content-Length`, bytes.
    announced: Option<u64>,
    deadline: Option<Instant>,
    pace: Pace,
}

/// Rate of a body, measured in windows of [`PACE`]. Time that the origin spends between two reads
/// does not count.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Waiting time that is left in the current window.
    fn left(&self) -> Duration {
        PACE.saturating_sub(self.waited)
    }

    /// Counts a wait and the bytes that ended it. `false` if a window ended with fewer than
    /// [`PACE_BYTES`].
    fn keeps(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < PACE {
            return true;
        }
        let enough = self.bytes >= PACE_BYTES;
        *self = Self::default();
        enough
    }
}

impl<const MAX: u64> Incoming<MAX> {
    fn of(headers: &HeaderMap, body: Body) -> Result<Self, ApiError> {
        let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        if announced.is_some_and(|len: u64| len > MAX) {
            return Err(ApiError::too_large(MAX));
        }
        Ok(Self {
            stream: body.into_data_stream(),
            read: 0,
            announced,
            deadline: None,
            pace: Pace::default(),
        })
    }

    /// Length of the body in bytes if the caller announced it; at most `MAX`.
    pub(super) fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Ends the body with an error ten minutes from now.
    pub(super) fn with_deadline(mut self) -> Self {
        self.deadline = Some(Instant::now() + WHOLE);
        self
    }

    /// Ends the body with an error after `time` from now.
    pub(super) fn within(mut self, time: Duration) -> Self {
        self.deadline = Some(Instant::now() + time);
        self
    }

    /// Next piece of the body; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let begun = Instant::now();
        let stall = begun + STALL;
        let until = self.deadline.map_or(stall, |deadline| deadline.min(stall));
        let slow = || broken_off("the body arrives slower than 16 kB/s");
        let piece = loop {
            let window = Instant::now() + self.pace.left();
            let waits = Instant::now();
            match timeout_at(until.min(window), self.stream.next()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(piece))) => {
                    if !self.pace.keeps(waits.elapsed(), piece.len() as u64) {
                        return Err(slow());
                    }
                    break piece;
                }
                Ok(Some(Err(_))) => {
                    return Err(broken_off("the connection broke before the end of the body"));
                }
                Err(_) if Instant::now() >= until => {
                    return Err(broken_off("the body stood still or took too long"));
                }
                Err(_) if !self.pace.keeps(waits.elapsed(), 0) => return Err(slow()),
                Err(_) => {}
            }
        };
        self.read = self.read.saturating_add(piece.len() as u64);
        if self.read > MAX {
            return Err(ApiError::too_large(MAX));
        }
        Ok(Some(piece))
    }

    /// Reads the whole body into memory. A body without a deadline gets one of ten minutes.
    pub(super) async fn whole(self) -> Result<Bytes, ApiError> {
        let mut body = if self.deadline.is_some() { self } else { self.with_deadline() };
        // The capacity is bounded by MAX, and pages that are never filled take no memory.
        let announced = body.announced.and_then(|len| usize::try_from(len).ok());
        let mut all = BytesMut::with_capacity(announced.unwrap_or(0));
        while let Some(piece) = body.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

/// Error for a body that did not arrive whole.
pub(super) fn broken_off(message: &str) -> ApiError {
    ApiError::bad_request(message, "send the request again")
}

impl<const MAX: u64> FromRequest<Arc<App>> for Incoming<MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        Self::of(&parts.headers, body)
    }
}

/// JSON body of at most `MAX` bytes; its content type is not checked.
pub(super) struct JsonBody<T, const MAX: u64 = JSON_BYTES_MAX>(pub(super) T);

impl<T: DeserializeOwned, const MAX: u64> FromRequest<Arc<App>> for JsonBody<T, MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = Incoming::<MAX>::of(&parts.headers, body)?.whole().await?;
        let parsed = serde_json::from_slice(&bytes);
        // The parser's message names the line and column in the caller's text.
        parsed.map(Self).map_err(|e| {
            ApiError::bad_request(
                format!("the body is not the JSON that this address expects: {e}"),
                "correct the body; /v1/openapi.json describes it",
            )
        })
    }
}

/// JSON body, or the default value if the body is empty.
pub(super) struct OptionalJsonBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = Incoming::<JSON_BYTES_MAX>::of(&parts.headers, body)?.whole().await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        let request = Request::from_parts(parts, Body::from(bytes));
        <JsonBody<T>>::from_request(request, app).await.map(|JsonBody(value)| Self(value))
    }
}

/// Parsed variable parts of the path.
pub(super) struct PathParams<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for PathParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(
                format!("the path of the address cannot be parsed: {}", rejection.body_text()),
                "correct the path: names consist of a-z A-Z 0-9 . _ + -, ids of hexadecimal digits",
            )),
        }
    }
}

/// Parsed query of the address.
pub(super) struct QueryParams<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(
                format!("the query of the address cannot be parsed: {}", rejection.body_text()),
                "look the parameters up in /v1/openapi.json",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_a_body_is_checked_in_windows_of_waiting() {
        let second = Duration::from_secs(1);
        // 16 kB a second is enough, however long the body takes.
        let mut pace = Pace::default();
        assert!((0..300).all(|_| pace.keeps(second, 16_000)));
        // A burst counts only for the window in which it arrives.
        let mut pace = Pace::default();
        assert!(pace.keeps(second, 100 << 20));
        assert!((0..29).all(|_| pace.keeps(second, 0)));
        assert!((0..29).all(|_| pace.keeps(second, 1)) && !pace.keeps(second, 1));
        // Time that the origin takes between two reads is not waiting.
        let mut pace = Pace::default();
        assert!((0..1000).all(|_| pace.keeps(Duration::ZERO, 1)));
        assert_eq!(pace.left(), PACE);
    }
}
