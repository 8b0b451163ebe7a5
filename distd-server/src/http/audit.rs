//! `/v1/audit`: the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use distd_core::api::{AUDIT_PAGE, AUDIT_PAGE_MAX, AuditPage};
use serde::Deserialize;

use super::auth::{Caller, ToView};
use super::body::QueryParams;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::{AuditFilter, AuditRange};

pub(super) fn routes() -> Vec<Route> {
    routes![list]
}

/// Page of the audit log.
#[derive(Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only entries of this time or later, unix seconds.
    pub(super) since: Option<i64>,
    /// Only acts of this actor, such as `origin`, or of the token with this label.
    pub(super) actor: Option<String>,
    /// Only this act, such as `grant.add`, or all of a kind, such as `grant`.
    pub(super) action: Option<String>,
    /// Only acts on this thing.
    pub(super) subject: Option<String>,
    /// Only entries with a lower number than this; the newest come first.
    pub(super) before: Option<u64>,
    /// Only entries with a higher number than this; the oldest come first.
    pub(super) after: Option<u64>,
    /// Largest number of entries, 1 to 1000; 100 when absent.
    pub(super) limit: Option<u32>,
}

/// Lists entries of the audit log: the newest first, or with `after` the oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Page),
    responses((status = 200, body = AuditPage)), security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    QueryParams(page): QueryParams<Page>,
) -> Result<Json<AuditPage>, ApiError> {
    let limit = page.limit.unwrap_or(AUDIT_PAGE);
    if !(1..=AUDIT_PAGE_MAX).contains(&limit) {
        let message = format!("the limit {limit} is out of bounds");
        return Err(ApiError::bad_request(message, format!("choose a limit of 1 to {AUDIT_PAGE_MAX}")));
    }
    let range = match (page.before, page.after) {
        (Some(_), Some(_)) => {
            let message = "before and after name two different pages";
            return Err(ApiError::bad_request(message, "send one of them"));
        }
        (before, None) => AuditRange::Before(before),
        (None, Some(after)) => AuditRange::After(after),
    };
    let Page { since, actor, action, subject, .. } = page;
    let filter = AuditFilter { since, actor, action, subject };
    let entries = app.origin.db().audit_entries(&filter, range, limit).await?;
    let full = entries.len() == limit as usize;
    let next = entries.last().map(|entry| entry.number).filter(|_| full);
    Ok(Json(AuditPage { entries, next }))
}
