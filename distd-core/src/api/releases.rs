//! Releases.

use serde::{Deserialize, Serialize};

use super::Word;
use crate::{ArtifactHash, ManifestId};

/// Kind of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReleaseKind {
    /// A file or an image.
    File,
    /// A directory tree.
    Tree,
}

/// A release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Release {
    /// Name of its product.
    pub product: String,
    /// Version.
    pub version: String,
    /// Kind of its artifact.
    #[cfg_attr(feature = "openapi", schema(value_type = ReleaseKind))]
    pub kind: Word<ReleaseKind>,
    /// Id of the manifest, 64 hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub manifest: ManifestId,
    /// BLAKE3 of the whole artifact, as `b3sum` prints it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub blake3: ArtifactHash,
    /// Length of the artifact, bytes.
    pub bytes: u64,
    /// Number of chunks, repeats counted.
    pub chunks: u64,
    /// Time at which it was made, unix seconds.
    pub created: i64,
    /// Number of the release among the product's; a later release has a higher number.
    // Older origins send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64, required))]
    pub sequence: Option<u64>,
    /// The origin's store has lost a part of the release: push the same bytes again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
    /// Time at which it was withdrawn, unix seconds: devices do not take it, and it can be brought
    /// back. Absent while devices may take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<i64>,
    /// Time at which its bytes go, unix seconds; absent while they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_at: Option<i64>,
    /// Why an operator pinned it; absent when it is not pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// Channels that point to the release; only in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
}

/// Releases of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseList {
    /// Releases, newest first.
    pub releases: Vec<Release>,
}
