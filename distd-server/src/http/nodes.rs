//! `/v1/nodes`: nodes of the realm, and enrolment over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_core::api::{Node, NodeList, RevokeNode, RevokedNode, Word};
use distd_peer::trust::enroll::ENROLL_BYTES_MAX;

use super::auth::{Caller, ToAdminister};
use super::body::{Incoming, OptionalJsonBody, PathParams};
use super::route::{Route, routes};
use super::tokens::join_token_id;
use super::{ApiError, App};

pub(super) fn routes() -> Vec<Route> {
    routes![list, revoke, enroll]
}

/// Longest time for the body of an enrolment. The request needs no token, so it may hold its
/// connection only briefly.
const ENROLL: Duration = Duration::from_secs(10);

/// Lists all nodes by time of enrolment.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses(
    (status = 200, body = NodeList)
), security(("token" = ["admin"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
) -> Result<Json<NodeList>, ApiError> {
    let rows = app.origin.db().nodes().await?;
    let nodes = rows.into_iter().map(|row| Node {
        id: row.id,
        role: Word::from_text(&row.role),
        label: row.label,
        enrolled: row.enrolled,
        cert_expires: row.cert_expires,
        revoked: row.revoked,
    });
    Ok(Json(NodeList { nodes: nodes.collect() }))
}

/// Revokes a node. The origin then serves it nothing and gives it no further certificate.
#[utoipa::path(post, path = "/v1/nodes/{id}/revoke", tag = "nodes", params(("id" = String, Path)),
    request_body = Option<RevokeNode>, responses(
        (status = 204, description = "Revoked"),
        (status = 200, description = "Revoked, with these join tokens", body = RevokedNode)
    ), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
    OptionalJsonBody(also): OptionalJsonBody<RevokeNode>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::unlisted("node of this id", "GET /v1/nodes");
    if !also.tokens {
        if !app.origin.revoke_node(&id).await? {
            return Err(unknown());
        }
        tracing::info!(node = id, "node revoked");
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let tokens = app.origin.revoke_node_and_tokens(&id).await?.ok_or_else(unknown)?;
    let join_tokens: Vec<String> = tokens.iter().map(|key| join_token_id(key)).collect();
    tracing::info!(node = id, ?join_tokens, "node and its join tokens revoked");
    Ok(Json(RevokedNode { join_tokens }).into_response())
}

/// Enrols a node or renews its certificate. The body is an EnrollMessage and the answer an
/// EnrollReply; a refusal is an EnrollReply, too.
#[utoipa::path(post, path = "/v1/enroll", tag = "nodes",
    request_body(content = Vec<u8>, content_type = "application/msgpack"),
    responses((status = 200, body = Vec<u8>, content_type = "application/msgpack")))]
pub(super) async fn enroll(
    State(app): State<Arc<App>>,
    body: Incoming<{ ENROLL_BYTES_MAX as u64 }>,
) -> Result<impl IntoResponse, ApiError> {
    let reply = app.origin.enroll(&body.within(ENROLL).whole().await?).await?;
    Ok(([(header::CONTENT_TYPE, "application/msgpack")], reply))
}
