//! `/v1/products/{product}/channels`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToMoveChannels, ToRead};
use super::body::{Asked, At, Given};
use super::{ApiError, App, products};
use crate::db::{ChannelMove, ChannelRow, MoveRow, ReleaseRow};

/// Release to which a channel is to point.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Move {
    /// Released version of the product.
    version: String,
    /// Whether devices that have a later release are to go back to this one. Needs the scope
    /// `downgrade`.
    #[serde(default)]
    downgrade: bool,
}

/// Page of a channel's history.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only changes with a lower id than this.
    before: Option<u64>,
    /// Largest number of changes, 1 to 1000; 100 when absent.
    limit: Option<u32>,
}

/// Number of changes in one answer if the caller gives no limit.
const PAGE: u32 = 100;
/// Largest limit that a caller may give.
const PAGE_MAX: u32 = 1000;

/// One change of a channel.
#[derive(Serialize, ToSchema)]
pub(super) struct ChannelChange {
    /// Id of the change; each change has a higher one than the changes before it.
    id: u64,
    /// Time of the change, unix seconds.
    at: i64,
    /// Version to which the channel pointed before; null if the change created the channel.
    from: Option<String>,
    /// Version to which the channel points since; null if the change removed the channel.
    to: Option<String>,
    /// Whether the change ordered devices to go back to `to`.
    downgrade: bool,
    /// Highest sequence from which devices go back; null if no downgrade was ordered.
    downgrade_from: Option<u64>,
    /// Id of the token that made the change; null if the origin made it by itself.
    token: Option<String>,
    /// Label of that token.
    label: Option<String>,
}

/// Changes of a channel, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct ChannelHistory {
    changes: Vec<ChannelChange>,
    /// Value of `before` that asks for the next page; null on the last page.
    before: Option<u64>,
}

/// A channel.
#[derive(Serialize, ToSchema)]
pub(super) struct Channel {
    product: String,
    channel: String,
    /// Version of the release to which the channel points.
    version: String,
    /// Manifest of that release, 64 hexadecimal digits.
    manifest: String,
    /// Number that grows by one with each change of the channel.
    counter: u64,
    /// Time of the last change, unix seconds.
    updated: i64,
    /// Devices with a release whose sequence is at most this go back to `version`; null if no
    /// downgrade was ordered.
    downgrade_from: Option<u64>,
}

/// Channels of a product.
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
        downgrade_from: row.downgrade_from,
    }
}

async fn with_release(app: &App, row: ChannelRow) -> Result<Channel, ApiError> {
    let release = app.origin.db().release(&row.product, &row.version).await?;
    let release =
        release.ok_or_else(|| ApiError::internal("a channel points to a release that does not exist"))?;
    Ok(channel((row, release)))
}

/// Lists a product's channels.
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

/// Describes one channel.
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

/// Lists the changes of a channel, newest first, each with the token that made it. A channel that
/// was removed keeps its history.
#[utoipa::path(get, path = "/v1/products/{product}/channels/{channel}/history", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path), Page),
    responses((status = 200, body = ChannelHistory)), security(("token" = ["read"])))]
pub(super) async fn history(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    At((product, name)): At<(Name, Name)>,
    Asked(page): Asked<Page>,
) -> Result<Json<ChannelHistory>, ApiError> {
    caller.may(&product)?;
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(
            format!("the limit {limit} is out of bounds"),
            format!("choose a limit of 1 to {PAGE_MAX}"),
        ));
    }
    let rows = app.origin.db().channel_moves(&product, &name, page.before, limit).await?;
    if rows.is_empty() && page.before.is_none() {
        products::find(&app, &product).await?;
        return Err(ApiError::unknown_channel(&product, &name));
    }
    let full = rows.len() == limit as usize;
    let before = rows.last().map(|row| row.id).filter(|_| full);
    Ok(Json(ChannelHistory { changes: rows.into_iter().map(change).collect(), before }))
}

fn change(row: MoveRow) -> ChannelChange {
    let by_token = !row.by.token.is_empty();
    ChannelChange {
        id: row.id,
        at: row.moved,
        from: row.from.map(|version| version.to_string()),
        to: row.to.map(|version| version.to_string()),
        downgrade: row.downgrade_from.is_some(),
        downgrade_from: row.downgrade_from,
        token: by_token.then_some(row.by.token),
        label: by_token.then_some(row.by.label),
    }
}

/// Points a channel to a release. Creates the channel if it does not exist.
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
    let downgrade = wanted.downgrade;
    if downgrade {
        caller.may_downgrade()?;
    }
    products::find(&app, &product).await?;
    let version: Name =
        wanted.version.parse().map_err(|_| ApiError::unknown_version(&product, &wanted.version))?;
    let at = app.clone();
    let moved = app.detached(async move {
        let wanted = ChannelMove { product: &product, channel: &name, version: &version, downgrade };
        let moved = at.origin.set_channel(wanted, &caller.mover()).await?;
        let counter = moved.0.counter;
        let (by, token) = (&caller.row.label, &caller.token);
        tracing::info!(%product, channel = %name, %version, counter, downgrade, by, token, "channel set");
        Ok(moved)
    });
    Ok(Json(channel(moved.await?)))
}

/// Removes a channel. Devices that follow it no longer find it.
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
        if !at.origin.remove_channel(&product, &name, &caller.mover()).await? {
            return Err(ApiError::unknown_channel(&product, &name));
        }
        tracing::info!(%product, channel = %name, by = caller.row.label, "channel removed");
        Ok(())
    });
    work.await?;
    Ok(StatusCode::NO_CONTENT)
}
