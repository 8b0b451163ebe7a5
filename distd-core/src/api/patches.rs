//! Patch sets.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Word;
use crate::ManifestId;

/// Patch set to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Version that the devices have; when absent, the set is for devices that have nothing.
    #[serde(default)]
    pub from: Option<String>,
}

/// State of a patch set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum PatchSetState {
    /// The set waits for its turn.
    Queued,
    /// The set is being made, or is made and not signed yet, or its origin ended meanwhile.
    Building,
    /// Devices find the set in the signed metadata, or no patch would save anything.
    Ready,
    /// The set could not be made.
    Failed,
}

impl PatchSetState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Queued, Self::Building, Self::Ready, Self::Failed];

    /// Word for the state in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for PatchSetState {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or(())
    }
}

/// A patch set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PatchSet {
    /// Name of its product.
    pub product: String,
    /// Version that devices must have; null for a set from nothing.
    pub from: Option<String>,
    /// Version that devices get.
    pub to: String,
    /// Manifest of `from`, 64 hexadecimal digits; null for a set from nothing.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub from_manifest: Option<ManifestId>,
    /// Manifest of `to`, 64 hexadecimal digits.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub to_manifest: ManifestId,
    /// State of the set.
    #[cfg_attr(feature = "openapi", schema(value_type = PatchSetState))]
    pub state: Word<PatchSetState>,
    /// Manifest of the set; null until the set is made, and also if no patch would save anything.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub set: Option<ManifestId>,
    /// Length of the set, bytes.
    pub bytes: u64,
    /// Size of the chunks that the patches rebuild, as sent without patches, bytes.
    pub chunk_bytes: u64,
    /// Number of patches in the set.
    pub patches: u64,
    /// Reason of the failure; null unless the state is `failed`.
    pub error: Option<String>,
    /// Label of the token that requested the set, or `release` or `channel` if the origin did so by
    /// itself.
    pub requested_by: String,
    /// Time of the request, unix seconds.
    pub created: i64,
    /// Time at which the making began, unix seconds; null before.
    pub started: Option<i64>,
    /// Time at which the set was made or failed, unix seconds; null before.
    pub finished: Option<i64>,
}

/// Patch sets of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PatchSetList {
    /// Sets, newest first.
    pub patches: Vec<PatchSet>,
}
