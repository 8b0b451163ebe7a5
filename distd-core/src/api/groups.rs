//! Groups of nodes.

use serde::{Deserialize, Serialize};

/// Most members in one page of a group.
pub const MEMBERS_PAGE_MAX: u32 = 10_000;

/// Members in a page of a group when the caller does not say.
pub const MEMBERS_PAGE: u32 = 1000;

/// Definition of a group: a selector or a list of nodes, not both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// Selector of the nodes, such as `site=12,kind in (till, kiosk)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Ids of the nodes, at most 10 000. A node that has not enrolled yet may be listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its selector; null for a group that lists its nodes.
    pub selector: Option<String>,
    /// Number of nodes that it lists; null for a group with a selector.
    pub listed: Option<u64>,
    /// Ids of the grants that name it.
    pub grants: Vec<u64>,
}

/// Groups of the realm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupList {
    /// `everyone`, then the others by name.
    pub groups: Vec<Group>,
}

/// A group that was made or replaced, and what it selects now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupSelection {
    /// Its name.
    pub name: String,
    /// Its selector in the form in which it is kept; null for a group that lists its nodes.
    pub selector: Option<String>,
    /// Number of nodes that it lists; null for a group with a selector.
    pub listed: Option<u64>,
    /// Number of its members: nodes that are enrolled and not revoked.
    pub selected: u64,
    /// Number of nodes of the realm that are not revoked.
    pub of: u64,
}

/// A group with some of its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupMembers {
    /// Its name.
    pub name: String,
    /// Its selector; null for a group that lists its nodes.
    pub selector: Option<String>,
    /// Number of nodes that it lists; null for a group with a selector.
    pub listed: Option<u64>,
    /// Number of its members: nodes that are enrolled and not revoked.
    pub selected: u64,
    /// Number of nodes of the realm that are not revoked.
    pub of: u64,
    /// Ids of members in ascending order.
    pub nodes: Vec<String>,
    /// Value of `after` for the next page; null at the end.
    pub after: Option<String>,
}
