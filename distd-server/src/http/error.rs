//! What a caller is told when something goes wrong: the one place that decides status, words and redaction.
//!
//! A caller's own mistake is explained. A failure of the origin is logged with its causes under the request's id,
//! and the caller is shown that id alone.

use std::error::Error;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_peer::serve::ServeError;
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id;
use crate::db::DbError;
use crate::ingest::IngestError;
use crate::origin::{PublishReleaseError, RequestPatchesError, SetChannelError, WithdrawError};
use crate::store::StoreError;
use crate::tuf::{self, PublishError};

/// A failed request.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    next: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// Body of every response that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// A word for programs.
    code: String,
    /// What happened.
    message: String,
    /// What to do.
    next: String,
}

impl ApiError {
    fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), next: next.into(), cause: None }
    }

    pub(super) fn bad_request(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message, next)
    }

    pub(super) fn unauthorised(message: &str) -> Self {
        let next =
            "send \"Authorization: Bearer distd-api-v1.…\" with a token that is valid; an admin makes one";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorised", message, next)
    }

    pub(super) fn forbidden(scope: &str) -> Self {
        let message = format!("this token lacks the scope {scope:?}");
        let next = format!("use a token that has the scope {scope:?} or \"admin\"");
        Self::new(StatusCode::FORBIDDEN, "forbidden", message, next)
    }

    pub(super) fn other_product(product: &impl std::fmt::Display) -> Self {
        let message = format!("this token is not for the product {product}");
        let next = "use a token for it; an admin makes one, and GET /v1/tokens shows which is for what";
        Self::new(StatusCode::FORBIDDEN, "forbidden_product", message, next)
    }

    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message, "repeat the request in a while")
    }

    pub(super) fn quota(message: impl Into<String>) -> Self {
        let next = "commit or abort open uploads of this token, or wait a day: GET /v1/uploads lists them for admins";
        Self::new(StatusCode::FORBIDDEN, "quota", message, next)
    }

    pub(super) fn not_found(what: &str) -> Self {
        let next = "look the address up in /v1/openapi.json";
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what}"), next)
    }

    /// Something that a list has or has not.
    pub(super) fn unlisted(what: &str, list: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no {what}"),
            format!("{list} lists them"),
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this address does not take this method";
        let next = "look the address up in /v1/openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, next)
    }

    pub(super) fn unknown_product(product: &impl std::fmt::Display) -> Self {
        let message = format!("there is no product {product}");
        Self::new(StatusCode::NOT_FOUND, "unknown_product", message, "GET /v1/products lists them")
    }

    pub(super) fn unknown_version(
        product: &impl std::fmt::Display,
        version: &impl std::fmt::Display,
    ) -> Self {
        let message = format!("{product} has no release {version}");
        let next = format!("GET /v1/products/{product}/releases lists them");
        Self::new(StatusCode::NOT_FOUND, "unknown_version", message, next)
    }

    pub(super) fn unknown_channel(
        product: &impl std::fmt::Display,
        channel: &impl std::fmt::Display,
    ) -> Self {
        let message = format!("{product} has no channel {channel}");
        let next = format!("PUT a version to /v1/products/{product}/channels/{channel}");
        Self::new(StatusCode::NOT_FOUND, "unknown_channel", message, next)
    }

    pub(super) fn unknown_upload(message: String) -> Self {
        let next = "begin an upload; chunks already sent for the same version are kept";
        Self::new(StatusCode::NOT_FOUND, "unknown_upload", message, next)
    }

    pub(super) fn unknown_manifest(what: String) -> Self {
        let next = "take the manifest's id from a release";
        Self::new(StatusCode::NOT_FOUND, "unknown_manifest", what, next)
    }

    pub(super) fn conflict(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, next)
    }

    pub(super) fn too_large(max: u64) -> Self {
        let message = format!("the body is longer than {max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message, "send less at once")
    }

    pub(super) fn storage_full() -> Self {
        let message = "the origin has no space left";
        let next = "give its disk more space, then repeat the request: what was acknowledged is kept";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", message, next)
    }

    fn hash_mismatch(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "hash_mismatch", message, next)
    }

    fn version_taken(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "version_taken", message, "choose another version")
    }

    /// A failure of the origin's own, whose causes are for the log.
    pub(super) fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let cause = cause.into();
        let mut error = match place_of(cause.as_ref()) {
            Some(Place::Full) => Self::storage_full(),
            Some(Place::Unreachable) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the origin cannot reach its database or store",
                "repeat the request in a while; /readyz says what is wrong",
            ),
            None => {
                let message = "the origin failed";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, "")
            }
        };
        error.cause = Some(cause);
        error
    }

    /// Writes what the caller is not shown to the log.
    pub(super) fn log(&self) {
        let id = request_id::current();
        match &self.cause {
            Some(cause) => {
                tracing::error!(request = %id, code = self.code, error = cause.as_ref() as &dyn Error, "request failed");
            }
            None => {
                tracing::debug!(request = %id, code = self.code, message = %self.message, "request refused")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let Self { status, code, message, mut next, .. } = self;
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            let id = request_id::current();
            next = format!("repeat the request; if it fails again, look for {id} in the origin's log");
        }
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message, next } };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Causes that are nobody's mistake and have a status of their own.
enum Place {
    Full,
    Unreachable,
}

