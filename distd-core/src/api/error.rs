//! Body of a failure.

use serde::{Deserialize, Serialize};

/// Body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorDetail,
}

/// Description of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    /// Stable word for programs.
    pub code: String,
    /// Description of the failure for people.
    pub message: String,
    /// Advice: the caller's next step.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub next: String,
}

/// Words for programs: [`ErrorDetail::code`]. A word never changes its meaning.
pub mod code {
    /// The request is malformed.
    pub const BAD_REQUEST: &str = "bad_request";
    /// There is no token, or it is not valid.
    pub const UNAUTHORISED: &str = "unauthorised";
    /// The token lacks the scope.
    pub const FORBIDDEN: &str = "forbidden";
    /// The token is not valid for the product.
    pub const FORBIDDEN_PRODUCT: &str = "forbidden_product";
    /// The caller has too many requests open.
    pub const BUSY: &str = "busy";
    /// The token's uploads hold too much.
    pub const QUOTA: &str = "quota";
    /// There is no such object.
    pub const NOT_FOUND: &str = "not_found";
    /// The path does not take this method.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// There is no such product.
    pub const UNKNOWN_PRODUCT: &str = "unknown_product";
    /// There is no such version.
    pub const UNKNOWN_VERSION: &str = "unknown_version";
    /// There is no such channel.
    pub const UNKNOWN_CHANNEL: &str = "unknown_channel";
    /// There is no such upload.
    pub const UNKNOWN_UPLOAD: &str = "unknown_upload";
    /// There is no such manifest.
    pub const UNKNOWN_MANIFEST: &str = "unknown_manifest";
    /// The state does not allow the request.
    pub const CONFLICT: &str = "conflict";
    /// The body is too large.
    pub const TOO_LARGE: &str = "too_large";
    /// The origin has no space left.
    pub const STORAGE_FULL: &str = "storage_full";
    /// Bytes do not have the stated hash.
    pub const HASH_MISMATCH: &str = "hash_mismatch";
    /// The version has other bytes already.
    pub const VERSION_TAKEN: &str = "version_taken";
    /// A part of the origin does not answer.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The origin failed; its log says why.
    pub const INTERNAL: &str = "internal";
    /// The channel points to a later release, and no downgrade was ordered.
    pub const DOWNGRADE: &str = "downgrade";
    /// A channel points to the release, or a grant names the group.
    pub const IN_USE: &str = "in_use";
    /// The version is a release that was withdrawn.
    pub const WITHDRAWN: &str = "withdrawn";
    /// Nodes run the release.
    pub const RUNNING: &str = "running";
    /// The release is pinned.
    pub const PINNED: &str = "pinned";
    /// The policy would leave the product without a release.
    pub const WOULD_EMPTY: &str = "would_empty";
}
