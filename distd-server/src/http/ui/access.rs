//! Rights: API tokens, join tokens, groups and grants.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distd_core::api::{GrantInfo, Group, JoinTokenInfo, Token};

use super::super::auth::ToView;
use super::super::{App, grants, groups, tokens};
use super::filters;
use super::page::{Frame, Page, Stop};
use super::session::Visitor;

#[derive(Template)]
#[template(path = "ui/access.html")]
struct Access {
    frame: Frame,
    tokens: Vec<Token>,
    join_tokens: Vec<JoinTokenInfo>,
    groups: Vec<Group>,
    grants: Vec<GrantInfo>,
    /// Most lines of each list.
    lines: usize,
}

/// Most lines of each list on the page.
const LINES_MAX: usize = 500;

fn first<T>(mut list: Vec<T>) -> Vec<T> {
    list.truncate(LINES_MAX);
    list
}

pub(super) async fn show(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, Stop> {
    let Json(tokens) = tokens::list(State(app.clone()), visitor.caller::<ToView>()?).await?;
    let Json(join_tokens) = tokens::list_join(State(app.clone()), visitor.caller()?).await?;
    let Json(groups) = groups::list(State(app.clone()), visitor.caller()?).await?;
    let Json(grants) = grants::list(State(app), visitor.caller()?).await?;
    let page = Access {
        frame: visitor.frame("Access", "access"),
        tokens: first(tokens.tokens),
        join_tokens: first(join_tokens.join_tokens),
        groups: first(groups.groups),
        grants: first(grants.grants),
        lines: LINES_MAX,
    };
    Ok(Page(page).into_response())
}
