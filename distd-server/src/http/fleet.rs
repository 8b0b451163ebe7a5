//! `/v1/fleet`: the state of the fleet.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use distd_core::api::{DEVICES_PAGE, DEVICES_PAGE_MAX, FleetNode, FleetPage, FleetStatus};
use distd_core::fleet::state::{Contact, UpdateState};
use distd_core::fleet::{EVERYONE, SelectorError};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::Deserialize;

use super::auth::{Caller, ToView};
use super::body::{PathParams, QueryParams};
use super::groups::unknown_group;
use super::route::{Route, routes};
use super::{ApiError, App, nodes};
use crate::origin::{FleetFilter, FleetSelection, signed};

pub(super) fn routes() -> Vec<Route> {
    routes![status, list, show]
}

/// Devices that the sums are over.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Selected {
    /// Only devices that follow a channel of this product, and only its channels.
    #[param(value_type = Option<String>)]
    product: Option<Name>,
    /// Only devices that follow a channel of this name, and only these channels.
    #[param(value_type = Option<String>)]
    channel: Option<Name>,
    /// Only members of this group.
    #[param(value_type = Option<String>)]
    group: Option<Name>,
    /// Only devices that this selector selects.
    r#where: Option<String>,
}

/// Page of the fleet's devices. A device has a channel for which product, channel, version and
/// update all hold.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only devices that follow a channel of this product.
    #[param(value_type = Option<String>)]
    pub(super) product: Option<Name>,
    /// Only devices that follow a channel of this name.
    #[param(value_type = Option<String>)]
    pub(super) channel: Option<Name>,
    /// Only devices that run this version.
    #[param(value_type = Option<String>)]
    pub(super) version: Option<Name>,
    /// Only devices whose update is in this state.
    pub(super) update: Option<UpdateState>,
    /// Only devices with this contact.
    pub(super) contact: Option<Contact>,
    /// Only members of this group.
    #[param(value_type = Option<String>)]
    pub(super) group: Option<Name>,
    /// Only devices that this selector selects.
    pub(super) r#where: Option<String>,
    /// Only devices with a greater id than this.
    pub(super) after: Option<String>,
    /// Largest number of devices, 1 to 1000; 100 when absent.
    pub(super) limit: Option<u32>,
}

async fn selection(
    app: &App,
    group: Option<&Name>,
    text: Option<&String>,
) -> Result<FleetSelection, ApiError> {
    let wrong = |error: SelectorError| {
        ApiError::bad_request(error.to_string(), "correct the selector; docs/fleet.md describes selectors")
    };
    let selector = text.map(|text| text.parse()).transpose().map_err(wrong)?;
    let group = match group.filter(|group| group.as_str() != EVERYONE) {
        None => None,
        Some(name) => {
            let found = app.origin.db().group(name).await?;
            Some(found.ok_or_else(|| unknown_group(name.as_str()))?)
        }
    };
    Ok(FleetSelection { selector, group })
}

/// Sums up the fleet: its devices by contact, by the state of their update, by release, by failure
/// and by the reason that holds them.
#[utoipa::path(get, path = "/v1/fleet", tag = "fleet", params(Selected),
    responses((status = 200, body = FleetStatus)), security(("token" = ["view"])))]
pub(super) async fn status(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(wanted): QueryParams<Selected>,
) -> Result<Json<FleetStatus>, ApiError> {
    sum_up(&app, &wanted).await.map(Json)
}

pub(super) async fn sum_up(app: &App, wanted: &Selected) -> Result<FleetStatus, ApiError> {
    let selection = selection(app, wanted.group.as_ref(), wanted.r#where.as_ref()).await?;
    let (product, channel) = (wanted.product.as_ref(), wanted.channel.as_ref());
    Ok(app.origin.fleet_status(product, channel, &selection, signed(unix_now())).await?)
}

/// Lists devices by id, each with the state of its updates.
#[utoipa::path(get, path = "/v1/fleet/nodes", tag = "fleet", params(Page),
    responses((status = 200, body = FleetPage)), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(page): QueryParams<Page>,
) -> Result<Json<FleetPage>, ApiError> {
    let limit = page.limit.unwrap_or(DEVICES_PAGE);
    if !(1..=DEVICES_PAGE_MAX).contains(&limit) {
        let message = format!("the limit {limit} is out of bounds");
        return Err(ApiError::bad_request(message, format!("choose a limit of 1 to {DEVICES_PAGE_MAX}")));
    }
    let selection = selection(&app, page.group.as_ref(), page.r#where.as_ref()).await?;
    let Page { product, channel, version, update, contact, after, .. } = page;
    let filter = FleetFilter { product, channel, version, update, contact, selection };
    let after = after.unwrap_or_default();
    Ok(Json(app.origin.fleet_page(&filter, &after, limit, signed(unix_now())).await?))
}

/// Describes everything that is known about one node: also its contact, its updates, its attempts,
/// and why it runs what it runs.
#[utoipa::path(get, path = "/v1/fleet/nodes/{id}", tag = "fleet", params(("id" = String, Path)),
    responses((status = 200, body = FleetNode)), security(("token" = ["view"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    PathParams(id): PathParams<String>,
) -> Result<Json<FleetNode>, ApiError> {
    let detail = nodes::detail(&app, &id).await?;
    Ok(Json(app.origin.fleet_node(detail, signed(unix_now())).await?))
}
