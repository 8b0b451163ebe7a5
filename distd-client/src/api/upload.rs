//! One upload: the question for the missing chunks, the chunks, and the commit. Every request may
//! be sent twice without harm, so each is retried when the connection fails.

use std::time::Duration;

use bytes::Bytes;
use distd_core::api::{self, Announced, Commit, Release};
use distd_core::cut::CutParams;
use distd_core::error::Chain;
use distd_core::{ArtifactHash, ChunkHash};
use futures::stream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Method, StatusCode};

use super::{ANSWER, Api, ApiError};

/// Pauses before each retry, about fifteen seconds in all: as long as a restart of the origin
/// takes.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// An open upload. Cheap to clone.
#[derive(Clone)]
pub struct Upload {
    api: Api,
    id: String,
    cut: CutParams,
    resumed: bool,
}

/// Contents of a commit.
pub struct CommitRequest {
    /// Length of a tree's listing in bytes; `None` for a file.
    pub listing_bytes: Option<u64>,
    /// Length of the artifact in bytes.
    pub bytes: u64,
    /// BLAKE3 of the artifact.
    pub blake3: ArtifactHash,
    /// The chunks in artifact order, [`RUN_BYTES`](api::RUN_BYTES) per run.
    pub runs: Bytes,
}

/// Repeats `attempt` after a failure that may be temporary. The request must be safe to send twice.
///
/// # Errors
/// The error of the last attempt.
pub async fn persistently<T, F: Future<Output = Result<T, ApiError>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, ApiError> {
    for pause in PAUSES {
        match attempt().await {
            Err(error) if error.is_passing() => {
                tracing::info!(
                    error = %Chain(&error),
                    ?pause,
                    "request failed; trying again"
                );
                tokio::time::sleep(pause).await;
            }
            other => return other,
        }
    }
    attempt().await
}

impl Api {
    /// Begins an upload of `bytes` bytes, or resumes this token's open upload of the same version.
    pub async fn begin_upload(&self, product: &str, version: &str, bytes: u64) -> Result<Upload, ApiError> {
        let path = ["v1", "products", product, "releases", version, "uploads"];
        let announced = Announced { bytes: Some(bytes) };
        let begun: api::Upload = persistently(|| self.with_body(Method::POST, &path, &announced)).await?;
        Ok(Upload { api: self.clone(), id: begun.upload, cut: begun.cut, resumed: begun.resumed })
    }
}

impl Upload {
    /// Returns the chunk sizes that the product is cut with.
    pub fn cut(&self) -> CutParams {
        self.cut
    }

    /// Returns whether the upload resumes an earlier, interrupted push of this version.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    fn post(&self, what: &str, parts: Vec<Bytes>) -> reqwest::RequestBuilder {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let parts = stream::iter(parts.into_iter().map(Ok::<_, std::convert::Infallible>));
        self.api
            .request(Method::POST, &["v1", "uploads", &self.id, what])
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, len)
            .body(Body::wrap_stream(parts))
    }

    /// Returns for each of at most [`HASHES_MAX`](api::HASHES_MAX) hashes whether the origin lacks
    /// the chunk.
    pub async fn missing(&self, hashes: &[ChunkHash]) -> Result<Vec<bool>, ApiError> {
        let mut body = Vec::with_capacity(hashes.len() * 32);
        for hash in hashes {
            body.extend_from_slice(hash.as_bytes());
        }
        let body = Bytes::from(body);
        let bitmap =
            persistently(|| self.api.send(self.post("missing", vec![body.clone()]).timeout(ANSWER))).await?;
        let expected = hashes.len().div_ceil(8);
        if bitmap.len() != expected {
            return Err(ApiError::Length { expected, got: bitmap.len() });
        }
        Ok((0..hashes.len()).map(|i| bitmap[i / 8] & (0x80 >> (i % 8)) != 0).collect())
    }

    /// Sends chunk records. The records are durable at the origin when this returns.
    pub async fn put_chunks(&self, records: &[Bytes]) -> Result<(), ApiError> {
        persistently(|| self.api.send(self.post("chunks", records.to_vec()))).await.map(drop)
    }

    /// Makes the release. The returned flag says whether the release existed already.
    pub async fn commit(&self, request: &CommitRequest) -> Result<(Release, bool), ApiError> {
        let CommitRequest { listing_bytes, bytes, blake3, runs } = request;
        let commit = Commit { listing_bytes: *listing_bytes, cut: self.cut, bytes: *bytes, blake3: *blake3 };
        let head = Bytes::from(commit.head(runs.len() as u32));
        // No time limit: the origin reads the whole artifact back before it answers.
        let (status, body) = persistently(|| {
            self.api.send_for_status(self.post("commit", vec![head.clone(), request.runs.clone()]))
        })
        .await?;
        let release = serde_json::from_slice(&body).map_err(ApiError::Unreadable)?;
        Ok((release, status == StatusCode::OK))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn temporary_failures_are_retried_and_others_are_not() {
        let tries = Cell::new(0);
        let answer = |status: u16| {
            tries.set(tries.get() + 1);
            let status = StatusCode::from_u16(status).expect("a status");
            async move { Err::<(), _>(ApiError::answered(status, b"")) }
        };
        assert!(persistently(|| answer(503)).await.is_err());
        assert_eq!(tries.replace(0), PAUSES.len() + 1);
        assert!(persistently(|| answer(409)).await.is_err());
        assert_eq!(tries.get(), 1);
    }
}
