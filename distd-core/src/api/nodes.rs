//! Nodes of the realm.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GrantInfo, Word};
use crate::fleet::{LabelMap, Labels};
use crate::role::Role;

/// A node of the realm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// 32 hexadecimal digits.
    pub id: String,
    /// `leaf` or `relay`.
    #[cfg_attr(feature = "openapi", schema(value_type = Role))]
    pub role: Word<Role>,
    /// Free text for operators.
    pub label: String,
    /// Time of its first enrolment, unix seconds.
    pub enrolled: i64,
    /// End of its certificate, unix seconds.
    pub cert_expires: i64,
    /// Time of its revocation, unix seconds; null if it is not revoked.
    pub revoked: Option<i64>,
    /// Its labels, which selectors of groups are about.
    // Older origins send none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub labels: NodeLabels,
    /// Time at which its newest report came, unix seconds; null if it has sent none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub reported: Option<i64>,
    /// Releases that run on it, by that report.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub running: Vec<NodeRunning>,
    /// Whether the node stands for a device whose update client speaks hawkBit's DDI; absent for
    /// all others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ddi: bool,
}

/// Release of a channel that runs on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRunning {
    /// Product.
    pub product: String,
    /// Channel that the node follows.
    pub channel: String,
    /// Version that runs; null while it has none.
    pub version: Option<String>,
    /// Why the node does not install the release of the channel's rollout; null if nothing holds it
    /// back.
    pub held: Option<String>,
}

/// Labels of a node, by source. An operator's label replaces the token's of the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeLabels {
    /// Labels of the join token with which the node enrolled last.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub token: BTreeMap<String, String>,
    /// Labels that an operator gave the node.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub operator: BTreeMap<String, String>,
    /// Facts that the node reported; they decide no rights.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub facts: BTreeMap<String, String>,
}

/// Labels of one source as they stand in answers.
pub fn label_texts(map: &LabelMap) -> BTreeMap<String, String> {
    map.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

impl From<&Labels> for NodeLabels {
    fn from(labels: &Labels) -> Self {
        Self {
            token: label_texts(&labels.token),
            operator: label_texts(&labels.operator),
            facts: label_texts(&labels.facts),
        }
    }
}

impl NodeLabels {
    /// The labels, for a selector. Those in a form that only a later origin knows are left out.
    pub fn parsed(&self) -> Labels {
        let map = |texts: &BTreeMap<String, String>| -> LabelMap {
            texts.iter().filter_map(|(key, value)| Some((key.parse().ok()?, value.parse().ok()?))).collect()
        };
        Labels { token: map(&self.token), operator: map(&self.operator), facts: map(&self.facts) }
    }
}

/// Change of the labels that an operator gave a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeLabels {
    /// Labels to set, by key.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Keys to remove. A token's label of the same key holds again.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A node with its groups and the grants that give it rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeDetail {
    /// The node.
    pub node: Node,
    /// Names of the groups it is in.
    pub groups: Vec<String>,
    /// Grants that give it rights now; none when it is revoked.
    pub grants: Vec<GrantInfo>,
    /// Versions to which it is pinned, by product.
    // Older origins send none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub pins: BTreeMap<String, String>,
}

/// Version to which a node is to be pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Released version of the product.
    pub version: String,
}

/// Nodes of the realm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeList {
    /// Nodes by time of enrolment.
    pub nodes: Vec<Node>,
}

/// Options of a revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeNode {
    /// Whether to revoke also the join tokens with which the node enrolled. The holder of such a
    /// token could enrol again with a new key.
    #[serde(default)]
    pub tokens: bool,
}

/// Result of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RevokedNode {
    /// Ids of the join tokens that were revoked with the node.
    pub join_tokens: Vec<String>,
}
