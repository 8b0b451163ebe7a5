//! `PUT …/content`: upload of a whole file (`curl -T`), which the origin cuts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::Release;
use distd_core::bounds::ARTIFACT_BYTES_MAX;
use distd_core::cut::CutParams;
use distd_core::names::Name;
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToPublish};
use super::body::{Incoming, PathParams};
use super::releases;
use super::route::{Route, routes};
use super::spool::Use;
use super::{ApiError, App};
use crate::ingest::{FileHandle, FileRequest};
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![put]
}

/// Makes a release of the file in the body.
#[utoipa::path(put, path = "/v1/products/{product}/releases/{version}/content", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "Released", body = Release),
        (status = 200, description = "The version was already released with these bytes", body = Release)
    ), security(("token" = ["publish"])))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    body: Incoming<ARTIFACT_BYTES_MAX>,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    caller.may(&product)?;
    let bytes_max = app.origin.ingest().limits().artifact_bytes_max;
    if body.announced().is_some_and(|len| len > bytes_max) {
        return Err(ApiError::too_large(bytes_max));
    }
    if let Some(bytes) = body.announced()
        && app.origin.db().release(&product, &version).await?.is_none()
    {
        app.origin.ingest().check_quotas(&product, &caller.token, 0, bytes).await?;
    }
    // If the connection ends, this future is dropped, and the file with it.
    let spooled = app.spool(&caller.token, body, Use::File).await?;
    let at = app.clone();
    let work = app.detached(async move {
        // The bytes are here: a push that breaks off must not end a removal that can be undone.
        at.origin.make_way(&product, &version).await?;
        let now = signed(unix_now());
        let (row, _) = caller.db(&at).ensure_product(&product, CutParams::default(), now).await?;
        let request = FileRequest { product, version, cut: row.cut, by: caller.publisher() };
        let file =
            spooled.file().ok_or_else(|| ApiError::internal("the body of a file upload is not in a file"))?;
        let file = file.try_clone().and_then(FileHandle::of).map_err(ApiError::internal)?;
        let committed = at.origin.ingest().ingest_file(&request, file, now).await?;
        drop(spooled);
        releases::publish(&at, committed).await
    });
    work.await
}
