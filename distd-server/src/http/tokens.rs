//! `/v1/tokens` and `/v1/join-tokens`: shown once, kept as hash and public key.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::text::{LABEL_SIGNS, is_label};
use distd_peer::clock::unix_now;
use distd_peer::trust::identity::Role;
use distd_peer::trust::token::{ApiToken, JoinToken};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{AnyToken, Caller, Scope, ToAdminister, token_id};
use super::body::{At, Given};
use super::{ApiError, App};
use crate::db::{ApiTokenRow, JoinTokenRow, RevokeToken};
use crate::origin::signed;
use crate::publisher::Products;

/// Longest label, bytes.
const LABEL_BYTES_MAX: usize = 200;

/// Longest validity of an API token with an end, seconds: ten years, as the realm CA.
const SECONDS_MAX: u64 = 10 * 365 * 24 * 3600;

/// Longest validity of a join token, seconds: 90 days, a batch of devices on its way from a factory. Whoever finds one can
/// join with it.
const JOIN_SECONDS_MAX: u64 = 90 * 24 * 3600;

/// Validity of a join token of which nothing is said, seconds.
const JOIN_SECONDS: u64 = 24 * 3600;

/// Most nodes that one join token brings in: a batch. A fleet takes several, each with a label, so that one can be revoked.
const USES_MAX: u64 = 10_000;

/// An API token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// What operators see.
    label: String,
    /// What it may do.
    scopes: Vec<Scope>,
    /// Names of the products it is for, `*` for any characters; all products when absent.
    products: Option<Vec<String>>,
    /// Seconds from now; for ever when absent.
    expires_in: Option<u64>,
}

/// An API token, just made.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeToken {
    /// The token; it is shown this once.
    token: String,
    /// Names it in lists and for revocation.
    id: String,
}

/// An API token as it is listed.
#[derive(Serialize, ToSchema)]
pub(super) struct Token {
    id: String,
    label: String,
    scopes: Vec<Scope>,
    /// Patterns of the products it is for; `*` alone for all.
    products: Vec<String>,
    /// Unix seconds.
    created: i64,
    /// Unix seconds; null for ever.
    expires: Option<i64>,
    /// Unix seconds; null unless revoked.
    revoked: Option<i64>,
    /// `valid`, `expired` or `revoked`, by the origin's clock.
    state: &'static str,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenList {
    tokens: Vec<Token>,
}

/// A join token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewJoinToken {
    /// `leaf` or `relay`.
    #[schema(value_type = String)]
    role: Role,
    /// Nodes it brings in; 1 when absent.
    uses: Option<u64>,
    /// Seconds from now; a day when absent.
    expires_in: Option<u64>,
    /// What operators see.
    #[serde(default)]
    label: String,
}

/// A join token, just made.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeJoinToken {
    /// The token; it is shown this once.
    token: String,
    /// Names it in lists and for revocation.
    id: String,
}

/// A join token as it is listed.
#[derive(Serialize, ToSchema)]
pub(super) struct JoinTokenInfo {
    id: String,
    label: String,
    /// `leaf` or `relay`.
    role: String,
    /// Nodes it has brought in.
    nodes: u64,
    /// Nodes it may still bring in.
    uses_left: u64,
    /// Unix seconds.
    created: i64,
    /// Unix seconds.
    expires: i64,
    /// Unix seconds; null unless revoked.
    revoked: Option<i64>,
    /// `valid`, `used up`, `expired` or `revoked`, by the origin's clock.
    state: &'static str,
}

/// Join tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct JoinTokenList {
    join_tokens: Vec<JoinTokenInfo>,
}

/// Digits of a join token's id, out of its public key.
const JOIN_ID_DIGITS: usize = 16;

/// Names a join token in lists and for revocation.
pub(super) fn join_token_id(public_key: &str) -> String {
    public_key.chars().take(JOIN_ID_DIGITS).collect()
}

