//! `/v1/products/{product}/patches`: patch sets of a product, and requests for more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::ManifestId;
use distd_core::names::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, ToPublish, ToRead};
use super::body::{At, Given};
use super::{ApiError, App, products};
use crate::db::{PatchSetRow, PatchSetState};

/// Patch set to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Version that the devices have; when absent, the set is for devices that have nothing.
    #[serde(default)]
    from: Option<String>,
}

/// A patch set.
#[derive(Serialize, ToSchema)]
pub(super) struct PatchSet {
    product: String,
    /// Version that devices must have; null for a set from nothing.
    from: Option<String>,
    /// Version that devices get.
    to: String,
    /// Manifest of `from`, 64 hexadecimal digits; null for a set from nothing.
    from_manifest: Option<String>,
    /// Manifest of `to`, 64 hexadecimal digits.
    to_manifest: String,
    /// `queued`, `building`, `ready` or `failed`.
    state: &'static str,
    /// Manifest of the set; null until the set is ready, and also if no patch would save anything.
    set: Option<String>,
    /// Length of the set, bytes.
    bytes: u64,
    /// Size of the chunks that the patches rebuild, as sent without patches, bytes.
    chunk_bytes: u64,
    /// Number of patches in the set.
    patches: u64,
    /// Reason of the failure; null unless the state is `failed`.
    error: Option<String>,
    /// Label of the token that requested the set, or `release` or `channel` if the origin did so by
    /// itself.
    requested_by: String,
    /// Time of the request, unix seconds.
    created: i64,
    /// Time at which the making began, unix seconds; null before.
    started: Option<i64>,
    /// Time at which the set became ready or failed, unix seconds; null before.
    finished: Option<i64>,
}

/// Patch sets of a product.
#[derive(Serialize, ToSchema)]
pub(super) struct PatchSetList {
    patches: Vec<PatchSet>,
}

impl From<PatchSetRow> for PatchSet {
    fn from(row: PatchSetRow) -> Self {
        Self {
            product: row.key.product.to_string(),
            from: row.from_version.map(|version| version.to_string()),
            to: row.to_version.to_string(),
            from_manifest: (row.key.from != ManifestId::NOTHING).then(|| row.key.from.to_string()),
            to_manifest: row.key.to.to_string(),
            state: row.state.as_str(),
            set: row.set.map(|set| set.to_string()),
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
}

/// Lists a product's patch sets, the latest request first; at most 1000.
#[utoipa::path(get, path = "/v1/products/{product}/patches", tag = "patches", params(("product" = String, Path)),
    responses((status = 200, body = PatchSetList)), security(("token" = ["read"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller<ToRead>,
    At(product): At<Name>,
) -> Result<Json<PatchSetList>, ApiError> {
    caller.may(&product)?;
    products::find(&app, &product).await?;
    let rows = app.origin.db().patch_sets(&product).await?;
    Ok(Json(PatchSetList { patches: rows.into_iter().map(PatchSet::from).collect() }))
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
    At((product, version)): At<(Name, Name)>,
    Given(wanted): Given<Wanted>,
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
    Ok((status, Json(row.into())))
}
