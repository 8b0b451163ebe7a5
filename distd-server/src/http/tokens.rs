//! `/v1/tokens` and `/v1/join-tokens`. A token is shown once. The origin keeps only the hash of an
//! API token's secret and the public key of a join token.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{
    JOIN_USES_MAX, JoinTokenInfo, JoinTokenList, JoinTokenState, MadeJoinToken, MadeToken, NewJoinToken,
    NewToken, Token, TokenList, TokenState, Word, label_texts,
};
use distd_core::role::Role;
use distd_core::text::{LABEL_SIGNS, is_label};
use distd_peer::clock::unix_now;
use distd_peer::trust::token::{ApiToken, JoinToken};

use super::auth::{AnyToken, Caller, Scope, ToAdminister, ToView, token_id};
use super::body::{JsonBody, PathParams};
use super::nodes::labels_of;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::{ApiTokenRow, JoinTokenRow, RevokeToken, join_token_id};
use crate::origin::signed;
use crate::publisher::Products;

pub(super) fn routes() -> Vec<Route> {
    routes![create, list, revoke, own, create_join, list_join, revoke_join]
}

/// Longest label, bytes.
const LABEL_BYTES_MAX: usize = 200;

/// Longest validity of an API token with an end, seconds: ten years, like the realm CA.
pub(super) const SECONDS_MAX: u64 = 10 * 365 * 24 * 3600;

/// Longest validity of a join token, seconds: 90 days, enough for a batch of devices on the way
/// from the factory. Anybody who finds the token can enrol with it.
const JOIN_SECONDS_MAX: u64 = 90 * 24 * 3600;

/// Validity of a join token if the caller gives none, seconds.
const JOIN_SECONDS: u64 = 24 * 3600;

/// State of a token at `now`.
pub(super) fn state_of(revoked: Option<i64>, expires: Option<i64>, now: i64) -> TokenState {
    match (revoked, expires) {
        (Some(_), _) => TokenState::Revoked,
        (None, Some(end)) if end < now => TokenState::Expired,
        _ => TokenState::Valid,
    }
}

pub(super) fn check_label(label: &str) -> Result<(), ApiError> {
    if label.len() > LABEL_BYTES_MAX || !is_label(label) {
        let next = format!(
            "choose a label of letters, digits, single spaces and {LABEL_SIGNS}, at most {LABEL_BYTES_MAX} bytes"
        );
        return Err(ApiError::bad_request(
            "the label is too long or has characters that are not allowed",
            next,
        ));
    }
    Ok(())
}

pub(super) fn check_seconds(seconds: u64, seconds_max: u64) -> Result<i64, ApiError> {
    if !(1..=seconds_max).contains(&seconds) {
        let message = format!("expires_in = {seconds} is out of bounds");
        return Err(ApiError::bad_request(message, format!("choose 1 to {seconds_max} seconds")));
    }
    Ok(signed(unix_now().saturating_add(seconds)))
}

/// Creates an API token.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = NewToken, responses(
    (status = 201, body = MadeToken)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    JsonBody(new): JsonBody<NewToken>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    check_label(&new.label)?;
    if new.scopes.is_empty() {
        let next = "choose one or more of read, view, publish, channel, downgrade and admin";
        return Err(ApiError::bad_request("an API token needs at least one scope", next));
    }
    let products = match &new.products {
        None => Products::all(),
        Some(patterns) => Products::new(patterns).map_err(|e| {
            ApiError::bad_request(
                e.to_string(),
                "choose products, such as os or app-*, or channels, such as os:testing",
            )
        })?,
    };
    // The fleet is one, whatever products its devices follow.
    for scope in [Scope::Admin, Scope::View] {
        if new.scopes.contains(&scope) && !products.are_all() {
            let scope = scope.as_str();
            return Err(ApiError::bad_request(
                format!("a token with the scope {scope} cannot be limited to some products"),
                format!("leave out products, or leave out the scope {scope}"),
            ));
        }
    }
    let token = ApiToken::generate(app.origin.realm().ca_fingerprint());
    let row = ApiTokenRow {
        secret_sha256: token.secret_hash(),
        label: new.label,
        scopes: super::auth::scopes_to_row(&new.scopes),
        products: products.to_row(),
        created: signed(unix_now()),
        expires: new.expires_in.map(|seconds| check_seconds(seconds, SECONDS_MAX)).transpose()?,
        revoked: None,
    };
    caller.db(&app).put_api_token(&row).await?;
    let id = token_id(&row.secret_sha256);
    tracing::info!(id, label = row.label, scopes = row.scopes, products = row.products, "API token made");
    Ok((StatusCode::CREATED, Json(MadeToken { token: token.to_secret_string(), id })))
}

fn info(row: ApiTokenRow) -> Token {
    let now = signed(unix_now());
    let scopes = super::auth::scopes_of_row(&row.scopes);
    Token {
        state: state_of(row.revoked, row.expires, now).into(),
        id: token_id(&row.secret_sha256),
        label: row.label,
        scopes: scopes.into_iter().map(Word::from).collect(),
        products: Products::of_row(&row.products).patterns(),
        created: row.created,
        expires: row.expires,
        revoked: row.revoked,
    }
}

