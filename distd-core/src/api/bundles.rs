//! Signed metadata for bundles, which is valid for longer than that which devices poll.

use serde::{Deserialize, Serialize};

/// Wanted validity of the metadata in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewBundleMetadata {
    /// Seconds for which the metadata is to be valid, at most `bundle_validity` of the origin.
    pub seconds: u64,
}

/// Snapshot, timestamp and capability for a bundle. They are in no repository: whoever has the
/// bundle has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BundleMetadata {
    /// Name of the snapshot's file in the repository, as in `7.snapshot.json`.
    pub snapshot_name: String,
    /// The snapshot, JSON.
    pub snapshot: String,
    /// The timestamp, JSON.
    pub timestamp: String,
    /// Capability of any node to read the release and the patch sets that lead to it, hexadecimal.
    pub capability: String,
    /// Time from which all three are refused, unix seconds.
    pub valid_until: u64,
}
