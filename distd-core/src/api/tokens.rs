//! API tokens and join tokens.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Word;
use crate::role::Role;

/// Most nodes that one join token can enrol: one batch. A fleet uses several tokens, each with a
/// label, so that each can be revoked alone.
pub const JOIN_USES_MAX: u32 = 10_000;

/// Right that an API token can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read products, releases, channels, manifests and packs.
    Read,
    /// See the fleet: nodes, groups, grants, tokens without their secrets, receipts, the audit log.
    View,
    /// Make products and releases.
    Publish,
    /// Move channels.
    Channel,
    /// Order devices back to an older release when moving a channel.
    Downgrade,
    /// Everything, including tokens and nodes.
    Admin,
}

impl Scope {
    /// All scopes, in the order in which they are listed.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::View, Self::Publish, Self::Channel, Self::Downgrade, Self::Admin];

    /// Word for the scope in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::View => "view",
            Self::Publish => "publish",
            Self::Channel => "channel",
            Self::Downgrade => "downgrade",
            Self::Admin => "admin",
        }
    }
}

/// API token to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewToken<S = Scope> {
    /// Free text for operators.
    pub label: String,
    /// Scopes of the token.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Scope>))]
    pub scopes: Vec<S>,
    /// Patterns `PRODUCT` or `PRODUCT:CHANNEL` for which it is valid, with `*` for any characters;
    /// all products when absent. With a channel it moves only such channels.
    // Sent only when set: an older origin then refuses a token for some products instead of making
    // one for all products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<Vec<String>>,
    /// Validity in seconds from now; without end when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// New API token.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeToken {
    /// The token, which only this answer shows.
    pub token: String,
    /// Id that names the token in lists and for revocation.
    pub id: String,
}

/// State of an API token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// The token can be used.
    Valid,
    /// Its validity has ended.
    Expired,
    /// It was revoked.
    Revoked,
}

/// API token in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Id that names the token.
    pub id: String,
    /// Free text for operators.
    pub label: String,
    /// Scopes of the token.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Scope>))]
    pub scopes: Vec<Word<Scope>>,
    /// Patterns of the products for which it is valid; `*` alone means all.
    #[serde(default = "all_products")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub products: Vec<String>,
    /// Time of its creation, unix seconds.
    pub created: i64,
    /// End of its validity, unix seconds; null if it has none.
    pub expires: Option<i64>,
    /// Time of its revocation, unix seconds; null if it is not revoked.
    pub revoked: Option<i64>,
    /// State by the origin's clock.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = TokenState, required))]
    pub state: Word<TokenState>,
}

/// Default for origins whose tokens have no product patterns: all products.
fn all_products() -> Vec<String> {
    vec!["*".to_owned()]
}

/// API tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenList {
    /// Tokens, newest first.
    pub tokens: Vec<Token>,
}

/// Join token to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// `leaf` or `relay`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub role: Role,
    /// Number of nodes that it can enrol; 1 when absent.
    pub uses: Option<u64>,
    /// Validity in seconds from now; one day when absent.
    pub expires_in: Option<u64>,
    /// Free text for operators.
    #[serde(default)]
    pub label: String,
    /// Labels that a node gets when it enrols with the token, at most 32; none when absent.
    // Sent only when set: an older origin then refuses it instead of making a token without labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// New join token.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeJoinToken {
    /// The token, which only this answer shows.
    pub token: String,
    /// Id that names the token in lists and for revocation.
    // Older origins send none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, required))]
    pub id: Option<String>,
}

/// State of a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JoinTokenState {
    /// The token can be used.
    Valid,
    /// As many nodes as it may enrol have enrolled with it.
    #[serde(rename = "used up")]
    UsedUp,
    /// Its validity has ended.
    Expired,
    /// It was revoked.
    Revoked,
}

/// Join token in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenInfo {
    /// Id that names the token.
    pub id: String,
    /// Free text for operators.
    pub label: String,
    /// `leaf` or `relay`.
    #[cfg_attr(feature = "openapi", schema(value_type = Role))]
    pub role: Word<Role>,
    /// Number of nodes that enrolled with it.
    pub nodes: u64,
    /// Number of nodes that can still enrol with it.
    pub uses_left: u64,
    /// Time of its creation, unix seconds.
    pub created: i64,
    /// End of its validity, unix seconds.
    pub expires: i64,
    /// Time of its revocation, unix seconds; null if it is not revoked.
    pub revoked: Option<i64>,
    /// State by the origin's clock.
    #[cfg_attr(feature = "openapi", schema(value_type = JoinTokenState))]
    pub state: Word<JoinTokenState>,
    /// Labels that a node gets when it enrols with the token.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub labels: BTreeMap<String, String>,
}

/// Join tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenList {
    /// Join tokens, newest first.
    pub join_tokens: Vec<JoinTokenInfo>,
}
