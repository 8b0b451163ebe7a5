//! `/v1/openpgp-key`: the realm's OpenPGP key, for the keyrings of devices with other update
//! clients.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::route::{Route, routes};
use super::{ApiError, App};

pub(super) fn routes() -> Vec<Route> {
    routes![key]
}

/// Sends the public OpenPGP key of the realm, in armored form.
#[utoipa::path(get, path = "/v1/openpgp-key", tag = "tuf", responses(
    (status = 200, body = String, content_type = "application/pgp-keys")
))]
pub(super) async fn key(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let key = app.origin.openpgp_key().map_err(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, "application/pgp-keys")], key.armored()).into_response())
}
