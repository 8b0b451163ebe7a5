//! Channels and their history.

use serde::{Deserialize, Serialize};

use crate::ManifestId;

/// Number of changes in one answer if the caller gives no limit.
pub const CHANGES_PAGE: u32 = 100;

/// Largest limit that a caller may give.
pub const CHANGES_PAGE_MAX: u32 = 1000;

/// Release to which a channel is to point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Released version of the product.
    pub version: String,
    /// Whether devices that have a later release are to go back to this one. Needs the scope
    /// `downgrade`.
    // Sent only when set, because older origins refuse the field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downgrade: bool,
}

/// Whether the rollouts of a channel wait for the approval of a second token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChannelApproval {
    /// Whether they do, from the next one on. The channel is not set or removed by hand then.
    pub wanted: bool,
}

/// A channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Channel {
    /// Name of its product.
    pub product: String,
    /// Name.
    pub channel: String,
    /// Version of the release to which the channel points.
    pub version: String,
    /// Manifest of that release, 64 hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub manifest: ManifestId,
    /// Number that grows by one with each change of the channel.
    pub counter: u64,
    /// Time of the last change, unix seconds.
    pub updated: i64,
    /// Devices with a release whose sequence is at most this go back to `version`; null if no
    /// downgrade was ordered.
    #[serde(default)]
    pub downgrade_from: Option<u64>,
    /// Whether its rollouts wait for the approval of a second token.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

/// Channels of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelList {
    /// Channels by name.
    pub channels: Vec<Channel>,
}

/// One change of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelChange {
    /// Id of the change; each change has a higher one than the changes before it.
    pub id: u64,
    /// Time of the change, unix seconds.
    pub at: i64,
    /// Version to which the channel pointed before; null if the change created the channel.
    pub from: Option<String>,
    /// Version to which the channel points since; null if the change removed the channel.
    pub to: Option<String>,
    /// Whether the change ordered devices to go back to `to`.
    pub downgrade: bool,
    /// Highest sequence from which devices go back; null if no downgrade was ordered.
    pub downgrade_from: Option<u64>,
    /// Id of the token that made the change; null if the origin made it by itself.
    pub token: Option<String>,
    /// Label of that token.
    pub label: Option<String>,
}

/// Changes of a channel, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelHistory {
    /// Changes of this page.
    pub changes: Vec<ChannelChange>,
    /// Value of `before` that asks for the next page; null on the last page.
    pub before: Option<u64>,
}
