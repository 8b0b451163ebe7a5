//! Types of the origin's answers. Fields that this version does not know are ignored.

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
    /// Number of the release within its product; `None` from older origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    /// Whether the origin's store has lost a part of the release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) damaged: bool,
    /// Channels that point to the release; only filled in lists.
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
    /// Devices that have a release with a sequence number up to this one are ordered back to the
    /// version; `None` if no downgrade was ordered.
    #[serde(default)]
    pub(crate) downgrade_from: Option<u64>,
}

/// One change of a channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelChange {
    pub(crate) id: u64,
    /// Unix seconds.
    pub(crate) at: i64,
    /// Version before the change; `None` when the change created the channel.
    pub(crate) from: Option<String>,
    /// Version after the change; `None` when the change removed the channel.
    pub(crate) to: Option<String>,
    /// Whether the change orders devices back to an older version.
    pub(crate) downgrade: bool,
    pub(crate) downgrade_from: Option<u64>,
    /// Id of the token that made the change; `None` when the origin made it.
    pub(crate) token: Option<String>,
    pub(crate) label: Option<String>,
}

/// Changes of a channel, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ChannelHistory {
    pub(crate) changes: Vec<ChannelChange>,
    /// Id to continue from: earlier changes precede this one. `None` at the end.
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

/// Chunk sizes that a product's releases are cut with, in bytes.
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
    /// Version that the patches start from; `None` for a set that starts from nothing.
    pub(crate) from: Option<String>,
    pub(crate) to: String,
    pub(crate) from_manifest: Option<ManifestId>,
    pub(crate) to_manifest: ManifestId,
    /// `queued`, `building`, `ready` or `failed`.
    pub(crate) state: String,
    /// Manifest of the set. `None` until the set is ready, and also afterwards when no patch would
    /// save anything.
    pub(crate) set: Option<ManifestId>,
    pub(crate) bytes: u64,
    /// Stored size of the chunks that the set rebuilds, in bytes.
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

/// A new token. The origin shows its text once.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secret {
    pub(crate) token: String,
    /// Id of the token; `None` for join tokens from older origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
}

/// An API token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TokenInfo {
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) scopes: Vec<String>,
    /// Patterns of the products that the token is valid for.
    #[serde(default = "all_products")]
    pub(crate) products: Vec<String>,
    /// Unix seconds.
    pub(crate) created: i64,
    /// Unix seconds; `None` if the token never expires.
    pub(crate) expires: Option<i64>,
    /// Unix seconds.
    pub(crate) revoked: Option<i64>,
    /// `valid`, `expired` or `revoked`; empty from older origins.
    #[serde(default)]
    pub(crate) state: String,
}

/// Default for origins whose tokens have no product patterns: all products.
fn all_products() -> Vec<String> {
    vec!["*".to_owned()]
}

/// API tokens and join tokens.
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
    /// Number of nodes that enrolled with the token.
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

/// Answer to the revocation of a node: ids of the join tokens revoked with it.
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
    /// End of the node's certificate, in unix seconds.
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