/// How a token stands.
fn state_of(revoked: Option<i64>, expires: Option<i64>, now: i64) -> &'static str {
    match (revoked, expires) {
        (Some(_), _) => "revoked",
        (None, Some(end)) if end < now => "expired",
        _ => "valid",
    }
}

fn check_label(label: &str) -> Result<(), ApiError> {
    if label.len() > LABEL_BYTES_MAX || !is_label(label) {
        let next = format!(
            "choose letters, digits, single blanks and {LABEL_SIGNS} in at most {LABEL_BYTES_MAX} bytes"
        );
        return Err(ApiError::bad_request("the label cannot be used", next));
    }
    Ok(())
}

fn check_seconds(seconds: u64, seconds_max: u64) -> Result<i64, ApiError> {
    if !(1..=seconds_max).contains(&seconds) {
        let message = format!("expires_in cannot be {seconds}");
        return Err(ApiError::bad_request(message, format!("choose 1 to {seconds_max} seconds")));
    }
    Ok(signed(unix_now().saturating_add(seconds)))
}

/// Makes an API token.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken, responses(
    (status = 201, body = MadeToken)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    Given(new): Given<NewToken>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    check_label(&new.label)?;
    if new.scopes.is_empty() {
        let next = "choose some of: read, publish, channel, admin";
        return Err(ApiError::bad_request("a token without scopes is of no use", next));
    }
    let products = match &new.products {
        None => Products::all(),
        Some(patterns) => Products::new(patterns).map_err(|e| {
            ApiError::bad_request(e.to_string(), "choose names of products, such as os or app-*")
        })?,
    };
    if new.scopes.contains(&Scope::Admin) && !products.are_all() {
        let next = "leave products out, or leave admin out";
        return Err(ApiError::bad_request("the scope admin is for all products", next));
    }
    let token = ApiToken::generate(app.origin.realm().ca_fingerprint());
    let row = ApiTokenRow {
        secret_sha256: token.secret_hash(),
        label: new.label,
        scopes: Scope::to_row(&new.scopes),
        products: products.to_row(),
        created: signed(unix_now()),
        expires: new.expires_in.map(|seconds| check_seconds(seconds, SECONDS_MAX)).transpose()?,
        revoked: None,
    };
    app.origin.db().put_api_token(&row).await?;
    let id = token_id(&row.secret_sha256);
    tracing::info!(id, label = row.label, scopes = row.scopes, products = row.products, "API token made");
    Ok((StatusCode::CREATED, Json(MadeToken { token: token.to_secret_string(), id })))
}

fn info(row: ApiTokenRow) -> Token {
    let now = signed(unix_now());
    Token {
        state: state_of(row.revoked, row.expires, now),
        id: token_id(&row.secret_sha256),
        label: row.label,
        scopes: Scope::of_row(&row.scopes),
        products: Products::of_row(&row.products).patterns().to_vec(),
        created: row.created,
        expires: row.expires,
        revoked: row.revoked,
    }
}

