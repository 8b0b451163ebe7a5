//! `/tuf/`: TUF metadata and targets. No token is needed: the files are signed, and devices verify
//! them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::body::PathParams;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::tuf::{MetadataStore, is_served_name};

pub(super) fn routes() -> Vec<Route> {
    routes![file]
}

/// Sends a file of the TUF repository.
#[utoipa::path(get, path = "/tuf/{*path}", tag = "tuf", params(("path" = String, Path, description = "May contain slashes")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")))]
pub(super) async fn file(
    State(app): State<Arc<App>>,
    PathParams(path): PathParams<String>,
) -> Result<Response, ApiError> {
    let none = || ApiError::not_found("file of this name in the TUF repository");
    if !is_served_name(&path) {
        return Err(none());
    }
    let bytes = app.origin.metadata().get(&path).await?.ok_or_else(none)?;
    let kind = match path.strip_prefix("targets/") {
        Some(_) => "application/octet-stream",
        None => "application/json",
    };
    // Every name contains a version or a hash, except timestamp.json, which tells the newest
    // version.
    let cached = if path == "timestamp.json" { "no-cache" } else { "public, max-age=31536000, immutable" };
    Ok(([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cached)], bytes).into_response())
}
