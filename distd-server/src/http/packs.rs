//! `/v1/packs`: packs as immutable objects with ranges, for caches and CDNs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::auth::{Caller, ToRead};
use super::body::PathParams;
use super::route::{Route, routes};
use super::{ApiError, App, objects};
use crate::store::pack::object_name;

pub(super) fn routes() -> Vec<Route> {
    routes![show]
}

/// Sends a pack or a range of it.
#[utoipa::path(get, path = "/v1/packs/{name}", tag = "objects",
    params(("name" = String, Path, description = "32 hexadecimal digits"), ("Range" = Option<String>, Header)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 416, description = "The range begins after the end of the pack")
    ), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(name): PathParams<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let none = || ApiError::not_found("pack of this name");
    let mut id = [0; 16];
    hex::decode_to_slice(&name, &mut id).map_err(|_| none())?;
    let object = object_name(id);
    let db = app.origin.db();
    let pack = db.pack_of(&object).await?.ok_or_else(none)?;
    if !caller.products.are_all() {
        // A token for some products may read a pack only if it may see every chunk in it. A pack
        // comes from one upload, so all of its chunks are in releases of at least one product. A
        // pack of an open upload has no numbered chunks yet.
        let chunks = db.pack_chunks(pack).await?;
        if chunks.is_empty() || !app.origin.ingest().may_see(&caller.products, &chunks).await? {
            return Err(none());
        }
    }
    let etag = format!("\"{}\"", hex::encode(id));
    let store = app.origin.ingest().store();
    let (response, bytes) = objects::part(store, object, &etag, &headers).await?.ok_or_else(none)?;
    app.metrics.pack_bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    Ok(response)
}
