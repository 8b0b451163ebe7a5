//! `/v1/nodes`, and enrolment over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_peer::trust::enroll::ENROLL_BYTES_MAX;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToAdminister};
use super::body::{At, Incoming, Perhaps};
use super::tokens::join_token_id;
use super::{ApiError, App};

/// How long the body of an enrolment may take: it needs no token, so it must not hold a connection for long.
const ENROLL: Duration = Duration::from_secs(10);

/// A node.
#[derive(Serialize, ToSchema)]
pub(super) struct Node {
    /// 32 hexadecimal digits.
    id: String,
    /// `leaf` or `relay`.
    role: String,
    label: String,
    /// When it first enrolled, unix seconds.
    enrolled: i64,
    /// End of its certificate, unix seconds.
    cert_expires: i64,
    /// When it was revoked, unix seconds; null unless it was.
    revoked: Option<i64>,
}

/// Nodes.
#[derive(Serialize, ToSchema)]
pub(super) struct NodeList {
    nodes: Vec<Node>,
}

/// Every node, by time of enrolment.
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
        role: row.role,
        label: row.label,
        enrolled: row.enrolled,
        cert_expires: row.cert_expires,
        revoked: row.revoked,
    });
    Ok(Json(NodeList { nodes: nodes.collect() }))
}

/// What else is to be revoked.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeNode {
    /// The join tokens it came by, too: whoever has one could come back with a new key.
    #[serde(default)]
    tokens: bool,
}

/// What was revoked.
#[derive(Serialize, ToSchema)]
pub(super) struct RevokedNode {
    /// Ids of join tokens.
    join_tokens: Vec<String>,
}

/// Revokes a node: it is served nothing and gets no further certificate.
#[utoipa::path(post, path = "/v1/nodes/{id}/revoke", tag = "nodes", params(("id" = String, Path)),
    request_body = Option<RevokeNode>, responses(
        (status = 204, description = "Revoked"),
        (status = 200, description = "Revoked, with these join tokens", body = RevokedNode)
    ), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    _: Caller<ToAdminister>,
    At(id): At<String>,
    Perhaps(also): Perhaps<RevokeNode>,
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
    tracing::info!(node = id, ?join_tokens, "node revoked with the join tokens it came by");
    Ok(Json(RevokedNode { join_tokens }).into_response())
}

/// Enrolment or renewal: an EnrollMessage in, an EnrollReply out. A refusal is a reply.
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
