//! Tokens of devices whose update client speaks hawkBit's DDI.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{TokenState, Word};

/// Token of DDI devices to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewDdiToken {
    /// Id of the device that the token is for; absent for a gateway token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Product that the devices install.
    pub product: String,
    /// Channel that they follow.
    pub channel: String,
    /// Text for operators.
    #[serde(default)]
    pub label: String,
    /// Number of new devices that a gateway token lets in; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admits: Option<u64>,
    /// Labels that a device gets when it is let in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Validity, seconds; without end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// Token of DDI devices that was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeDdiToken {
    /// The token, which is shown this once.
    pub token: String,
    /// Its id.
    pub id: String,
    /// Node of the device that a target token is for; null for a gateway token.
    pub node: Option<String>,
}

/// Token of DDI devices, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DdiToken {
    /// Its id.
    pub id: String,
    /// Id of the device that it is for; null for a gateway token.
    pub target: Option<String>,
    /// Product that the devices install.
    pub product: String,
    /// Channel that they follow.
    pub channel: String,
    /// Text for operators.
    pub label: String,
    /// Labels that a device gets when it is let in.
    pub labels: BTreeMap<String, String>,
    /// Number of new devices that a gateway token still lets in.
    pub admits: u64,
    /// Time of its creation, unix seconds.
    pub created: i64,
    /// Its end, unix seconds; null without one.
    pub expires: Option<i64>,
    /// Time of its revocation, unix seconds; null if it is not revoked.
    pub revoked: Option<i64>,
    /// State.
    #[cfg_attr(feature = "openapi", schema(value_type = TokenState))]
    pub state: Word<TokenState>,
}

/// All tokens of DDI devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DdiTokenList {
    /// Tokens, newest first.
    pub tokens: Vec<DdiToken>,
}
