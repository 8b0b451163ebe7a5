//! Space at the origin: which releases stay, which go, and how many bytes that frees.

use serde::{Deserialize, Serialize};

use super::Word;

/// Releases that one collection removes when nothing else is said.
pub const REMOVALS: u32 = 100;

/// Most releases that one collection removes.
pub const REMOVALS_MAX: u32 = 10_000;

/// Longest reason of a pin, bytes.
pub const PIN_REASON_MAX: usize = 200;

/// Largest number of releases, and of days, in a policy of retention.
pub const RETENTION_MAX: u32 = 1_000_000;

/// Largest quota, bytes.
pub const QUOTA_BYTES_MAX: u64 = 1 << 60;

/// Releases of a product that are kept although nothing uses them. A release is kept when one of
/// the bounds keeps it; both bounds absent keep none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Number of the newest releases, at most 1 000 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// Days since a release was made, or since it was withdrawn; at most 1 000 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// The policy may leave the product without a release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_empty: bool,
}

/// Reason for which a release stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
    /// Channels point to it.
    Channel,
    /// A rollout under way brings it, began at it or requires it.
    Rollout,
    /// Nodes report it as running.
    Running,
    /// Nodes are pinned to it.
    NodePin,
    /// DDI devices were told to install it.
    Action,
    /// An operator pinned it.
    Pinned,
    /// Devices go through it on a route of patch sets.
    RouteBase,
    /// It is among the newest releases that the policy keeps.
    Newest,
    /// It is younger than the policy's days.
    Age,
    /// It was withdrawn a short while ago, and can be brought back.
    Withdrawn,
    /// Without it the product would have no release.
    LastOfProduct,
    /// The product has no policy.
    NoPolicy,
}

/// Reason for which a release stays, with its particulars.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kept {
    /// The reason.
    #[cfg_attr(feature = "openapi", schema(value_type = KeepReason))]
    pub reason: Word<KeepReason>,
    /// Names of channels, a number of nodes, or words of an operator; empty where there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Lot of a release in a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum GcLot {
    /// It stays.
    Keep,
    /// It goes.
    Remove,
    /// It goes in a later run: one run removes only so many.
    Later,
    /// Its removal has begun, and its bytes go when the grace is over.
    Removing,
}

/// A release in a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GcRelease {
    /// Name of its product.
    pub product: String,
    /// Version.
    pub version: String,
    /// Its lot.
    #[cfg_attr(feature = "openapi", schema(value_type = GcLot))]
    pub lot: Word<GcLot>,
    /// Why it stays; empty when it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
    /// Time at which it was made, unix seconds.
    pub created: i64,
    /// Time at which it was withdrawn, unix seconds; absent while devices may take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<i64>,
    /// Length of its artifact, bytes.
    pub bytes: u64,
    /// Stored bytes of the chunks that it alone has.
    pub unique_bytes: u64,
}

/// Reason for which a patch set goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SetReason {
    /// The release that it starts from or leads to goes, or is gone.
    ReleaseGoes,
    /// No channel, node or rollout has the release that it starts from.
    NobodyHas,
    /// No channel, node or rollout wants the release that it leads to.
    NobodyWants,
    /// Devices do not see it: newer sets fill the product's list.
    Unlisted,
}

/// A patch set that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GcPatchSet {
    /// Name of its product.
    pub product: String,
    /// Version that it starts from; absent when it needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Version that it leads to.
    pub to: String,
    /// Length of the set, bytes.
    pub bytes: u64,
    /// Why it goes.
    #[cfg_attr(feature = "openapi", schema(value_type = SetReason))]
    pub reason: Word<SetReason>,
}

/// What a collection would do now, or has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GcReport {
    /// Releases in any state, by product, the newest first.
    pub releases: Vec<GcRelease>,
    /// Patch sets that go.
    pub patch_sets: Vec<GcPatchSet>,
    /// Stored bytes of the chunks that only releases and patch sets that go have.
    pub freed_bytes: u64,
    /// Bytes of all packs in the store.
    pub stored_bytes: u64,
    /// Stored bytes of the chunks of releases and patch sets.
    pub live_bytes: u64,
    /// Bytes in packs that no chunk uses; compaction frees them.
    pub dead_bytes: u64,
    /// Bytes of packs that were emptied, and stay a day for their readers.
    pub emptied_bytes: u64,
    /// Bytes of the packs of open uploads.
    pub upload_bytes: u64,
    /// Time for which the bytes of a removed release stay, seconds.
    pub grace_seconds: u64,
}

/// Order to collect now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CollectNow {
    /// Most releases to remove, 1 to 10 000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removals_max: Option<u32>,
}

/// Result of setting a policy of retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RetentionSet {
    /// The policy.
    pub retention: Retention,
    /// Releases of the product that stay.
    pub keeps: u64,
    /// Releases of the product that the next runs remove.
    pub removes: u64,
}

/// Pin of a release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PinRelease {
    /// Why, for other operators; at most 200 bytes.
    #[serde(default)]
    pub why: String,
}

/// Bounds of a product or of an API token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct QuotaBounds {
    /// Most bytes of new chunks, as stored; absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Most bytes of releases; absent: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_bytes: Option<u64>,
}

/// A quota and how much of it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quota {
    /// `product` or `token`.
    pub kind: String,
    /// Name of the product, id of the token.
    pub name: String,
    /// Bounds.
    pub bounds: QuotaBounds,
    /// Stored bytes of the chunks that came with its releases, and of its open uploads.
    pub stored_bytes: u64,
    /// Bytes of its releases.
    pub release_bytes: u64,
}

/// Every quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuotaList {
    /// Those of products first, by name.
    pub quotas: Vec<Quota>,
}