/// Every API token, newest first.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses(
    (status = 200, body = TokenList)
), security(("token" = ["admin"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
) -> Result<Json<TokenList>, ApiError> {
    let rows = app.origin.db().api_tokens().await?;
    Ok(Json(TokenList { tokens: rows.into_iter().map(info).collect() }))
}

/// Revokes an API token, unless it is the last that may administer.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses(
    (status = 204, description = "Revoked")
), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    At(id): At<String>,
) -> Result<StatusCode, ApiError> {
    let now = signed(unix_now());
    let rows = app.origin.db().api_tokens().await?;
    let row = rows.iter().find(|row| token_id(&row.secret_sha256) == id);
    let row = row.ok_or_else(|| ApiError::unlisted("API token of this id", "GET /v1/tokens"))?;
    if app.origin.db().revoke_api_token(&row.secret_sha256, now).await? == RevokeToken::LastAdmin {
        let next = "make another token with the scope admin first";
        return Err(ApiError::conflict("this is the last token that may administer", next));
    }
    for upload in app.origin.db().uploads_open().await? {
        // What it sent and did not commit is nobody's now.
        if upload.row.token == id {
            let at = app.clone();
            app.detached(async move { Ok(at.origin.ingest().abort(&upload.row.id).await?) }).await?;
        }
    }
    tracing::info!(id, label = row.label, "API token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a join token.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "nodes", request_body = NewJoinToken, responses(
    (status = 201, body = MadeJoinToken)
), security(("token" = ["admin"])))]
pub(super) async fn create_join(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    Given(new): Given<NewJoinToken>,
) -> Result<(StatusCode, Json<MadeJoinToken>), ApiError> {
    check_label(&new.label)?;
    if new.role == Role::Origin {
        return Err(ApiError::bad_request("nothing can join as origin", "choose leaf or relay"));
    }
    let uses = new.uses.unwrap_or(1);
    if !(1..=USES_MAX).contains(&uses) {
        return Err(ApiError::bad_request(
            format!("uses cannot be {uses}"),
            format!("choose 1 to {USES_MAX}"),
        ));
    }
    let token = JoinToken::generate(app.origin.realm().ca_fingerprint());
    let row = JoinTokenRow {
        public_key: hex::encode(token.public_key()),
        role: new.role.as_str().to_owned(),
        uses_left: uses,
        expires: check_seconds(new.expires_in.unwrap_or(JOIN_SECONDS), JOIN_SECONDS_MAX)?,
        label: new.label,
        created: signed(unix_now()),
        revoked: None,
    };
    app.origin.db().put_join_token(&row).await?;
    let id = join_token_id(&row.public_key);
    tracing::info!(id, role = row.role, uses, label = row.label, "join token made");
    Ok((StatusCode::CREATED, Json(MadeJoinToken { token: token.to_secret_string(), id })))
}

/// Every join token, newest first.
#[utoipa::path(get, path = "/v1/join-tokens", tag = "nodes", responses(
    (status = 200, body = JoinTokenList)
), security(("token" = ["admin"])))]
pub(super) async fn list_join(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
) -> Result<Json<JoinTokenList>, ApiError> {
    let (rows, uses) = (app.origin.db().join_tokens().await?, app.origin.db().join_token_uses().await?);
    let now = signed(unix_now());
    let info = |row: JoinTokenRow| JoinTokenInfo {
        id: join_token_id(&row.public_key),
        nodes: uses.get(&row.public_key).copied().unwrap_or(0),
        state: match state_of(row.revoked, Some(row.expires), now) {
            "valid" if row.uses_left == 0 => "used up",
            state => state,
        },
        label: row.label,
        role: row.role,
        uses_left: row.uses_left,
        created: row.created,
        expires: row.expires,
        revoked: row.revoked,
    };
    Ok(Json(JoinTokenList { join_tokens: rows.into_iter().map(info).collect() }))
}

/// Revokes a join token: it brings nobody in any more. Nodes that came by it stay.
#[utoipa::path(delete, path = "/v1/join-tokens/{id}", tag = "nodes", params(("id" = String, Path)), responses(
    (status = 204, description = "Revoked")
), security(("token" = ["admin"])))]
pub(super) async fn revoke_join(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    At(id): At<String>,
) -> Result<StatusCode, ApiError> {
    let rows = app.origin.db().join_tokens().await?;
    let row = rows.iter().find(|row| join_token_id(&row.public_key) == id);
    let row = row.ok_or_else(|| ApiError::unlisted("join token of this id", "GET /v1/join-tokens"))?;
    app.origin.db().revoke_join_token(&row.public_key, signed(unix_now())).await?;
    tracing::info!(id, label = row.label, "join token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// The token that asks.
#[utoipa::path(get, path = "/v1/token", tag = "tokens", responses((status = 200, body = Token)),
    security(("token" = [])))]
pub(super) async fn own(caller: Caller<AnyToken>) -> Json<Token> {
    Json(info(caller.row))
}
