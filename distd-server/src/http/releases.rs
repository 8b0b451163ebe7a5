//! `/v1/products/{product}/releases`: releases of a product.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{BundleMetadata, NewBundleMetadata, Release, ReleaseList, Word};
use distd_core::names::Name;

use super::auth::{Caller, ToAdminister, ToPublish, ToRead};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{ChannelRow, ReleaseRow};
use crate::ingest::CommitResult;

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, withdraw, bundle]
}

/// Returns a release as the API shows it, without its channels.
pub(super) fn shown(app: &App, row: ReleaseRow) -> Release {
    Release {
        channels: Vec::new(),
        damaged: app.origin.ingest().is_damaged(&row.manifest),
        product: row.product.to_string(),
        version: row.version.to_string(),
        kind: Word::from_text(&row.kind),
        manifest: row.manifest,
        blake3: row.blake3,
        bytes: row.bytes,
        chunks: row.chunk_count,
        created: row.created,
        sequence: Some(row.sequence),
    }
}

/// Publishes a committed release and returns the response that describes it.
pub(super) async fn publish(
    app: &App,
    committed: CommitResult,
) -> Result<(StatusCode, Json<Release>), ApiError> {
    app.origin.publish_release(&committed).await?;
    let status = if committed.already_existed { StatusCode::OK } else { StatusCode::CREATED };
    if !committed.already_existed {
        app.metrics.releases.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            product = %committed.release.product,
            version = %committed.release.version,
            bytes = committed.release.bytes,
            new_chunks = committed.new_chunks,
            by = committed.release.created_by,
            "released"
        );
    }
    Ok((status, Json(shown(app, committed.release))))
}

/// Lists a product's releases, newest first.
#[utoipa::path(get, path = "/v1/products/{product}/releases", tag = "releases", params(("product" = String, Path)), responses(
    (status = 200, body = ReleaseList)
), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(product): PathParams<Name>,
) -> Result<Json<ReleaseList>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let rows = app.origin.db().releases(&product).await?;
    let channels = app.origin.db().channels().await?;
    let of = |row: ReleaseRow| {
        let points = |channel: &&ChannelRow| channel.product == row.product && channel.version == row.version;
        let channels = channels.iter().filter(points).map(|channel| channel.channel.to_string()).collect();
        Release { channels, ..shown(&app, row) }
    };
    Ok(Json(ReleaseList { releases: rows.into_iter().map(of).collect() }))
}

/// Describes one release.
#[utoipa::path(get, path = "/v1/products/{product}/releases/{version}", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = Release)), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams((product, version)): PathParams<(Name, Name)>,
) -> Result<Json<Release>, ApiError> {
    caller.may(&product)?;
    if let Some(row) = app.origin.db().release(&product, &version).await? {
        return Ok(Json(shown(&app, row)));
    }
    products::find(&app, &product).await?;
    Err(ApiError::unknown_version(&product, &version))
}

/// Signs metadata for a bundle with a release, valid for longer than that which devices poll.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/bundle", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)), request_body = NewBundleMetadata,
    responses((status = 200, body = BundleMetadata)), security(("token" = ["admin"])))]
pub(super) async fn bundle(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    JsonBody(wanted): JsonBody<NewBundleMetadata>,
) -> Result<Json<BundleMetadata>, ApiError> {
    products::find(&app, &product).await?;
    let validity = Duration::from_secs(wanted.seconds);
    let made = app.origin.sign_for_bundle(&product, &version, validity, &caller.mover()).await?;
    tracing::info!(%product, %version, until = made.until, by = caller.row.label, "metadata signed for a bundle");
    let text = |json: &[u8]| String::from_utf8_lossy(json).into_owned();
    Ok(Json(BundleMetadata {
        snapshot_name: made.metadata.snapshot_name,
        snapshot: text(&made.metadata.snapshot),
        timestamp: text(&made.metadata.timestamp),
        capability: hex::encode(&made.capability),
        valid_until: made.until,
    }))
}

/// Withdraws a release. The origin stops publishing it and frees the space that nothing else needs.
#[utoipa::path(delete, path = "/v1/products/{product}/releases/{version}", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    responses((status = 204, description = "Withdrawn")), security(("token" = ["publish"])))]
pub(super) async fn withdraw(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let at = app.clone();
    let work = app.detached(async move {
        at.origin.withdraw_release(&product, &version, &caller.mover()).await?;
        tracing::info!(%product, %version, by = caller.row.label, "release withdrawn");
        Ok(())
    });
    work.await?;
    Ok(StatusCode::NO_CONTENT)
}
