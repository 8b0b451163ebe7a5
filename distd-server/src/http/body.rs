//! Reading requests: bounded in length and time, refused in this API's own words.

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

/// How long a body may stand still: longer than any outage TCP gets over without the user noticing.
const STALL: Duration = Duration::from_secs(60);

/// Waiting for the caller after which its pace is looked at, and the bytes that must have come by then: 16 kB/s, less than
/// any link over which anybody publishes.
const PACE: Duration = Duration::from_secs(30);
const PACE_BYTES: u64 = 480_000;

/// How long a body that holds a place of its token may take: 32 MiB at 0.5 Mbit/s.
const WHOLE: Duration = Duration::from_secs(600);

/// Largest JSON body, bytes; a product's or token's description has a few hundred.
const JSON_BYTES_MAX: u64 = 64 << 10;

/// A body of at most `MAX` bytes, as it comes in.
pub(super) struct Incoming<const MAX: u64> {
    stream: BodyDataStream,
    read: u64,
    /// As the caller announced it.
    announced: Option<u64>,
    deadline: Option<Instant>,
    pace: Pace,
}

/// How fast a body comes, looked at in windows of [`PACE`] of waiting: time that this side takes is not the caller's.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// How long the caller may take until it is looked at.
    fn left(&self) -> Duration {
        PACE.saturating_sub(self.waited)
    }

    /// Counts; `false` when a window ended with too little.
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

    /// Its length in bytes, where the caller has announced it; at most `MAX`.
    pub(super) fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Ends the body, from now on, after ten minutes.
    pub(super) fn with_deadline(mut self) -> Self {
        self.deadline = Some(Instant::now() + WHOLE);
        self
    }

    /// Ends the body, from now on, after so long.
    pub(super) fn within(mut self, time: Duration) -> Self {
        self.deadline = Some(Instant::now() + time);
        self
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let begun = Instant::now();
        let stall = begun + STALL;
        let until = self.deadline.map_or(stall, |deadline| deadline.min(stall));
        let slow = || broken_off("the body comes slower than 16 kB/s");
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
                Ok(Some(Err(_))) => return Err(broken_off("the body broke off")),
                Err(_) if Instant::now() >= until => return Err(broken_off("the body took too long")),
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

    /// The whole body.
    pub(super) async fn whole(self) -> Result<Bytes, ApiError> {
        let mut body = if self.deadline.is_some() { self } else { self.with_deadline() };
        // Bounded by MAX; pages that never fill cost nothing.
        let announced = body.announced.and_then(|len| usize::try_from(len).ok());
        let mut all = BytesMut::with_capacity(announced.unwrap_or(0));
        while let Some(piece) = body.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

/// A body that did not come to its end.
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

/// A JSON body, whatever its content type says.
pub(super) struct Given<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Given<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = Incoming::<JSON_BYTES_MAX>::of(&parts.headers, body)?.whole().await?;
        let parsed = serde_json::from_slice(&bytes);
        // Says where and what in the caller's own text.
        parsed.map(Self).map_err(|e| {
            ApiError::bad_request(format!("the body is not the JSON that belongs here: {e}"), "correct it")
        })
    }
}

/// A JSON body, or none.
pub(super) struct Perhaps<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for Perhaps<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = Incoming::<JSON_BYTES_MAX>::of(&parts.headers, body)?.whole().await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        let request = Request::from_parts(parts, Body::from(bytes));
        Given::from_request(request, app).await.map(|Given(value)| Self(value))
    }
}

/// The variable parts of the path, parsed.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(
                format!("the address does not fit: {}", rejection.body_text()),
                "names are made of a-z A-Z 0-9 . _ + -, ids of hexadecimal digits",
            )),
        }
    }
}

/// The query of the address, parsed.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<App>> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(
                format!("the address does not fit: {}", rejection.body_text()),
                "look it up in /v1/openapi.json",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_looked_at_in_windows_of_waiting() {
        let second = Duration::from_secs(1);
        // 16 kB each second for as long as it takes.
        let mut pace = Pace::default();
        assert!((0..300).all(|_| pace.keeps(second, 16_000)));
        // A burst counts for its window and no other.
        let mut pace = Pace::default();
        assert!(pace.keeps(second, 100 << 20));
        assert!((0..29).all(|_| pace.keeps(second, 0)));
        assert!((0..29).all(|_| pace.keeps(second, 1)) && !pace.keeps(second, 1));
        // What this side takes in between is not waiting.
        let mut pace = Pace::default();
        assert!((0..1000).all(|_| pace.keeps(Duration::ZERO, 1)));
        assert_eq!(pace.left(), PACE);
    }
}
