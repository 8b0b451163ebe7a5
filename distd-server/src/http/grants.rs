//! `/v1/grants`: rights of groups on releases.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{GRANT_RELEASES_MAX, GrantInfo, GrantList, GrantState, NewGrants, Word};
use distd_core::bounds::GRANTS_MAX;
use distd_core::fleet::{Grant, PatternError, ReleasePattern, Rights, check_grant};
use distd_core::names::{Name, NameError};
use distd_peer::clock::unix_now;

use super::auth::{Caller, ToAdminister, ToView};
use super::body::{JsonBody, PathParams};
use super::groups::unknown_group;
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::{AddGrants, GrantRow};
use crate::origin::signed;

pub(super) fn routes() -> Vec<Route> {
    routes![list, create, remove]
}

/// A grant in answers, with its state at `now` (unix seconds).
pub(super) fn grant_info(row: GrantRow, now: u64) -> GrantInfo {
    let Grant { group, rights, releases, until, by_certificate } = row.grant;
    let state = if until.is_none_or(|end| now < end) { GrantState::Valid } else { GrantState::Expired };
    GrantInfo {
        id: row.id,
        group: group.to_string(),
        rights: rights.iter().map(Word::from).collect(),
        releases: releases.to_string(),
        until: until.map(signed),
        by_certificate,
        created: Some(row.created).filter(|created| *created != 0),
        created_by: row.created_by,
        state: state.into(),
    }
}

/// Lists all grants, the first one first.
#[utoipa::path(get, path = "/v1/grants", tag = "groups", responses((status = 200, body = GrantList)),
    security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<GrantList>, ApiError> {
    let now = unix_now();
    let rows = app.origin.db().grants().await?;
    Ok(Json(GrantList { grants: rows.into_iter().map(|row| grant_info(row, now)).collect() }))
}

/// Reads the grants of a request.
fn grants(new: &NewGrants, now: u64) -> Result<(Name, Vec<Grant>), ApiError> {
    let group: Name = new.group.parse().map_err(|e: NameError| {
        ApiError::bad_request(
            format!("{:?} is no name of a group: {e}", new.group),
            "look the name up with GET /v1/groups",
        )
    })?;
    if !(1..=GRANT_RELEASES_MAX).contains(&new.releases.len()) {
        let message = format!(
            "a request has 1 to {GRANT_RELEASES_MAX} patterns of releases, not {}",
            new.releases.len()
        );
        return Err(ApiError::bad_request(message, "use * in a pattern, or send several requests"));
    }
    let rights: Rights = new.rights.as_ref().map_or(Rights::ALL, |rights| rights.iter().copied().collect());
    check_grant(&group, rights, new.by_certificate).map_err(|e| {
        ApiError::bad_request(e.to_string(), "correct the grant; docs/fleet.md describes grants")
    })?;
    let until = match new.until {
        None => None,
        Some(end) => match u64::try_from(end) {
            Ok(end) if end > now => Some(end),
            _ => {
                let message = format!("until = {end} is not in the future");
                return Err(ApiError::bad_request(
                    message,
                    "send a later time, or none for a grant without end",
                ));
            }
        },
    };
    let grant = |text: &String| {
        let releases: ReleasePattern = text.parse().map_err(|e: PatternError| {
            ApiError::bad_request(e.to_string(), "write PRODUCT or PRODUCT:CHANNEL, such as os-*:stable")
        })?;
        Ok(Grant { group: group.clone(), rights, releases, until, by_certificate: new.by_certificate })
    };
    let grants = new.releases.iter().map(grant).collect::<Result<_, ApiError>>()?;
    Ok((group, grants))
}

/// Makes a grant for each pattern of releases. A grant that is there already is not made again.
#[utoipa::path(post, path = "/v1/grants", tag = "groups", request_body = NewGrants, responses(
    (status = 201, description = "The grants, in the order of the patterns", body = GrantList)
), security(("token" = ["admin"])))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    JsonBody(new): JsonBody<NewGrants>,
) -> Result<(StatusCode, Json<GrantList>), ApiError> {
    let now = unix_now();
    let (group, grants) = grants(&new, now)?;
    let by = &caller.row.label;
    match caller.db(&app).add_grants(&group, &grants, by, signed(now)).await? {
        AddGrants::Added(rows) => {
            for row in &rows {
                let Grant { releases, rights, until, by_certificate, .. } = &row.grant;
                tracing::info!(id = row.id, %group, %releases, %rights, until, by_certificate, by, "granted");
            }
            let grants = rows.into_iter().map(|row| grant_info(row, now)).collect();
            Ok((StatusCode::CREATED, Json(GrantList { grants })))
        }
        AddGrants::UnknownGroup => Err(unknown_group(group.as_str())),
        AddGrants::Facts => Err(ApiError::conflict(
            format!(
                "the group {group} selects by facts, which decide no rights: a node would choose its own"
            ),
            "grant to a group that selects by labels",
        )),
        AddGrants::TooMany => Err(ApiError::conflict(
            format!("the realm can have {GRANTS_MAX} grants, and would have more"),
            "remove grants that have expired, or use * in patterns",
        )),
    }
}

/// Removes a grant. Nodes lose the rights that no other grant gives them.
#[utoipa::path(delete, path = "/v1/grants/{id}", tag = "groups", params(("id" = u64, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["admin"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(id): PathParams<u64>,
) -> Result<StatusCode, ApiError> {
    if !caller.db(&app).remove_grant(id).await? {
        return Err(ApiError::unlisted(&format!("grant {id}"), "GET /v1/grants"));
    }
    tracing::info!(id, by = caller.row.label, "grant removed");
    Ok(StatusCode::NO_CONTENT)
}
