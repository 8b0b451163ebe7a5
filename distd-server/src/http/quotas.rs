//! `/v1/quotas`: how many bytes products and API tokens may have.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{QUOTA_BYTES_MAX, Quota, QuotaBounds, QuotaList};
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToAdminister, ToView, token_id};
use super::body::{JsonBody, PathParams};
use super::route::{Route, routes};
use super::{ApiError, App, products};
use crate::db::{QuotaOf, QuotaRow};
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![list, set, remove]
}

/// The one that a quota is for, which must exist.
async fn subject(app: &App, kind: &str, name: &str) -> Result<QuotaOf, ApiError> {
    match kind {
        "product" => {
            let product = name.parse().map_err(|e| {
                ApiError::bad_request(format!("{name:?} is not a product name: {e}"), "see distd product ls")
            })?;
            products::find(app, &product).await?;
            Ok(QuotaOf::Product(product))
        }
        "token" => {
            let tokens = app.origin.db().api_tokens().await?;
            match tokens.iter().any(|row| token_id(&row.secret_sha256) == name) {
                true => Ok(QuotaOf::Token(name.to_owned())),
                false => Err(ApiError::unlisted("API token of this id", "GET /v1/tokens")),
            }
        }
        _ => Err(ApiError::bad_request(format!("{kind:?} has no quotas"), "choose product or token")),
    }
}

/// Lists the quotas, and how much of each is taken.
#[utoipa::path(get, path = "/v1/quotas", tag = "space", responses(
    (status = 200, body = QuotaList)
), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<QuotaList>, ApiError> {
    let shown = |row: QuotaRow| Quota {
        kind: row.of.kind().to_owned(),
        name: row.of.name().to_owned(),
        bounds: QuotaBounds { stored_bytes: row.stored_max, release_bytes: row.released_max },
        stored_bytes: row.stored,
        release_bytes: row.released,
    };
    let quotas = app.origin.db().quotas().await?.into_iter().map(shown).collect();
    Ok(Json(QuotaList { quotas }))
}

/// Sets the quota of a product or of an API token. What is there already stays.
#[utoipa::path(put, path = "/v1/quotas/{kind}/{name}", tag = "space",
    params(("kind" = String, Path, description = "product or token"), ("name" = String, Path)),
    request_body = QuotaBounds, responses((status = 204, description = "Set")), security(("token" = ["admin"])))]
pub(super) async fn set(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((kind, name)): PathParams<(String, String)>,
    JsonBody(bounds): JsonBody<QuotaBounds>,
) -> Result<StatusCode, ApiError> {
    let of = subject(&app, &kind, &name).await?;
    let QuotaBounds { stored_bytes, release_bytes } = bounds;
    if stored_bytes.is_none() && release_bytes.is_none() {
        let next = "name stored_bytes or release_bytes; DELETE removes a quota";
        return Err(ApiError::bad_request("a quota needs a bound", next));
    }
    if [stored_bytes, release_bytes].into_iter().flatten().any(|bytes| bytes > QUOTA_BYTES_MAX) {
        let next = format!("choose at most {QUOTA_BYTES_MAX} bytes");
        return Err(ApiError::bad_request("the quota is larger than any store", next));
    }
    let db = caller.db(&app);
    db.set_quota(&of, stored_bytes, release_bytes, signed(unix_now())).await?;
    tracing::info!(%of, stored_bytes, release_bytes, by = caller.row.label, "quota set");
    Ok(StatusCode::NO_CONTENT)
}

/// Removes the quota of a product or of an API token.
#[utoipa::path(delete, path = "/v1/quotas/{kind}/{name}", tag = "space",
    params(("kind" = String, Path, description = "product or token"), ("name" = String, Path)),
    responses((status = 204, description = "Removed, or there was none")), security(("token" = ["admin"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams((kind, name)): PathParams<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let of = subject(&app, &kind, &name).await?;
    caller.db(&app).set_quota(&of, None, None, signed(unix_now())).await?;
    tracing::info!(%of, by = caller.row.label, "quota removed");
    Ok(StatusCode::NO_CONTENT)
}
