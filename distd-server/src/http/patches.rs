//! `/v1/products/{product}/patches`: patch sets of a product, and requests for more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::ManifestId;
use distd_core::api::{PatchSet, PatchSetList, Wanted};
use distd_core::names::Name;

use super::auth::{Caller, ToPublish, ToRead};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{PatchSetRow, PatchSetState};

pub(super) fn routes() -> Vec<Route> {
    routes![list, create]
}

fn shown(row: PatchSetRow) -> PatchSet {
    PatchSet {
        product: row.key.product.to_string(),
        from: row.from_version.map(|version| version.to_string()),
        to: row.to_version.to_string(),
        from_manifest: (row.key.from != ManifestId::NOTHING).then_some(row.key.from),
        to_manifest: row.key.to,
        state: row.state.into(),
        set: row.set,
        bytes: row.bytes,
        chunk_bytes: row.packed,
        patches: row.patches,
        error: row.error,
        requested_by: row.requested_by,
        created: row.created,
        started: row.started,
        finished: row.finished,
    }
}

/// Lists a product's patch sets, the latest request first; at most 1000.
#[utoipa::path(get, path = "/v1/products/{product}/patches", tag = "patches", params(("product" = String, Path)),
    responses((status = 200, body = PatchSetList)), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    PathParams(product): PathParams<Name>,
) -> Result<Json<PatchSetList>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let rows = app.origin.db().patch_sets(&product).await?;
    Ok(Json(PatchSetList { patches: rows.into_iter().map(shown).collect() }))
}

/// Requests the patch set from another version, or from nothing, to this one. A set that failed is
/// tried again.
#[utoipa::path(post, path = "/v1/products/{product}/releases/{version}/patches", tag = "patches",
    params(("product" = String, Path), ("version" = String, Path)), request_body = Wanted,
    responses(
        (status = 202, description = "The set is queued or being made", body = PatchSet),
        (status = 200, description = "The set is ready", body = PatchSet)
    ), security(("token" = ["publish"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToPublish>,
    PathParams((product, version)): PathParams<(Name, Name)>,
    JsonBody(wanted): JsonBody<Wanted>,
) -> Result<(StatusCode, Json<PatchSet>), ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let version_of = |text: String| text.parse().map_err(|_| ApiError::unknown_version(&product, &text));
    let from: Option<Name> = wanted.from.map(version_of).transpose()?;
    let at = app.clone();
    let queued = app.detached(async move {
        Ok(at.origin.request_patches(&product, from.as_ref(), &version, &caller.row.label).await?)
    });
    let (row, _) = queued.await?;
    let status = if row.state == PatchSetState::Ready { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(shown(row))))
}
