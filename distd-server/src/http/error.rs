//! Error responses. This file alone decides a failure's status, its words, and which details stay
//! hidden.
//!
//! A caller's own mistake is explained. A failure of the origin is logged with its causes under the
//! request's id, and the caller sees only that id.

use std::error::Error;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_core::api::{ErrorBody, ErrorDetail, code};
use distd_core::error::Chain;
use distd_peer::serve::ServeError;

use super::request_id;
use crate::db::DbError;
use crate::ingest::IngestError;
use crate::origin::{
    BundleMetadataError, LogError, PublishReleaseError, RequestPatchesError, RetentionError, RolloutError,
    SetChannelError, WithdrawError,
};
use crate::store::StoreError;
use crate::tuf::{self, PublishError};

/// Failed request: its status, its words, and the cause for the log.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    next: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
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
        Self::new(StatusCode::BAD_REQUEST, code::BAD_REQUEST, message, next)
    }

    pub(super) fn unauthorised(message: &str) -> Self {
        let next = "send \"Authorization: Bearer distd-api-v1.…\" with a valid token; an admin can make one";
        Self::new(StatusCode::UNAUTHORIZED, code::UNAUTHORISED, message, next)
    }

    /// Refusal of a person whom an OpenID provider knows.
    #[cfg(feature = "ui")]
    pub(super) fn no_group(message: &str, next: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message, next)
    }

    /// Error for another server that does not answer as it should.
    #[cfg(feature = "ui")]
    pub(super) fn bad_gateway(message: &str, next: &str) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, code::UNAVAILABLE, message, next)
    }

    /// Error for a device without a token that speaks for it.
    pub(super) fn unauthorised_device() -> Self {
        let message = "no valid token speaks for this device";
        let next =
            "send \"Authorization: TargetToken …\" or \"GatewayToken …\"; distd ddi token create makes one";
        Self::new(StatusCode::UNAUTHORIZED, code::UNAUTHORISED, message, next)
    }

    pub(super) fn forbidden(scope: &str) -> Self {
        let message = format!("this token lacks the scope {scope:?}");
        let next = format!("use a token that has the scope {scope:?} or \"admin\"");
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message, next)
    }

    pub(super) fn other_product(product: &impl std::fmt::Display) -> Self {
        let message = format!("this token is not for the product {product}");
        let next = "use a token for this product; an admin can make one, and GET /v1/tokens lists each token's products";
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN_PRODUCT, message, next)
    }

    pub(super) fn other_channel(product: &impl std::fmt::Display, channel: &impl std::fmt::Display) -> Self {
        let message = format!("this token is not for the channel {product}:{channel}");
        let next = "use a token for this channel; an admin can make one, and GET /v1/tokens lists what each token is for";
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN_PRODUCT, message, next)
    }

    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code::BUSY, message, "repeat the request later")
    }

    pub(super) fn quota(message: impl Into<String>) -> Self {
        let next = "commit or abort open uploads of this token, or wait a day; an admin sees them with GET /v1/uploads";
        Self::new(StatusCode::FORBIDDEN, code::QUOTA, message, next)
    }

    pub(super) fn not_found(what: &str) -> Self {
        let next = "compare the address with /v1/openapi.json";
        Self::new(StatusCode::NOT_FOUND, code::NOT_FOUND, format!("there is no {what}"), next)
    }

    /// Error for an item that is missing from the answer to the request `list`.
    pub(super) fn unlisted(what: &str, list: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            code::NOT_FOUND,
            format!("there is no {what}"),
            format!("look it up with {list}"),
        )
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "this address does not support this method";
        let next = "look the address up in /v1/openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, message, next)
    }

    pub(super) fn unknown_product(product: &impl std::fmt::Display) -> Self {
        let message = format!("there is no product {product}");
        Self::new(
            StatusCode::NOT_FOUND,
            code::UNKNOWN_PRODUCT,
            message,
            "look the product up with GET /v1/products",
        )
    }

    pub(super) fn unknown_version(
        product: &impl std::fmt::Display,
        version: &impl std::fmt::Display,
    ) -> Self {
        let message = format!("{product} has no release {version}");
        let next = format!("look the version up with GET /v1/products/{product}/releases");
        Self::new(StatusCode::NOT_FOUND, code::UNKNOWN_VERSION, message, next)
    }

    pub(super) fn unknown_channel(
        product: &impl std::fmt::Display,
        channel: &impl std::fmt::Display,
    ) -> Self {
        let message = format!("{product} has no channel {channel}");
        let next = format!("create the channel with PUT /v1/products/{product}/channels/{channel}");
        Self::new(StatusCode::NOT_FOUND, code::UNKNOWN_CHANNEL, message, next)
    }

    pub(super) fn unknown_upload(message: String) -> Self {
        let next = "begin a new upload; chunks that were already sent for the same version are kept";
        Self::new(StatusCode::NOT_FOUND, code::UNKNOWN_UPLOAD, message, next)
    }

    pub(super) fn unknown_manifest(what: String) -> Self {
        let next = "take the manifest's id from a release";
        Self::new(StatusCode::NOT_FOUND, code::UNKNOWN_MANIFEST, what, next)
    }

    pub(super) fn conflict(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code::CONFLICT, message, next)
    }

    pub(super) fn in_use(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code::IN_USE, message, next)
    }

    pub(super) fn too_large(max: u64) -> Self {
        let message = format!("the body is longer than {max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code::TOO_LARGE, message, "send at most as many bytes")
    }

    pub(super) fn storage_full() -> Self {
        let message = "the origin has no space left";
        let next = "add space to the origin's disk, then repeat the request; acknowledged chunks are kept";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, code::STORAGE_FULL, message, next)
    }

    fn hash_mismatch(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code::HASH_MISMATCH, message, next)
    }

    fn version_taken(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code::VERSION_TAKEN, message, "choose another version")
    }

    /// Failure of the origin itself. Its causes go to the log and not to the caller.
    pub(super) fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let cause = cause.into();
        let mut error = match place_of(cause.as_ref()) {
            Some(Place::Full) => Self::storage_full(),
            Some(Place::Unreachable) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code::UNAVAILABLE,
                "the origin cannot reach its database or store",
                "repeat the request later; GET /readyz names the part that fails",
            ),
            None => {
                let message = "the origin failed";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message, "")
            }
        };
        error.cause = Some(cause);
        error
    }

    /// Answer of a replica that cannot pass a request on.
    pub(super) fn no_leader(why: &str) -> Self {
        let message = format!("no origin that leads can be asked: {why}");
        let next = "repeat the request in some seconds";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE, message, next)
    }

    #[cfg(feature = "ui")]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    #[cfg(feature = "ui")]
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Next step of the caller.
    pub(super) fn advice(&self) -> String {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            let id = request_id::current();
            return format!("repeat the request; if it fails again, look for {id} in the origin's log");
        }
        self.next.clone()
    }

    /// Logs an internal failure with its causes as an error, and a refusal at debug level.
    pub(super) fn log(&self) {
        let id = request_id::current();
        match &self.cause {
            Some(cause) => {
                tracing::error!(request = %id, code = self.code, error = %Chain(cause.as_ref()), "request failed");
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
        let next = self.advice();
        let Self { status, code, message, .. } = self;
        let body = ErrorBody { error: ErrorDetail { code: code.to_owned(), message, next } };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Causes that are not the caller's mistake and have a status of their own.
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
        let fact = error.to_string();
        match error {
            IngestError::UnknownProduct(product) => Self::unknown_product(&product),
            IngestError::UnknownUpload(_) => Self::unknown_upload(fact),
            IngestError::UploadOver(_) => Self::conflict(fact, "begin another upload of this version"),
            IngestError::ChunkBounds { .. } => Self::bad_request(
                fact,
                "send chunks of 1 to 1048576 raw bytes, with a stored length of at most the raw one",
            ),
            IngestError::BadChunk { cause, .. } => Self::hash_mismatch(
                format!("{fact}: {cause}"),
                "send the chunk again from an undamaged source",
            ),
            IngestError::BadList(_) => Self::bad_request(fact, "cut the artifact again"),
            IngestError::MissingChunk(_) => {
                Self::conflict(fact, "ask for the missing chunks, upload them, then commit again")
            }
            IngestError::WrongArtifact { .. } => {
                Self::hash_mismatch(fact, "push again, and let no other process write to the file meanwhile")
            }
            IngestError::VersionTaken { .. } => Self::version_taken(fact),
            IngestError::TooManyUploads { .. } | IngestError::Quota { .. } => Self::quota(fact),
            IngestError::OverQuota(_) => Self::new(
                StatusCode::FORBIDDEN,
                code::QUOTA,
                fact,
                "remove releases (distd gc --dry-run shows which nothing needs), or have an admin raise the quota with \
                 distd quota set",
            ),
            IngestError::Withdrawn { product, version } => Self::new(
                StatusCode::CONFLICT,
                code::WITHDRAWN,
                fact,
                format!(
                    "bring it back with distd release restore {product}@{version}, remove it with distd release rm, or \
                     choose another version"
                ),
            ),
            IngestError::TooLarge { bytes_max, .. } => Self::too_large(bytes_max),
            IngestError::NoRoom => Self::storage_full(),
            IngestError::BadTree(cause) => {
                Self::bad_request(format!("{fact}: {cause}"), "push the directory again with distd push")
            }
            IngestError::OtherCut => Self::conflict(
                "the release is damaged, and these chunks were cut with other parameters than its own",
                "push the artifact as another version",
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
                Self::version_taken(format!("{what} is already published with other contents"))
            }
            error => Self::internal(error),
        }
    }
}

impl From<PublishReleaseError> for ApiError {
    fn from(error: PublishReleaseError) -> Self {
        match error {
            PublishReleaseError::Publish(error @ PublishError::VersionTaken(_)) => error.into(),
            error @ PublishReleaseError::Gone { .. } => Self::conflict(
                error.to_string(),
                "bring it back with distd release restore, or push another version",
            ),
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
                    || "than a withdrawn release, to which".to_owned(),
                    |newest| format!("than {product}@{newest}, to which"),
                );
                Self::new(
                    StatusCode::CONFLICT,
                    code::DOWNGRADE,
                    format!("{product}@{version} is older {newest} {product}:{channel} has pointed"),
                    "to send devices back to it, repeat the request with \"downgrade\": true and a token that has the scope \"downgrade\"",
                )
            }
            error @ SetChannelError::NeedsApproval { .. } => {
                Self::conflict(error.to_string(), NEEDS_APPROVAL)
            }
            SetChannelError::RolloutUnderWay { product, channel, version } => Self::conflict(
                format!("a rollout of {product}@{version} to {product}:{channel} is under way"),
                "wait for the rollout's end; or halt it first, or roll it back",
            ),
            error => Self::internal(error),
        }
    }
}

