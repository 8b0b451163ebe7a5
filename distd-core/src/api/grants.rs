//! Grants: rights of groups on releases.

use serde::{Deserialize, Serialize};

use super::Word;
use crate::fleet::Right;

/// Most patterns of releases in one request for grants.
pub const GRANT_RELEASES_MAX: usize = 64;

/// Grants to make, one for each pattern of releases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewGrants {
    /// Name of the group.
    pub group: String,
    /// Patterns `PRODUCT` or `PRODUCT:CHANNEL`, with `*` for any characters; 1 to 64.
    pub releases: Vec<String>,
    /// The rights, with `read` among them; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<Vec<Right>>,
    /// Time from which the grants give nothing any more, unix seconds; without end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// Whether nodes need only their certificate, and no capability. Only for the group `everyone`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_certificate: bool,
}

/// State of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// The grant gives its rights.
    Valid,
    /// Its time is over.
    Expired,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GrantInfo {
    /// Number that names the grant.
    pub id: u64,
    /// Name of the group.
    pub group: String,
    /// The rights.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Right>))]
    pub rights: Vec<Word<Right>>,
    /// Pattern of the releases, `PRODUCT` or `PRODUCT:CHANNEL`.
    pub releases: String,
    /// Time from which it gives nothing any more, unix seconds; null without end.
    pub until: Option<i64>,
    /// Whether nodes need only their certificate, and no capability.
    pub by_certificate: bool,
    /// Time of its creation, unix seconds; null when the migration of an older database made it.
    pub created: Option<i64>,
    /// Label of the token that made it, or `migration`.
    pub created_by: String,
    /// State by the origin's clock.
    #[cfg_attr(feature = "openapi", schema(value_type = GrantState))]
    pub state: Word<GrantState>,
}

/// Grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GrantList {
    /// Grants, the first one first.
    pub grants: Vec<GrantInfo>,
}
