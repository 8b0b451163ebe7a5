//! `PUT …/content`: a whole file comes in (`curl -T`), and the origin cuts it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::cut::CutParams;
use distd_core::limits::ARTIFACT_BYTES_MAX;
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use super::auth::{Caller, ToPublish};
use super::body::{At, Incoming};
use super::releases::{self, Release};
use super::{ApiError, App};
use crate::ingest::FileRequest;
use crate::origin::signed;

/// Makes a release of the body.
#[utoipa::path(put, path = "/v1/products/{product}/releases/{version}/content", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "Released", body = Release),
        (status = 200, description = "The version had these bytes already", body = Release)
    ), security(("token" = ["publish"])))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    At((product, version)): At<(Name, Name)>,
    body: Incoming<ARTIFACT_BYTES_MAX>,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    if body.announced().is_some_and(|len| len > app.free_bytes()) {
        return Err(ApiError::storage_full());
    }
    // Dropped with this future when the connection ends, and the file goes with it.
    let spooled = spool(&app, body).await?;
    let at = app.clone();
    let work = app.detached(async move {
        let now = signed(unix_now());
        let (row, _) = at.origin.db().ensure_product(&product, CutParams::default(), now).await?;
        let request = FileRequest { product, version, cut: row.cut, by: caller.label };
        let committed = at.origin.ingest().ingest_file(&request, &spooled, now).await?;
        remove(spooled).await;
        releases::publish(&at, committed).await
    });
    work.await
}

async fn spool(app: &App, mut body: Incoming<ARTIFACT_BYTES_MAX>) -> Result<TempPath, ApiError> {
    let (file, path) = create(app.origin.spool()).await.map_err(ApiError::internal)?;
    let mut file = tokio::fs::File::from_std(file);
    while let Some(piece) = body.next().await? {
        app.metrics.received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        file.write_all(&piece).await.map_err(ApiError::internal)?;
    }
    file.flush().await.map_err(ApiError::internal)?;
    Ok(path)
}

async fn create(directory: &Path) -> std::io::Result<(std::fs::File, TempPath)> {
    let directory = directory.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        tempfile::Builder::new().prefix("upload-").tempfile_in(directory).map(|file| file.into_parts())
    });
    made.await.expect("making a file does not panic")
}

/// Unlinking gigabytes takes a while.
async fn remove(spooled: TempPath) {
    let removed = tokio::task::spawn_blocking(move || spooled.close());
    if let Err(error) = removed.await.expect("removing a file does not panic") {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not remove a spooled file");
    }
}
