//! [`Role`]: what a node may do in its realm.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Role that a node's certificate grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The origin; only the CA's own host makes such certificates.
    Origin,
    /// A relay, which may be dialled as a parent.
    Relay,
    /// A device.
    Leaf,
}

impl Role {
    /// Name of the role, also used in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Relay => "relay",
            Self::Leaf => "leaf",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(s: &str) -> Result<Self, UnknownRole> {
        [Self::Origin, Self::Relay, Self::Leaf].into_iter().find(|r| r.as_str() == s).ok_or(UnknownRole)
    }
}

/// A word that is not a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is one of: origin, relay, leaf")]
pub struct UnknownRole;