fn place_of(error: &(dyn Error + 'static)) -> Option<Place> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
                return Some(Place::Full);
            }
        }
        match error.downcast_ref::<sqlx::Error>() {
            // 13 is SQLITE_FULL; 53100 is PostgreSQL's disk_full.
            Some(sqlx::Error::Database(db)) if matches!(db.code().as_deref(), Some("13" | "53100")) => {
                return Some(Place::Full);
            }
            Some(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_)) => {
                return Some(Place::Unreachable);
            }
            _ => {}
        }
        next = error.source();
    }
    None
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::UnknownProduct(product) => Self::unknown_product(&product),
            IngestError::UnknownUpload(id) => Self::unknown_upload(format!("there is no upload {id}")),
            IngestError::UploadOver(id) => {
                Self::conflict(format!("upload {id} is over"), "begin another upload of this version")
            }
            IngestError::ChunkBounds { index } => Self::bad_request(
                format!("chunk number {index} has a length out of bounds"),
                "a chunk has 1 to 1048576 raw bytes and is stored in no more than those",
            ),
            IngestError::BadChunk { index, cause } => Self::hash_mismatch(
                format!("chunk number {index} was refused: {cause}"),
                "send it again from an undamaged source",
            ),
            IngestError::BadList(why) => {
                Self::bad_request(format!("the list of chunks is wrong: {why}"), "cut the artifact again")
            }
            IngestError::MissingChunk(hash) => Self::conflict(
                format!("chunk {hash} was not uploaded"),
                "ask which chunks are missing, upload those, then commit again",
            ),
            IngestError::WrongArtifact { expected, actual } => Self::hash_mismatch(
                format!("the chunks make an artifact with BLAKE3 {actual}, not {expected}"),
                "push again, with nobody writing to the file meanwhile",
            ),
            IngestError::VersionTaken { product, version, blake3 } => Self::version_taken(format!(
                "{product}@{version} is released already with other bytes (BLAKE3 {blake3})"
            )),
            IngestError::TooManyUploads { .. } | IngestError::Quota { .. } => Self::quota(error.to_string()),
            IngestError::TooLarge { bytes_max, .. } => Self::too_large(bytes_max),
            IngestError::NoRoom => Self::storage_full(),
            IngestError::BadTree(cause) => Self::bad_request(
                format!("the tree's listing is not what a device takes: {cause}"),
                "push the directory again with distd push",
            ),
            IngestError::OtherCut => Self::conflict(
                "the release is damaged, and these chunks are cut in another way than its own",
                "push it as another version",
            ),
            IngestError::StoredChunk(_)
            | IngestError::SweepTooLarge { .. }
            | IngestError::MissingManifest(_)
            | IngestError::File(_)
            | IngestError::FileChanged
            | IngestError::Db(_)
            | IngestError::Store(_)
            | IngestError::DamagedIndex { .. }
            | IngestError::Read(_) => Self::internal(error),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::VersionTaken(what) => {
                Self::version_taken(format!("{what} is published with other contents"))
            }
            error => Self::internal(error),
        }
    }
}

impl From<PublishReleaseError> for ApiError {
    fn from(error: PublishReleaseError) -> Self {
        match error {
            PublishReleaseError::Publish(error @ PublishError::VersionTaken(_)) => error.into(),
            error => Self::internal(error),
        }
    }
}

impl From<SetChannelError> for ApiError {
    fn from(error: SetChannelError) -> Self {
        match error {
            SetChannelError::UnknownRelease { product, version } => Self::unknown_version(&product, &version),
            SetChannelError::Older { product, channel, version, newest } => {
                let newest = newest.map_or_else(
                    || "than a release that was withdrawn, to which".to_owned(),
                    |newest| format!("than {product}@{newest}, to which"),
                );
                Self::new(
                    StatusCode::CONFLICT,
                    "downgrade",
                    format!("{product}@{version} is older {newest} {product}:{channel} has pointed"),
                    "if devices are to go back to it, say \"downgrade\": true, with a token that has the scope \"downgrade\"",
                )
            }
            error => Self::internal(error),
        }
    }
}

impl From<WithdrawError> for ApiError {
    fn from(error: WithdrawError) -> Self {
        match error {
            WithdrawError::UnknownRelease { product, version } => Self::unknown_version(&product, &version),
            WithdrawError::InUse { product, version, channels } => {
                let channels: Vec<String> =
                    channels.iter().map(|channel| format!("{product}:{channel}")).collect();
                Self::new(
                    StatusCode::CONFLICT,
                    "in_use",
                    format!("{product}@{version} is what {} points to", channels.join(" and ")),
                    "point the channel to another version, or remove it, first",
                )
            }
            error => Self::internal(error),
        }
    }
}

impl From<RequestPatchesError> for ApiError {
    fn from(error: RequestPatchesError) -> Self {
        match error {
            RequestPatchesError::UnknownRelease { product, version } => {
                Self::unknown_version(&product, &version)
            }
            RequestPatchesError::Disabled => {
                Self::conflict("this origin makes no patches", "start it without patches = false")
            }
            RequestPatchesError::Same { from, to } => Self::conflict(
                format!("{from} and {to} are the same bytes"),
                "nothing is needed: a device that has the one has the other",
            ),
            RequestPatchesError::Db(error) => Self::internal(error),
        }
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        Self::internal(error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl From<tuf::StoreError> for ApiError {
    fn from(error: tuf::StoreError) -> Self {
        Self::internal(error)
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        Self::internal(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_below_other_errors_is_told_as_such() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = ApiError::from(tuf::StoreError::new("write", "x", io));
        assert_eq!((error.status, error.code), (StatusCode::INSUFFICIENT_STORAGE, "storage_full"));
    }

    #[test]
    fn causes_of_internal_errors_are_not_in_the_response() {
        let error = ApiError::internal("password is hunter2");
        assert!(!error.message.contains("hunter2") && !error.next.contains("hunter2"));
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
