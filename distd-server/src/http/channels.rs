//! `/v1/products/{product}/channels`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToMoveChannels, ToRead};
use super::body::{At, Given};
use super::{ApiError, App, products};
use crate::db::{ChannelRow, ReleaseRow};

/// Where a channel is to point.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Move {
    /// A released version of the product.
    version: String,
}

/// A channel.
#[derive(Serialize, ToSchema)]
pub(super) struct Channel {
    product: String,
    channel: String,
    /// Where it points.
    version: String,
    /// Manifest of that release, 64 hexadecimal digits.
    manifest: String,
    /// Grows by one with each change.
    counter: u64,
    /// When it last changed, unix seconds.
    updated: i64,
}

/// Channels.
#[derive(Serialize, ToSchema)]
pub(super) struct ChannelList {
    channels: Vec<Channel>,
}

fn channel((row, release): (ChannelRow, ReleaseRow)) -> Channel {
    Channel {
        product: row.product.to_string(),
        channel: row.channel.to_string(),
        version: row.version.to_string(),
        manifest: release.manifest.to_string(),
        counter: row.counter,
        updated: row.updated,
    }
}

async fn with_release(app: &App, row: ChannelRow) -> Result<Channel, ApiError> {
    let release = app.origin.db().release(&row.product, &row.version).await?;
    let release = release.ok_or_else(|| ApiError::internal("a channel points to no release"))?;
    Ok(channel((row, release)))
}

/// A product's channels.
#[utoipa::path(get, path = "/v1/products/{product}/channels", tag = "channels", params(("product" = String, Path)),
    responses((status = 200, body = ChannelList)), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    At(product): At<Name>,
) -> Result<Json<ChannelList>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let mut channels = Vec::new();
    for row in app.origin.db().channels().await?.into_iter().filter(|row| row.product == product) {
        channels.push(with_release(&app, row).await?);
    }
    Ok(Json(ChannelList { channels }))
}

/// One channel.
#[utoipa::path(get, path = "/v1/products/{product}/channels/{channel}", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path)),
    responses((status = 200, body = Channel)), security(("token" = ["read"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    At((product, name)): At<(Name, Name)>,
) -> Result<Json<Channel>, ApiError> {
    caller.may(&product)?;
    match app.origin.db().channel(&product, &name).await? {
        Some(row) => Ok(Json(with_release(&app, row).await?)),
        None => {
            products::find(&app, &product).await?;
            Err(ApiError::unknown_channel(&product, &name))
        }
    }
}

/// Points a channel to a release; makes the channel when it is not there.
#[utoipa::path(put, path = "/v1/products/{product}/channels/{channel}", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path)), request_body = Move,
    responses((status = 200, body = Channel)), security(("token" = ["channel"])))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller<ToMoveChannels>,
    At((product, name)): At<(Name, Name)>,
    Given(wanted): Given<Move>,
) -> Result<Json<Channel>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let version: Name =
        wanted.version.parse().map_err(|_| ApiError::unknown_version(&product, &wanted.version))?;
    let at = app.clone();
    let moved = app.detached(async move {
        let moved = at.origin.set_channel(&product, &name, &version).await?;
        let counter = moved.0.counter;
        tracing::info!(%product, channel = %name, %version, counter, by = caller.row.label, "channel set");
        Ok(moved)
    });
    Ok(Json(channel(moved.await?)))
}

/// Removes a channel: devices that follow it are told that there is none.
#[utoipa::path(delete, path = "/v1/products/{product}/channels/{channel}", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["channel"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToMoveChannels>,
    At((product, name)): At<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let at = app.clone();
    let work = app.detached(async move {
        if !at.origin.remove_channel(&product, &name).await? {
            return Err(ApiError::unknown_channel(&product, &name));
        }
        tracing::info!(%product, channel = %name, by = caller.row.label, "channel removed");
        Ok(())
    });
    work.await?;
    Ok(StatusCode::NO_CONTENT)
}
