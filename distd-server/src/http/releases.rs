//! `/v1/products/{product}/releases`: releases of a product.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{
    BundleMetadata, NewBundleMetadata, PIN_REASON_MAX, PinRelease, Release, ReleaseList, Word,
};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::Deserialize;

use super::auth::{Caller, ToAdminister, ToPublish, ToRead};
use super::body::{JsonBody, PathParams, QueryParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{ChannelRow, HeldRelease, ReleaseRow, Unless};
use crate::ingest::CommitResult;
use crate::origin::{RemoveOrder, signed};

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, remove, withdraw, restore, pin, unpin, bundle]
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
        withdrawn: None,
        removed_at: None,
        pinned: None,
    }
}

/// Returns a release in any state.
fn shown_held(app: &App, held: HeldRelease) -> Release {
    let grace = signed(app.origin.gc_options().grace.as_secs());
    let HeldRelease { row, withdrawn, removing, pin } = held;
    let removed_at = removing.map(|since| since.saturating_add(grace));
    Release { withdrawn, removed_at, pinned: pin, ..shown(app, row) }
}

/// Which releases are shown.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Also show releases that are withdrawn.
    #[serde(default)]
    withdrawn: bool,
}

/// Order to remove a release.
#[derive(Clone, Copy, Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Delete the bytes at once, without the grace for downloads under way.
    #[serde(default)]
    now: bool,
    /// Refuse while nodes report the release as running or are pinned to it.
    #[serde(default)]
    unless_running: bool,
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
#[utoipa::path(get, path = "/v1/products/{product}/releases", tag = "releases", params(("product" = String, Path), Which), responses(
    (status = 200, body = ReleaseList)
), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(product): PathParams<Name>,
    QueryParams(which): QueryParams<Which>,
) -> Result<Json<ReleaseList>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let mut rows = app.origin.db().held_releases(Some(&product)).await?;
    rows.retain(|held| which.withdrawn || held.withdrawn.is_none());
    let channels = app.origin.db().channels().await?;
    let of = |held: HeldRelease| {
        let row = &held.row;
        let points = |channel: &&ChannelRow| channel.product == row.product && channel.version == row.version;
        let channels = channels.iter().filter(points).map(|channel| channel.channel.to_string()).collect();
        Release { channels, ..shown_held(&app, held) }
    };
    Ok(Json(ReleaseList { releases: rows.into_iter().map(of).collect() }))
}

/// Describes one release.
#[utoipa::path(get, path = "/v1/products/{product}/releases/{version}", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path), Which),
    responses((status = 200, body = Release)), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    QueryParams(which): QueryParams<Which>,
) -> Result<Json<Release>, ApiError> {
    caller.may(&product)?;
    let held = app.origin.db().held_release(&product, &version).await?;
    if let Some(held) = held.filter(|held| which.withdrawn || held.withdrawn.is_none()) {
        return Ok(Json(shown_held(&app, held)));
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

/// Order about a release.
enum Order {
    Withdraw,
    Restore,
    Remove(RemoveOrder),
}

async fn carry_out(
    app: &Arc<App>,
    caller: Caller<ToPublish>,
    (product, version): (Name, Name),
    order: Order,
) -> Result<StatusCode, ApiError> {
    caller.may(&product)?;
    products::find(app, &product).await?;
    let origin = app.origin.clone();
    let work = app.detached(async move {
        let by = caller.mover();
        let done = match order {
            Order::Withdraw => origin.withdraw_release(&product, &version, &by).await.map(|()| "withdrawn"),
            Order::Restore => {
                origin.bring_back_release(&product, &version, &by).await.map(|()| "brought back")
            }
            Order::Remove(how) => {
                origin.remove_release(&product, &version, how, &by).await.map(|()| "removed")
            }
        };
        // Not in the log line: its parts are not evaluated where the line is filtered out.
        let done = done?;
        tracing::info!(%product, %version, by = caller.row.label, "release {done}");
        Ok(())
    });
    work.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a release. The origin withdraws it, and after the grace frees the space that nothing
/// else needs.
#[utoipa::path(delete, path = "/v1/products/{product}/releases/{version}", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path), How),
    responses((status = 204, description = "Removed")), security(("token" = ["publish"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    QueryParams(how): QueryParams<How>,
) -> Result<StatusCode, ApiError> {
    let unless = if how.unless_running { Unless::Running } else { Unless::Used };
    carry_out(&app, caller, (product, version), Order::Remove(RemoveOrder { unless, now: how.now })).await
}

/// Withdraws a release: devices no longer take it. Its bytes stay, and it can be brought back.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/withdraw", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    responses((status = 204, description = "Withdrawn")), security(("token" = ["publish"])))]
pub(super) async fn withdraw(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    carry_out(&app, caller, (product, version), Order::Withdraw).await
}

/// Brings a withdrawn release back, also a removed one whose bytes are still there.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/restore", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    responses((status = 204, description = "Brought back")), security(("token" = ["publish"])))]
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    carry_out(&app, caller, (product, version), Order::Restore).await
}

/// Pins a release: it is neither removed on order nor by a policy.
#[utoipa::path(put, path = "/v1/products/{product}/releases/{version}/pin", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)), request_body = PinRelease,
    responses((status = 204, description = "Pinned")), security(("token" = ["publish"])))]
pub(super) async fn pin(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    JsonBody(PinRelease { why }): JsonBody<PinRelease>,
) -> Result<StatusCode, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    if why.len() > PIN_REASON_MAX || why.chars().any(char::is_control) {
        let next = format!("write at most {PIN_REASON_MAX} bytes on one line");
        return Err(ApiError::bad_request("the reason of the pin is too long or no plain text", next));
    }
    let now = signed(unix_now());
    let done = caller.db(&app).pin_release(&product, &version, &why, &caller.row.label, now).await?;
    if done { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::unknown_version(&product, &version)) }
}

/// Removes the pin of a release.
#[utoipa::path(delete, path = "/v1/products/{product}/releases/{version}/pin", tag = "releases",
    params(("product" = String, Path), ("version" = String, Path)),
    responses((status = 204, description = "Removed, or there was none")), security(("token" = ["publish"])))]
pub(super) async fn unpin(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    caller.db(&app).unpin_release(&product, &version, signed(unix_now())).await?;
    Ok(StatusCode::NO_CONTENT)
}
