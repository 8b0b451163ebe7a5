//! `/v1/groups`: groups of nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::NodeId;
use distd_core::api::{
    Group, GroupList, GroupMembers, GroupSelection, MEMBERS_PAGE, MEMBERS_PAGE_MAX, NewGroup,
};
use distd_core::bounds::{GROUP_NODES_MAX, GROUPS_MAX};
use distd_core::fleet::{EVERYONE, Selector};
use distd_core::names::Name;
use distd_core::role::Role;
use serde::Deserialize;

use super::auth::{Caller, ToAdminister, ToView};
use super::body::{JsonBody, PathParams, QueryParams};
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::db::{Members, PutGroup, RemoveGroup};

pub(super) fn routes() -> Vec<Route> {
    routes![list, show, put, remove]
}

/// Largest definition of a group, bytes: 10 000 node ids take 350 kB.
const GROUP_BYTES_MAX: u64 = 512 << 10;

/// Page of a group's members.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only members with a greater id than this.
    after: Option<String>,
    /// Largest number of members, 1 to 10 000; 1000 when absent.
    limit: Option<u32>,
}

pub(super) fn unknown_group(name: &str) -> ApiError {
    ApiError::unlisted(&format!("group {name}"), "GET /v1/groups")
}

/// Text of a list of grants in an error.
fn grants_text(ids: &[u64]) -> String {
    // An error stays on one line, however many grants there are.
    let shown: Vec<String> = ids.iter().take(10).map(ToString::to_string).collect();
    let more = if ids.len() > shown.len() { " and others" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Selector and number of listed nodes, as in answers.
fn described(members: &Members) -> (Option<String>, Option<u64>) {
    match members {
        Members::Selector(selector) => (Some(selector.to_string()), None),
        Members::Listed(nodes) => (None, Some(nodes.len() as u64)),
    }
}

/// Ids of the members, and the number of all nodes; revoked nodes are in no group.
async fn members_of(app: &App, members: &Members) -> Result<(BTreeSet<String>, u64), ApiError> {
    let nodes = app.origin.db().nodes().await?;
    let mut labels = app.origin.db().labels().await?;
    let (mut selected, mut of) = (BTreeSet::new(), 0);
    for node in nodes.into_iter().filter(|node| node.revoked.is_none()) {
        of += 1;
        let is_member = match members {
            Members::Listed(listed) => node.id.parse::<NodeId>().is_ok_and(|id| listed.contains(&id)),
            Members::Selector(selector) => {
                let labels = labels.remove(&node.id).unwrap_or_default();
                node.role.parse::<Role>().is_ok_and(|role| selector.selects(&labels, role))
            }
        };
        if is_member {
            selected.insert(node.id);
        }
    }
    Ok((selected, of))
}

/// Lists all groups: `everyone`, then the others by name.
#[utoipa::path(get, path = "/v1/groups", tag = "groups", responses((status = 200, body = GroupList)),
    security(("token" = ["view"])))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
) -> Result<Json<GroupList>, ApiError> {
    let rows = app.origin.db().groups().await?;
    let grants = app.origin.db().grants().await?;
    let group = |name: String, selector: Option<&Selector>, listed: u64| {
        let of = grants.iter().filter(|row| row.grant.group.as_str() == name).map(|row| row.id).collect();
        let listed = selector.is_none().then_some(listed);
        Group { selector: selector.map(ToString::to_string), listed, grants: of, name }
    };
    let everyone = group(EVERYONE.to_owned(), Some(&Selector::all()), 0);
    let others = rows.iter().map(|row| group(row.name.to_string(), row.selector.as_ref(), row.listed));
    Ok(Json(GroupList { groups: std::iter::once(everyone).chain(others).collect() }))
}

/// Describes one group, with a page of its members.
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path), Page),
    responses((status = 200, body = GroupMembers)), security(("token" = ["view"])))]
pub(super) async fn show(
    State(app): State<Arc<App>>,
    _: Caller<ToView>,
    PathParams(name): PathParams<Name>,
    QueryParams(page): QueryParams<Page>,
) -> Result<Json<GroupMembers>, ApiError> {
    let limit = page.limit.unwrap_or(MEMBERS_PAGE);
    if !(1..=MEMBERS_PAGE_MAX).contains(&limit) {
        let message = format!("the limit {limit} is out of bounds");
        return Err(ApiError::bad_request(message, format!("choose a limit of 1 to {MEMBERS_PAGE_MAX}")));
    }
    let members = if name.as_str() == EVERYONE {
        Members::Selector(Selector::all())
    } else {
        app.origin.db().group(&name).await?.ok_or_else(|| unknown_group(name.as_str()))?
    };
    let (selected, of) = members_of(&app, &members).await?;
    let rest = selected.iter().filter(|id| page.after.as_ref().is_none_or(|after| *id > after));
    // One more than the page, to know whether there is another.
    let mut nodes: Vec<String> = rest.take(limit as usize + 1).cloned().collect();
    let more = nodes.len() > limit as usize;
    nodes.truncate(limit as usize);
    let (selector, listed) = described(&members);
    Ok(Json(GroupMembers {
        name: name.to_string(),
        selector,
        listed,
        selected: selected.len() as u64,
        of,
        after: nodes.last().filter(|_| more).cloned(),
        nodes,
    }))
}

