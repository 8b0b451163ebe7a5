//! `/v1/gc`: releases and patch sets that nothing keeps; `/v1/products/{product}/retention`: what a
//! product keeps.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{CollectNow, GcReport, REMOVALS, REMOVALS_MAX, RETENTION_MAX, Retention, RetentionSet};
use distd_core::names::Name;
use distd_peer::clock::unix_now;
use serde::Deserialize;

use super::auth::{Caller, ToAdminister, ToView};
use super::body::{JsonBody, OptionalJsonBody, PathParams, QueryParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![report, collect, set_retention, remove_retention]
}

/// Bound of a collection that is only looked at.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    /// Most releases that the collection may remove, 1 to 10 000; 100 when absent.
    removals_max: Option<u32>,
}

fn checked(removals_max: Option<u32>) -> Result<u32, ApiError> {
    let removals_max = removals_max.unwrap_or(REMOVALS);
    match (1..=REMOVALS_MAX).contains(&removals_max) {
        true => Ok(removals_max),
        false => Err(ApiError::bad_request(
            format!("removals_max = {removals_max} is out of bounds"),
            format!("choose 1 to {REMOVALS_MAX}"),
        )),
    }
}

/// Says what a collection would remove now, why each release stays, and how many bytes each one
/// alone takes. Reads every manifest.
#[utoipa::path(get, path = "/v1/gc", tag = "space", params(Look), responses(
    (status = 200, body = GcReport)
), security(("token" = ["view"])))]
pub(super) async fn report(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(look): QueryParams<Look>,
) -> Result<Json<GcReport>, ApiError> {
    let removals_max = checked(look.removals_max)?;
    let _turn = app.gc_turn().await;
    let now = signed(unix_now());
    Ok(Json(app.origin.gc_report(removals_max, now).await?))
}

/// Collects now, and returns what was decided. The bytes of removed releases go when the grace is
/// over.
#[utoipa::path(post, path = "/v1/gc", tag = "space", request_body = Option<CollectNow>, responses(
    (status = 200, body = GcReport)
), security(("token" = ["admin"])))]
pub(super) async fn collect(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    OptionalJsonBody(order): OptionalJsonBody<CollectNow>,
) -> Result<Json<GcReport>, ApiError> {
    let removals_max = checked(order.removals_max)?;
    let at = app.clone();
    let work = app.detached(async move {
        let _turn = at.gc_turn().await;
        let now = signed(unix_now());
        let report = at.origin.gc_report(removals_max, now).await?;
        let done = at.origin.collect(removals_max, &caller.mover(), now).await?;
        tracing::info!(?done, by = caller.row.label, "collected");
        Ok(report)
    });
    Ok(Json(work.await?))
}

/// Sets what a product keeps. Releases that channels, rollouts or nodes use, and pinned ones, stay
/// under every policy.
#[utoipa::path(put, path = "/v1/products/{product}/retention", tag = "space", params(("product" = String, Path)),
    request_body = Retention, responses((status = 200, body = RetentionSet)), security(("token" = ["admin"])))]
pub(super) async fn set_retention(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(product): PathParams<Name>,
    JsonBody(wanted): JsonBody<Retention>,
) -> Result<Json<RetentionSet>, ApiError> {
    products::find(&app, &product).await?;
    if wanted.keep.is_none() && wanted.days.is_none() {
        let next = "give keep, days or both; \"keep\": 0 removes whatever nothing uses";
        return Err(ApiError::bad_request("the policy has no bound", next));
    }
    let fits = |n: Option<u32>| n.is_none_or(|n| n <= RETENTION_MAX);
    if !fits(wanted.keep) || !fits(wanted.days) {
        let next = format!("choose numbers up to {RETENTION_MAX}");
        return Err(ApiError::bad_request("the policy has a number that is too large", next));
    }
    let set = app.origin.set_retention(&product, wanted, &caller.mover()).await?;
    tracing::info!(%product, ?set, by = caller.row.label, "retention set");
    Ok(Json(set))
}

/// Removes the policy of a product: it keeps every release.
#[utoipa::path(delete, path = "/v1/products/{product}/retention", tag = "space", params(("product" = String, Path)),
    responses((status = 204, description = "Removed, or there was none")), security(("token" = ["admin"])))]
pub(super) async fn remove_retention(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(product): PathParams<Name>,
) -> Result<StatusCode, ApiError> {
    products::find(&app, &product).await?;
    caller.db(&app).set_retention(&product, None, signed(unix_now())).await?;
    tracing::info!(%product, by = caller.row.label, "retention removed");
    Ok(StatusCode::NO_CONTENT)
}