/// Lists all API tokens, newest first.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses(
    (status = 200, body = TokenList)
), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<TokenList>, ApiError> {
    let rows = app.origin.db().api_tokens().await?;
    Ok(Json(TokenList { tokens: rows.into_iter().map(info).collect() }))
}

/// Revokes an API token and aborts its open uploads. Refuses the last token with the scope `admin`.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)), responses(
    (status = 204, description = "Revoked")
), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<StatusCode, ApiError> {
    let now = signed(unix_now());
    let rows = app.origin.db().api_tokens().await?;
    let row = rows.iter().find(|row| token_id(&row.secret_sha256) == id);
    let row = row.ok_or_else(|| ApiError::unlisted("API token of this id", "GET /v1/tokens"))?;
    if caller.db(&app).revoke_api_token(&row.secret_sha256, now).await? == RevokeToken::LastAdmin {
        let next = "first make another token with the scope admin";
        return Err(ApiError::conflict("this is the last valid token with the scope admin", next));
    }
    for upload in app.origin.db().uploads_open().await? {
        // Nobody can commit the chunks any more that the token has sent.
        if upload.row.token == id {
            let at = app.clone();
            app.detached(async move { Ok(at.origin.ingest().abort(&upload.row.id).await?) }).await?;
        }
    }
    tracing::info!(id, label = row.label, "API token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Creates a join token.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "nodes", request_body = NewJoinToken, responses(
    (status = 201, body = MadeJoinToken)
), security(("token" = ["admin"])))]
pub(super) async fn create_join(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    JsonBody(new): JsonBody<NewJoinToken>,
) -> Result<(StatusCode, Json<MadeJoinToken>), ApiError> {
    check_label(&new.label)?;
    if new.role == Role::Origin {
        return Err(ApiError::bad_request("no node can enrol as origin", "choose leaf or relay"));
    }
    let uses = new.uses.unwrap_or(1);
    if !(1..=u64::from(JOIN_USES_MAX)).contains(&uses) {
        return Err(ApiError::bad_request(
            format!("uses = {uses} is out of bounds"),
            format!("choose 1 to {JOIN_USES_MAX} nodes"),
        ));
    }
    let labels = labels_of(&new.labels)?;
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
    caller.db(&app).put_join_token(&row, &labels).await?;
    let id = join_token_id(&row.public_key);
    tracing::info!(id, role = row.role, uses, label = row.label, "join token made");
    Ok((StatusCode::CREATED, Json(MadeJoinToken { token: token.to_secret_string(), id: Some(id) })))
}

/// Lists all join tokens, newest first.
#[utoipa::path(get, path = "/v1/join-tokens", tag = "nodes", responses(
    (status = 200, body = JoinTokenList)
), security(("token" = ["view"])))]
pub(super) async fn list_join(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<JoinTokenList>, ApiError> {
    let (rows, uses) = (app.origin.db().join_tokens().await?, app.origin.db().join_token_uses().await?);
    let labels = app.origin.db().join_token_labels().await?;
    let now = signed(unix_now());
    let info = |row: JoinTokenRow| JoinTokenInfo {
        id: join_token_id(&row.public_key),
        nodes: uses.get(&row.public_key).copied().unwrap_or(0),
        labels: labels.get(&row.public_key).map(label_texts).unwrap_or_default(),
        state: match state_of(row.revoked, Some(row.expires), now) {
            TokenState::Valid if row.uses_left == 0 => JoinTokenState::UsedUp,
            TokenState::Valid => JoinTokenState::Valid,
            TokenState::Expired => JoinTokenState::Expired,
            TokenState::Revoked => JoinTokenState::Revoked,
        }
        .into(),
        label: row.label,
        role: Word::from_text(&row.role),
        uses_left: row.uses_left,
        created: row.created,
        expires: row.expires,
        revoked: row.revoked,
    };
    Ok(Json(JoinTokenList { join_tokens: rows.into_iter().map(info).collect() }))
}

/// Revokes a join token: no further node can enrol with it. Nodes that have enrolled with it stay.
#[utoipa::path(delete, path = "/v1/join-tokens/{id}", tag = "nodes", params(("id" = String, Path)), responses(
    (status = 204, description = "Revoked")
), security(("token" = ["admin"])))]
pub(super) async fn revoke_join(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<StatusCode, ApiError> {
    let rows = app.origin.db().join_tokens().await?;
    let row = rows.iter().find(|row| join_token_id(&row.public_key) == id);
    let row = row.ok_or_else(|| ApiError::unlisted("join token of this id", "GET /v1/join-tokens"))?;
    caller.db(&app).revoke_join_token(&row.public_key, signed(unix_now())).await?;
    tracing::info!(id, label = row.label, "join token revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// Describes the token that the request carries.
#[utoipa::path(get, path = "/v1/token", tag = "tokens", responses((status = 200, body = Token)),
    security(("token" = [])))]
pub(super) async fn own(caller: Caller<AnyToken>) -> Json<Token> {
    Json(info(caller.row))
}
