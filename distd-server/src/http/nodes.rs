//! `/v1/nodes`: nodes of the realm, and enrolment over HTTPS.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use distd_core::api::{
    ChangeLabels, Node, NodeDetail, NodeLabels, NodeList, NodeRunning, Pin, RevokeNode, RevokedNode, Word,
};
use distd_core::bounds::{LABELS_MAX, PINS_MAX};
use distd_core::fleet::{EVERYONE, LabelError, LabelKey, LabelMap, Labels, assignable_key};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use distd_peer::trust::enroll::ENROLL_BYTES_MAX;

use super::auth::{Caller, ToAdminister, ToView};
use super::body::{Incoming, JsonBody, OptionalJsonBody, PathParams};
use super::grants::grant_info;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::{self, GrantRow, MemberRow, NodeRow, PinNode, ReportRow, join_token_id};

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, label, pin, unpin, revoke, enroll]
}

/// Longest time for the body of an enrolment. The request needs no token, so it may hold its
/// connection only briefly.
const ENROLL: Duration = Duration::from_secs(10);

/// Error for a node that does not exist.
fn unknown() -> ApiError {
    ApiError::unlisted("node of this id", "GET /v1/nodes")
}

/// Error for something that is no label.
fn no_label(error: LabelError) -> ApiError {
    ApiError::bad_request(error.to_string(), "correct the label; docs/fleet.md describes labels")
}

/// Reads labels of a request.
pub(super) fn labels_of(texts: &BTreeMap<String, String>) -> Result<LabelMap, ApiError> {
    if texts.len() > LABELS_MAX {
        return Err(too_many_labels());
    }
    let label = |(key, value): (&String, &String)| {
        Ok((assignable_key(key).map_err(no_label)?, value.parse().map_err(no_label)?))
    };
    texts.iter().map(label).collect()
}

fn too_many_labels() -> ApiError {
    let message = format!("a node or token has at most {LABELS_MAX} labels of each source");
    ApiError::bad_request(message, "leave some labels out, or remove others first")
}

fn node(row: NodeRow, labels: &Labels, report: Option<ReportRow>) -> Node {
    let reported = report.as_ref().map(|report| report.received);
    let running = report.into_iter().flat_map(|report| report.running).map(|runs| NodeRunning {
        product: runs.product.to_string(),
        channel: runs.channel.to_string(),
        version: runs.version.map(|version| version.to_string()),
        held: runs.held.map(|held| held.held.to_string()),
    });
    Node {
        id: row.id,
        role: Word::from_text(&row.role),
        label: row.label,
        enrolled: row.enrolled,
        cert_expires: row.cert_expires,
        revoked: row.revoked,
        labels: labels.into(),
        reported,
        running: running.collect(),
        ddi: row.public_key.starts_with(db::DDI_KEY_PREFIX),
    }
}

/// Lists all nodes by time of enrolment.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses(
    (status = 200, body = NodeList)
), security(("token" = ["view"])))]
pub(super) async fn list(State(app): State<Arc<App>>, _: Caller<ToView>) -> Result<Json<NodeList>, ApiError> {
    let rows = app.origin.db().nodes().await?;
    let mut labels = app.origin.db().labels().await?;
    let mut reports = app.origin.db().reports(None).await?;
    let nodes = rows.into_iter().map(|row| {
        let labels = labels.remove(&row.id).unwrap_or_default();
        let report = reports.remove(&row.id);
        node(row, &labels, report)
    });
    Ok(Json(NodeList { nodes: nodes.collect() }))
}

/// Describes one node: its labels by source, its groups, and the grants that give it rights.
#[utoipa::path(get, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = NodeDetail)), security(("token" = ["view"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    PathParams(id): PathParams<String>,
) -> Result<Json<NodeDetail>, ApiError> {
    Ok(Json(detail(&app, &id).await?))
}

/// A node with its labels by source, its groups, grants and pins.
pub(super) async fn detail(app: &App, id: &str) -> Result<NodeDetail, ApiError> {
    let db = app.origin.db();
    let row = db.node(id).await?.ok_or_else(unknown)?;
    let MemberRow { member, revoked, .. } = db.member(id).await?.ok_or_else(unknown)?;
    let selectors = db.selectors().await?;
    let listed = member.listed.iter().chain(selectors.keys()).filter(|name| member.is_in(name, &selectors));
    let groups: BTreeSet<String> = listed.map(ToString::to_string).collect();
    let now = unix_now();
    let gives = |row: &GrantRow| {
        revoked.is_none()
            && row.grant.until.is_none_or(|end| now < end)
            && member.is_granted_as(&row.grant.group, &selectors)
    };
    let grants = db.grants().await?.into_iter().filter(gives).map(|row| grant_info(row, now));
    Ok(NodeDetail {
        node: node(row, &member.labels, db.reports(Some(id)).await?.remove(id)),
        groups: [EVERYONE.to_owned()].into_iter().chain(groups).collect(),
        grants: grants.collect(),
        pins: db
            .pins_of(id)
            .await?
            .into_iter()
            .map(|(product, version)| (product.to_string(), version.to_string()))
            .collect(),
    })
}

