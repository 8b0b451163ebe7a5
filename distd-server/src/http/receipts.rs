//! `/v1/receipts`: the log of receipts.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use distd_core::api::{
    RECEIPTS_PAGE, RECEIPTS_PAGE_MAX, ReceiptsEntry, ReceiptsHead, ReceiptsPage, ReceiptsProof,
};
use distd_core::fleet::receipts::TreeHash;
use serde::Deserialize;

use super::auth::{Caller, ToView};
use super::body::QueryParams;
use super::route::{Route, routes};
use super::{ApiError, App};

pub(super) fn routes() -> Vec<Route> {
    routes![head, entries, prove_inclusion, prove_consistency]
}

/// Shows the newest signed head of the log.
#[utoipa::path(get, path = "/v1/receipts/head", tag = "receipts",
    responses((status = 200, body = ReceiptsHead)), security(("token" = ["view"])))]
pub(super) async fn head(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<ReceiptsHead>, ApiError> {
    Ok(Json(ReceiptsHead::from(&app.origin.log_head().await?)))
}

/// Page of the log.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Number of the first entry, from 0, which is the default.
    #[serde(default)]
    start: u64,
    /// Largest number of entries, 1 to 1000; 100 when absent.
    limit: Option<u32>,
}

/// Lists entries of the log in order.
#[utoipa::path(get, path = "/v1/receipts/entries", tag = "receipts", params(Page),
    responses((status = 200, body = ReceiptsPage)), security(("token" = ["view"])))]
pub(super) async fn entries(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(page): QueryParams<Page>,
) -> Result<Json<ReceiptsPage>, ApiError> {
    let limit = page.limit.unwrap_or(RECEIPTS_PAGE);
    if !(1..=RECEIPTS_PAGE_MAX).contains(&limit) {
        let message = format!("the limit {limit} is out of bounds");
        return Err(ApiError::bad_request(message, format!("choose a limit of 1 to {RECEIPTS_PAGE_MAX}")));
    }
    let rows = app.origin.db().log_entries(page.start, limit).await?;
    let is_full = rows.len() == limit as usize;
    let next = rows.last().filter(|_| is_full).map(|row| row.number + 1);
    let entry = |row: &crate::db::LogRow| ReceiptsEntry {
        number: row.number,
        at: row.at,
        entry: hex::encode(&row.entry),
    };
    Ok(Json(ReceiptsPage { entries: rows.iter().map(entry).collect(), next }))
}

/// Entry and tree of a proof of inclusion.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Inclusion {
    /// Hash of the entry, 64 hexadecimal digits.
    leaf: String,
    /// Number of the entries of the tree, as a head has it.
    size: u64,
}

/// Proves that an entry is in the log.
#[utoipa::path(get, path = "/v1/receipts/proof/inclusion", tag = "receipts", params(Inclusion),
    responses((status = 200, body = ReceiptsProof)), security(("token" = ["view"])))]
pub(super) async fn prove_inclusion(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(asked): QueryParams<Inclusion>,
) -> Result<Json<ReceiptsProof>, ApiError> {
    let leaf: TreeHash =
        asked.leaf.parse().map_err(|error: distd_core::fleet::receipts::TreeHashError| {
            ApiError::bad_request(error.to_string(), "send the SHA-256 of a zero byte and the entry")
        })?;
    let proof = app.origin.log_inclusion(&leaf, asked.size).await?;
    let (number, hashes) = proof.ok_or_else(|| ApiError::not_found("such entry in the log of that size"))?;
    Ok(Json(ReceiptsProof { number: Some(number), hashes: hashes.iter().map(ToString::to_string).collect() }))
}

/// Trees of a proof of consistency.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Consistency {
    /// Number of the entries of the earlier tree, as its head has it.
    from: u64,
    /// Number of the entries of the later tree.
    to: u64,
}

/// Proves that an earlier log is the beginning of a later one.
#[utoipa::path(get, path = "/v1/receipts/proof/consistency", tag = "receipts", params(Consistency),
    responses((status = 200, body = ReceiptsProof)), security(("token" = ["view"])))]
pub(super) async fn prove_consistency(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(asked): QueryParams<Consistency>,
) -> Result<Json<ReceiptsProof>, ApiError> {
    let proof = app.origin.log_consistency(asked.from, asked.to).await?;
    let hashes = proof.ok_or_else(|| ApiError::not_found("such log: it is shorter"))?;
    Ok(Json(ReceiptsProof { number: None, hashes: hashes.iter().map(ToString::to_string).collect() }))
}
