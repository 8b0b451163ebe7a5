//! Reading requests: bounded in length and time, refused in this API's own words.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
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

/// How long a body that is held in memory, or holds up others, may take: 32 MiB at 0.5 Mbit/s.
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
}

impl<const MAX: u64> Incoming<MAX> {
    fn of(headers: &HeaderMap, body: Body) -> Result<Self, ApiError> {
        let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        if announced.is_some_and(|len: u64| len > MAX) {
            return Err(ApiError::too_large(MAX));
        }
        Ok(Self { stream: body.into_data_stream(), read: 0, announced, deadline: None })
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

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let stall = Instant::now() + STALL;
        let until = self.deadline.map_or(stall, |deadline| deadline.min(stall));
        let piece = match timeout_at(until, self.stream.next()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) => return Err(broken_off("the body broke off")),
            Err(_) => return Err(broken_off("the body took too long")),
        };
        self.read = self.read.saturating_add(piece.len() as u64);
        if self.read > MAX {
            return Err(ApiError::too_large(MAX));
        }
        Ok(Some(piece))
    }

    /// The whole body.
    pub(super) async fn whole(self) -> Result<Bytes, ApiError> {
        let mut body = self.with_deadline();
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