/// Reads the definition of a group.
fn members(new: NewGroup) -> Result<Members, ApiError> {
    match (new.selector, new.nodes) {
        (Some(selector), None) => {
            let next = "correct the selector; docs/fleet.md describes selectors";
            selector
                .parse()
                .map(Members::Selector)
                .map_err(|e: distd_core::fleet::SelectorError| ApiError::bad_request(e.to_string(), next))
        }
        (None, Some(ids)) => {
            if ids.len() > GROUP_NODES_MAX {
                let message = format!("a group lists at most {GROUP_NODES_MAX} nodes, not {}", ids.len());
                return Err(ApiError::bad_request(message, "give the nodes a label and select them by it"));
            }
            let id = |text: &String| {
                text.parse::<NodeId>().map_err(|_| {
                    let message = format!("{text:?} is no node id");
                    ApiError::bad_request(message, "write 32 hexadecimal digits, as in GET /v1/nodes")
                })
            };
            ids.iter().map(id).collect::<Result<_, _>>().map(Members::Listed)
        }
        _ => Err(ApiError::bad_request(
            "a group is a selector or a list of nodes",
            "send either selector or nodes",
        )),
    }
}

/// Makes a group, or gives it another definition. Answers how many nodes it selects now.
#[utoipa::path(put, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path)),
    request_body = NewGroup, responses(
        (status = 201, description = "Made", body = GroupSelection),
        (status = 200, description = "Replaced", body = GroupSelection)
    ), security(("token" = ["admin"])))]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(name): PathParams<Name>,
    JsonBody(new): JsonBody<NewGroup, GROUP_BYTES_MAX>,
) -> Result<(StatusCode, Json<GroupSelection>), ApiError> {
    let members = members(new)?;
    if name.as_str() == EVERYONE {
        let next = "choose another name";
        return Err(ApiError::conflict("the group everyone always selects every node", next));
    }
    let status = match caller.db(&app).put_group(&name, &members).await? {
        PutGroup::Made => StatusCode::CREATED,
        PutGroup::Replaced => StatusCode::OK,
        PutGroup::TooMany => {
            let message = format!("the realm has {GROUPS_MAX} groups, which is the most it can have");
            return Err(ApiError::conflict(message, "remove a group that no grant names"));
        }
        PutGroup::Granted(ids) => {
            let message = format!(
                "grants name the group {name} ({}), and facts decide no rights: a node would choose its own",
                grants_text(&ids)
            );
            return Err(ApiError::in_use(message, "select by labels, or remove these grants first"));
        }
    };
    let (selected, of) = members_of(&app, &members).await?;
    let (selector, listed) = described(&members);
    let selected = selected.len() as u64;
    tracing::info!(group = %name, selector, listed, selected, of, by = caller.row.label, "group set");
    Ok((status, Json(GroupSelection { name: name.to_string(), selector, listed, selected, of })))
}

/// Removes a group that no grant names.
#[utoipa::path(delete, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path)),
    responses((status = 204, description = "Removed")), security(("token" = ["admin"])))]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller<ToAdminister>,
    PathParams(name): PathParams<Name>,
) -> Result<StatusCode, ApiError> {
    if name.as_str() == EVERYONE {
        let next = "to withdraw rights, remove the grants that name it: GET /v1/grants";
        return Err(ApiError::conflict("the group everyone cannot be removed", next));
    }
    match caller.db(&app).remove_group(&name).await? {
        RemoveGroup::Removed => {
            tracing::info!(group = %name, by = caller.row.label, "group removed");
            Ok(StatusCode::NO_CONTENT)
        }
        RemoveGroup::Unknown => Err(unknown_group(name.as_str())),
        RemoveGroup::Granted(ids) => {
            let message = format!("grants name the group {name}: {}", grants_text(&ids));
            Err(ApiError::in_use(message, "first remove these grants: DELETE /v1/grants/{id}"))
        }
    }
}
