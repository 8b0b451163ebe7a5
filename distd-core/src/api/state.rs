//! State of the origin.

use serde::{Deserialize, Serialize};

/// Readiness of the origin and of each of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ready {
    /// Whether all parts work.
    pub ready: bool,
    /// `ok`, or the fault of the database.
    pub database: String,
    /// `ok`, or the fault of the object store.
    pub store: String,
    /// `ok`, or the fault of the TUF metadata.
    pub metadata: String,
    /// `ok`, or the fault of the disk space.
    pub space: String,
}

/// Name and versions of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Name of the program, `distd-server`.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Version of this API.
    pub api: String,
}