/// Advice about a channel that is neither set nor removed by hand.
const NEEDS_APPROVAL: &str = "begin a rollout and have it approved, or let an administrator end that: PUT …/approval, \"wanted\": false";

impl From<RolloutError> for ApiError {
    fn from(error: RolloutError) -> Self {
        let text = error.to_string();
        match error {
            RolloutError::UnknownChannel { product, channel } => Self::unknown_channel(&product, &channel),
            RolloutError::UnknownRelease { product, version } => Self::unknown_version(&product, &version),
            RolloutError::NoneUnderWay { .. } => {
                Self::conflict(text, "list the channel's rollouts with GET …/rollouts")
            }
            RolloutError::Same { .. } => Self::conflict(text, "name a later release"),
            RolloutError::Older { .. } => Self::new(
                StatusCode::CONFLICT,
                code::DOWNGRADE,
                text,
                "a rollout leads to a later release; to go back, set the channel with \"downgrade\": true",
            ),
            RolloutError::UnderWay { .. } => {
                Self::conflict(text, "wait for its end, halt it, or roll it back before another one begins")
            }
            RolloutError::NoDevices { .. } => Self::conflict(
                text,
                "check the selector, if there is one; let devices follow the channel (distd agent --follow PRODUCT:CHANNEL) and grant them the right report; \
                 or point the channel to the release without waves",
            ),
            RolloutError::OtherRollout { .. } => {
                Self::conflict(text, "look at the rollout with GET …/rollout, and name its id in the order")
            }
            RolloutError::NoApproval => {
                Self::conflict(text, "PUT …/approval has the next rollouts of the channel wait for one")
            }
            RolloutError::SameToken => Self::new(
                StatusCode::FORBIDDEN,
                code::FORBIDDEN,
                text,
                "have somebody with another token approve it",
            ),
            RolloutError::Stage { .. } => Self::conflict(text, "look at the rollout with GET …/rollout"),
            RolloutError::Policy(_) => Self::bad_request(text, "correct the policy of the rollout"),
            error @ (RolloutError::Owner(_) | RolloutError::Db(_) | RolloutError::Publish(_)) => {
                Self::internal(error)
            }
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
                Self::in_use(
                    format!("{product}@{version} is the target of {}", channels.join(" and ")),
                    "first point each of these channels to another version, or remove it",
                )
            }
            error @ WithdrawError::NotWithdrawn { .. } => Self::conflict(
                error.to_string(),
                "distd release ls --withdrawn shows the releases that can be brought back",
            ),
            WithdrawError::Pinned { ref product, ref version, .. } => {
                let next = format!("first remove the pin: distd release unpin {product}@{version}");
                Self::new(StatusCode::CONFLICT, code::PINNED, error.to_string(), next)
            }
            error @ WithdrawError::Running { .. } => Self::new(
                StatusCode::CONFLICT,
                code::RUNNING,
                error.to_string(),
                "update these nodes first, so that they get patches; or remove the release without unless_running (distd \
                 release rm --force)",
            ),
            error @ WithdrawError::NeedsApproval { .. } => Self::conflict(error.to_string(), NEEDS_APPROVAL),
            error => Self::internal(error),
        }
    }
}

