//! `/v1/ddi/tokens`: target tokens and gateway tokens. A token is shown once; the origin keeps its
//! hash alone.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use distd_core::NodeId;
use distd_core::api::{DdiToken, DdiTokenList, MadeDdiToken, NewDdiToken, label_texts};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::random;
use distd_peer::trust::token::sha256;

use super::auth::{CONTROLLER_BYTES_MAX, is_controller};
use crate::db::{DdiTokenRow, PutDdiToken};
use crate::http::auth::{Caller, ToAdminister, ToView};
use crate::http::body::{JsonBody, PathParams};
use crate::http::nodes::labels_of;
use crate::http::route::{Route, routes};
use crate::http::tokens::{SECONDS_MAX, check_label, check_seconds, state_of};
use crate::http::{ApiError, App};
use crate::origin::signed;

pub(in crate::http) fn routes() -> Vec<Route> {
    routes![create, list, revoke]
}

/// Most devices that one gateway token lets in.
const ADMITS_MAX: u64 = 1_000_000;

fn channel_name(text: &str) -> Result<Name, ApiError> {
    text.parse().map_err(|e| ApiError::bad_request(format!("{text:?} is no name: {e}"), "correct the name"))
}

/// Creates a token for devices whose update client speaks hawkBit's DDI: for the one device
/// `target`, or as a gateway token for the devices of a channel.
#[utoipa::path(post, path = "/v1/ddi/tokens", tag = "ddi", request_body = NewDdiToken, responses(
    (status = 201, body = MadeDdiToken)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    JsonBody(new): JsonBody<NewDdiToken>,
) -> Result<(StatusCode, Json<MadeDdiToken>), ApiError> {
    check_label(&new.label)?;
    if new.target.as_ref().is_some_and(|target| !is_controller(target)) {
        return Err(ApiError::bad_request(
            "the target is no id of a device",
            format!("choose 1 to {CONTROLLER_BYTES_MAX} characters of A-Z a-z 0-9 . _ : @ + -"),
        ));
    }
    let admits = new.admits.unwrap_or(0);
    if admits > ADMITS_MAX || (new.target.is_some() && admits > 0) {
        return Err(ApiError::bad_request(
            format!("admits = {admits} is out of bounds"),
            format!("choose at most {ADMITS_MAX} for a gateway token, and none for a target token"),
        ));
    }
    let secret = URL_SAFE_NO_PAD.encode(random::bytes::<32>());
    let row = DdiTokenRow {
        secret_sha256: sha256(secret.as_bytes()),
        controller: new.target,
        product: channel_name(&new.product)?,
        channel: channel_name(&new.channel)?,
        label: new.label,
        labels: labels_of(&new.labels)?,
        admits,
        created: signed(unix_now()),
        expires: new.expires_in.map(|seconds| check_seconds(seconds, SECONDS_MAX)).transpose()?,
        revoked: None,
    };
    let node = NodeId(random::bytes());
    let device = match caller.db(&app).put_ddi_token(&row, &node).await? {
        PutDdiToken::Made(device) => device,
        PutDdiToken::UnknownChannel => return Err(ApiError::unknown_channel(&row.product, &row.channel)),
    };
    let id = row.id();
    tracing::info!(id, target = row.controller, admits, label = row.label, "DDI token made");
    let node = device.map(|device| device.node.to_string());
    Ok((StatusCode::CREATED, Json(MadeDdiToken { token: secret, id, node })))
}

fn info(row: DdiTokenRow) -> DdiToken {
    DdiToken {
        state: state_of(row.revoked, row.expires, signed(unix_now())).into(),
        id: row.id(),
        target: row.controller,
        product: row.product.to_string(),
        channel: row.channel.to_string(),
        label: row.label,
        labels: label_texts(&row.labels),
        admits: row.admits,
        created: row.created,
        expires: row.expires,
        revoked: row.revoked,
    }
}

/// Lists all tokens of DDI devices, newest first.
#[utoipa::path(get, path = "/v1/ddi/tokens", tag = "ddi", responses(
    (status = 200, body = DdiTokenList)
), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<DdiTokenList>, ApiError> {
    let rows = app.origin.db().ddi_tokens().await?;
    Ok(Json(DdiTokenList { tokens: rows.into_iter().map(info).collect() }))
}

/// Revokes a token of DDI devices. The nodes of its devices stay; revoke them too if the devices
/// are lost.
#[utoipa::path(delete, path = "/v1/ddi/tokens/{id}", tag = "ddi", params(("id" = String, Path)), responses(
    (status = 204, description = "Revoked")
), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
) -> Result<StatusCode, ApiError> {
    let rows = app.origin.db().ddi_tokens().await?;
    let row = rows.iter().find(|row| row.id() == id);
    let row = row.ok_or_else(|| ApiError::unlisted("DDI token of this id", "GET /v1/ddi/tokens"))?;
    caller.db(&app).revoke_ddi_token(&row.secret_sha256, signed(unix_now())).await?;
    tracing::info!(id, label = row.label, "DDI token revoked");
    Ok(StatusCode::NO_CONTENT)
}