/// Sets and removes labels that an operator gave a node. Labels of its join token and its facts
/// stay as they are.
#[utoipa::path(post, path = "/v1/nodes/{id}/labels", tag = "nodes", params(("id" = String, Path)),
    request_body = ChangeLabels, responses((status = 200, body = NodeLabels)),
    security(("token" = ["admin"])))]
pub(super) async fn label(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
    JsonBody(change): JsonBody<ChangeLabels>,
) -> Result<Json<NodeLabels>, ApiError> {
    let set = labels_of(&change.set)?;
    if change.remove.len() > LABELS_MAX {
        return Err(too_many_labels());
    }
    let remove: Result<BTreeSet<LabelKey>, _> = change.remove.iter().map(|key| assignable_key(key)).collect();
    let remove = remove.map_err(no_label)?;
    if let Some(key) = remove.iter().find(|key| set.contains_key(key)) {
        let message = format!("the label {key} is both set and removed");
        return Err(ApiError::bad_request(message, "name each key once"));
    }
    match caller.db(&app).change_labels(&id, &set, &remove).await? {
        db::ChangeLabels::UnknownNode => Err(unknown()),
        db::ChangeLabels::TooMany => Err(too_many_labels()),
        db::ChangeLabels::Changed(labels) => {
            tracing::info!(node = id, set = ?change.set, remove = ?change.remove, by = caller.row.label, "node labelled");
            Ok(Json((&labels).into()))
        }
    }
}

/// Pins a node to a version of a product: of the product's channels it installs that version and no
/// other.
#[utoipa::path(put, path = "/v1/nodes/{id}/pins/{product}", tag = "nodes",
    params(("id" = String, Path), ("product" = String, Path)), request_body = Pin,
    responses((status = 204, description = "Pinned")), security(("token" = ["admin"])))]
pub(super) async fn pin(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((id, product)): PathParams<(String, Name)>,
    JsonBody(wanted): JsonBody<Pin>,
) -> Result<StatusCode, ApiError> {
    let version: Name =
        wanted.version.parse().map_err(|_| ApiError::unknown_version(&product, &wanted.version))?;
    match caller.db(&app).pin_node(&id, &product, &version).await? {
        PinNode::Pinned => {
            tracing::info!(node = id, %product, %version, by = caller.row.label, "node pinned");
            Ok(StatusCode::NO_CONTENT)
        }
        PinNode::UnknownNode => Err(unknown()),
        PinNode::UnknownRelease => Err(ApiError::unknown_version(&product, &version)),
        PinNode::TooMany => Err(ApiError::conflict(
            format!("a node can be pinned to versions of {PINS_MAX} products"),
            "remove other pins of the node first",
        )),
    }
}

/// Removes the pin of a node to a version of a product.
#[utoipa::path(delete, path = "/v1/nodes/{id}/pins/{product}", tag = "nodes",
    params(("id" = String, Path), ("product" = String, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["admin"])))]
pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((id, product)): PathParams<(String, Name)>,
) -> Result<StatusCode, ApiError> {
    if !caller.db(&app).unpin_node(&id, &product).await? {
        return Err(ApiError::unlisted(&format!("pin of this node to {product}"), "GET /v1/nodes/{id}"));
    }
    tracing::info!(node = id, %product, by = caller.row.label, "pin removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Revokes a node. The origin then serves it nothing and gives it no further certificate.
#[utoipa::path(post, path = "/v1/nodes/{id}/revoke", tag = "nodes", params(("id" = String, Path)),
    request_body = Option<RevokeNode>, responses(
        (status = 204, description = "Revoked"),
        (status = 200, description = "Revoked, with these join tokens", body = RevokedNode)
    ), security(("token" = ["admin"])))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<String>,
    OptionalJsonBody(also): OptionalJsonBody<RevokeNode>,
) -> Result<Response, ApiError> {
    if !also.tokens {
        if !app.origin.revoke_node(&id, &caller.mover()).await? {
            return Err(unknown());
        }
        tracing::info!(node = id, "node revoked");
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let tokens = app.origin.revoke_node_and_tokens(&id, &caller.mover()).await?.ok_or_else(unknown)?;
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