impl From<RetentionError> for ApiError {
    fn from(error: RetentionError) -> Self {
        match error {
            RetentionError::UnknownProduct(product) => Self::unknown_product(&product),
            RetentionError::WouldEmpty { .. } => Self::new(
                StatusCode::CONFLICT,
                code::WOULD_EMPTY,
                error.to_string(),
                "keep more, point a channel to a release, or set may_empty (distd product retention --yes)",
            ),
            RetentionError::Db(error) => error.into(),
        }
    }
}

impl From<BundleMetadataError> for ApiError {
    fn from(error: BundleMetadataError) -> Self {
        match error {
            BundleMetadataError::UnknownRelease(product, version) => {
                Self::unknown_version(&product, &version)
            }
            BundleMetadataError::Off => {
                Self::conflict(error.to_string(), "set bundle_validity of the origin, and of its signer")
            }
            BundleMetadataError::TooLong(_) => Self::bad_request(
                error.to_string(),
                "ask for less, or raise bundle_validity of the origin and of its signer",
            ),
            BundleMetadataError::Db(error) => error.into(),
            other => Self::internal(other),
        }
    }
}

impl From<RequestPatchesError> for ApiError {
    fn from(error: RequestPatchesError) -> Self {
        match error {
            RequestPatchesError::UnknownRelease { product, version } => {
                Self::unknown_version(&product, &version)
            }
            RequestPatchesError::Disabled => Self::conflict(
                "this origin makes no patches",
                "restart the origin without the setting patches = false",
            ),
            RequestPatchesError::Same { from, to } => Self::conflict(
                format!("{from} and {to} have the same bytes"),
                "no patch set is needed: a device that has one of them has the bytes of the other",
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

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
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
    fn a_full_disk_among_the_causes_is_reported_as_storage_full() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = ApiError::from(tuf::StoreError::new("write", "x", io));
        assert_eq!((error.status, error.code), (StatusCode::INSUFFICIENT_STORAGE, code::STORAGE_FULL));
    }

    #[test]
    fn causes_of_internal_errors_are_not_in_the_response() {
        let error = ApiError::internal("password is hunter2");
        assert!(!error.message.contains("hunter2") && !error.next.contains("hunter2"));
        assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
