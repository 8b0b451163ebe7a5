//! `/v1/manifests`: manifests of releases and patch sets, whole or by node.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use distd_core::{ManifestId, NodeHash};

use super::auth::{Caller, ToRead};
use super::body::PathParams;
use super::route::{Route, routes};
use super::{ApiError, App, objects};
use crate::ingest::manifest_object;

pub(super) fn routes() -> Vec<Route> {
    routes![show, node]
}

const MSGPACK: &str = "application/msgpack";

fn unknown(id: &ManifestId) -> ApiError {
    ApiError::unknown_manifest(format!("no release has the manifest {id}"))
}

fn parse(text: &str) -> Result<ManifestId, ApiError> {
    text.parse().map_err(|e| {
        ApiError::bad_request(
            format!("{text:?} is not a manifest id: {e}"),
            "take the manifest's id from a release",
        )
    })
}

/// Refuses a manifest unless a release or patch set of the token's products names it. The manifest
/// of an uncommitted upload is visible to nobody. A manifest of another product is answered as if
/// it did not exist.
async fn released(app: &App, caller: &Caller<ToRead>, id: &ManifestId) -> Result<(), ApiError> {
    let products = app.origin.db().products_of_manifest(id).await?;
    let may = products.iter().any(|product| caller.products.has(product));
    if may { Ok(()) } else { Err(unknown(id)) }
}

/// Sends a manifest as one file.
#[utoipa::path(get, path = "/v1/manifests/{manifest}", tag = "objects", params(("manifest" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/msgpack")), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(manifest): PathParams<String>,
) -> Result<Response, ApiError> {
    let id = parse(&manifest)?;
    released(&app, &caller, &id).await?;
    let found = objects::whole(app.origin.ingest().store(), manifest_object(&id), MSGPACK).await?;
    found.ok_or_else(|| ApiError::internal(format!("manifest {id} is missing from the store")))
}

/// Sends one node of a manifest; the root is a node, too.
#[utoipa::path(get, path = "/v1/manifests/{manifest}/nodes/{node}", tag = "objects",
    params(("manifest" = String, Path), ("node" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/msgpack")), security(("token" = ["read"])))]
pub(super) async fn node(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams((manifest, node)): PathParams<(String, String)>,
) -> Result<Response, ApiError> {
    let id = parse(&manifest)?;
    let hash: NodeHash = node.parse().map_err(|e| {
        ApiError::bad_request(
            format!("{node:?} is not a node hash: {e}"),
            "take the node's hash from its parent node",
        )
    })?;
    released(&app, &caller, &id).await?;
    let manifest = app.manifest(id).await?;
    let bytes = if hash.as_bytes() == id.as_bytes() {
        Some(manifest.root_bytes().clone())
    } else {
        manifest.node(&hash).cloned()
    };
    let bytes = bytes.ok_or_else(|| ApiError::not_found(&format!("node {hash} in manifest {id}")))?;
    let cached = "private, max-age=31536000, immutable";
    Ok(([(header::CONTENT_TYPE, MSGPACK), (header::CACHE_CONTROL, cached)], bytes).into_response())
}
