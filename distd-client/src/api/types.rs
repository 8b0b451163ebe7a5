//! Answers of the origin. Fields this version does not know are left alone.

use distd_core::cut::CutParams;
use distd_core::{ArtifactHash, ManifestId};
use serde::{Deserialize, Serialize};

/// A release.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Release {
    pub(crate) product: String,
    pub(crate) version: String,
    /// `file` or `tree`.
    pub(crate) kind: String,
    pub(crate) manifest: ManifestId,
    pub(crate) blake3: ArtifactHash,
    pub(crate) bytes: u64,
    pub(crate) chunks: u64,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Its number among the product's releases; none from an origin of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    /// The origin's store has lost a part of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) damaged: bool,
    /// Channels that point to it, in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) channels: Vec<String>,
}

/// Releases of a product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReleaseList {
    pub(crate) releases: Vec<Release>,
}

/// A channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Channel {
    pub(crate) product: String,
    pub(crate) channel: String,
    pub(crate) version: String,
    pub(crate) manifest: ManifestId,
    pub(crate) counter: u64,
    /// Unix seconds.
    pub(crate) updated: i64,
    /// Devices with releases numbered up to this may come back to the version; none where that was
    /// not ordered.
    #[serde(default)]
    pub(crate) downgrade_from: Option<u64>,
}

/// One change of a channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelChange {
    pub(crate) id: u64,
    /// Unix seconds.
    pub(crate) at: i64,
    /// None when it was made.
    pub(crate) from: Option<String>,
    /// None when it was removed.
    pub(crate) to: Option<String>,
    /// Whether devices were ordered to come back to it.
    pub(crate) downgrade: bool,
    pub(crate) downgrade_from: Option<u64>,
    /// Id of the token; none when the origin did it by itself.
    pub(crate) token: Option<String>,
    pub(crate) label: Option<String>,
}

/// Changes of a channel, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelHistory {
    pub(crate) changes: Vec<ChannelChange>,
    /// More are before this one.
    pub(crate) before: Option<u64>,
}

/// Channels of a product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelList {
    pub(crate) channels: Vec<Channel>,
}

/// A product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) name: String,
    pub(crate) cut: CutParamsInfo,
    /// Unix seconds.
    pub(crate) created: i64,
}

/// How releases of a product are cut, bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CutParamsInfo {
    pub(crate) min: u32,
    pub(crate) avg: u32,
    pub(crate) max: u32,
}

/// Products.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProductList {
    pub(crate) products: Vec<Product>,
}

/// A patch set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PatchSet {
    pub(crate) product: String,
    /// None for a set that starts from nothing.
    pub(crate) from: Option<String>,
    pub(crate) to: String,
    pub(crate) from_manifest: Option<ManifestId>,
    pub(crate) to_manifest: ManifestId,
    /// `queued`, `building`, `ready` or `failed`.
    pub(crate) state: String,
    /// Its manifest; none until it is ready, and then too when no patch would save anything.
    pub(crate) set: Option<ManifestId>,
    pub(crate) bytes: u64,
    /// What it rebuilds, as stored chunks.
    pub(crate) chunk_bytes: u64,
    pub(crate) patches: u64,
    pub(crate) error: Option<String>,
    pub(crate) requested_by: String,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds.
    pub(crate) started: Option<i64>,
    /// Unix seconds.
    pub(crate) finished: Option<i64>,
}

/// Patch sets of a product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PatchSetList {
    pub(crate) patches: Vec<PatchSet>,
}

/// A new token: the text is shown once.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secret {
    pub(crate) token: String,
    /// None from an origin of before, for join tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
}

/// An API token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TokenInfo {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) scopes: Vec<String>,
    /// Patterns of the products it is for.
    #[serde(default = "all_products")]
    pub(crate) products: Vec<String>,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds; none for ever.
    pub(crate) expires: Option<i64>,
    /// Unix seconds.
    pub(crate) revoked: Option<i64>,
    /// `valid`, `expired` or `revoked`; empty from an origin of before.
    #[serde(default)]
    pub(crate) state: String,
}

/// What tokens of an origin are for that knows no other.
fn all_products() -> Vec<String> {
    vec!["*".to_owned()]
}

/// API tokens, and join tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TokenList {
    pub(crate) tokens: Vec<TokenInfo>,
    #[serde(default)]
    pub(crate) join_tokens: Vec<JoinTokenInfo>,
}

/// A join token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinTokenInfo {
    pub(crate) id: String,
    pub(crate) label: String,
    /// `leaf` or `relay`.
    pub(crate) role: String,
    /// Nodes it has brought in.
    pub(crate) nodes: u64,
    pub(crate) uses_left: u64,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds.
    pub(crate) expires: i64,
    /// Unix seconds.
    pub(crate) revoked: Option<i64>,
    /// `valid`, `used up`, `expired` or `revoked`.
    pub(crate) state: String,
}

/// Join tokens.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct JoinTokenList {
    pub(crate) join_tokens: Vec<JoinTokenInfo>,
}

/// What was revoked with a node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RevokedNode {
    pub(crate) join_tokens: Vec<String>,
}

/// A node of the realm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) role: String,
    pub(crate) label: String,
    /// Unix seconds.
    pub(crate) enrolled: i64,
    /// End of its certificate, unix seconds.
    pub(crate) cert_expires: i64,
    /// Unix seconds.
    pub(crate) revoked: Option<i64>,
}

/// Nodes of the realm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeList {
    pub(crate) nodes: Vec<Node>,
}

/// A new or resumed upload.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Begun {
    pub(super) upload: String,
    pub(super) cut: CutParams,
    #[serde(default)]
    pub(super) resumed: bool,
}
