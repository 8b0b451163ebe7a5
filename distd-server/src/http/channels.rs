//! `/v1/products/{product}/channels`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{
    CHANGES_PAGE, CHANGES_PAGE_MAX, Channel, ChannelApproval, ChannelChange, ChannelHistory, ChannelList,
    Move,
};
use distd_core::names::Name;
use serde::Deserialize;

use super::auth::{Caller, ToAdminister, ToMoveChannels, ToRead};
use super::body::{JsonBody, PathParams, QueryParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{ChannelMove, ChannelRow, MoveRow, ReleaseRow};

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, put, remove, history, approval]
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

impl Page {
    /// The newest changes.
    #[cfg(feature = "ui")]
    pub(super) fn newest(limit: u32) -> Self {
        Self { before: None, limit: Some(limit) }
    }
}

async fn channel(app: &App, (row, release): (ChannelRow, ReleaseRow)) -> Result<Channel, ApiError> {
    let approval = app.origin.db().needs_approval(&row.product, &row.channel).await?;
    Ok(Channel {
        product: row.product.to_string(),
        channel: row.channel.to_string(),
        version: row.version.to_string(),
        manifest: release.manifest,
        counter: row.counter,
        updated: row.updated,
        downgrade_from: row.downgrade_from,
        approval,
    })
}

async fn with_release(app: &App, row: ChannelRow) -> Result<Channel, ApiError> {
    let release = app.origin.db().release(&row.product, &row.version).await?;
    let release =
        release.ok_or_else(|| ApiError::internal("a channel points to a release that does not exist"))?;
    channel(app, (row, release)).await
}

/// Lists a product's channels.
#[utoipa::path(get, path = "/v1/products/{product}/channels", tag = "channels", params(("product" = String, Path)),
    responses((status = 200, body = ChannelList)), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(product): PathParams<Name>,
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
    PathParams((product, name)): PathParams<(Name, Name)>,
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
    PathParams((product, name)): PathParams<(Name, Name)>,
    QueryParams(page): QueryParams<Page>,
) -> Result<Json<ChannelHistory>, ApiError> {
    caller.may(&product)?;
    let limit = page.limit.unwrap_or(CHANGES_PAGE);
    if !(1..=CHANGES_PAGE_MAX).contains(&limit) {
        return Err(ApiError::bad_request(
            format!("the limit {limit} is out of bounds"),
            format!("choose a limit of 1 to {CHANGES_PAGE_MAX}"),
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
    PathParams((product, name)): PathParams<(Name, Name)>,
    JsonBody(wanted): JsonBody<Move>,
) -> Result<Json<Channel>, ApiError> {
    caller.may_move(&product, &name)?;
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
    let moved = moved.await?;
    Ok(Json(channel(&app, moved).await?))
}

/// Has the rollouts of a channel wait for the approval of a second token, from the next one on. The
/// channel is then neither set nor removed by hand.
#[utoipa::path(put, path = "/v1/products/{product}/channels/{channel}/approval", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path)), request_body = ChannelApproval,
    responses((status = 200, body = ChannelApproval)), security(("token" = ["admin"])))]
pub(super) async fn approval(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((product, name)): PathParams<(Name, Name)>,
    JsonBody(wanted): JsonBody<ChannelApproval>,
) -> Result<Json<ChannelApproval>, ApiError> {
    products::find(&app, &product).await?;
    caller.db(&app).set_approval(&product, &name, wanted.wanted).await?;
    tracing::info!(%product, channel = %name, wanted = wanted.wanted, by = caller.row.label, "approval set");
    Ok(Json(wanted))
}

/// Removes a channel. Devices that follow it no longer find it.
#[utoipa::path(delete, path = "/v1/products/{product}/channels/{channel}", tag = "channels",
    params(("product" = String, Path), ("channel" = String, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["channel"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToMoveChannels>,
    PathParams((product, name)): PathParams<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    caller.may_move(&product, &name)?;
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
