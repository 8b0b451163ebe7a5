//! Nodes of the realm.

use serde::{Deserialize, Serialize};

use super::Word;
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
