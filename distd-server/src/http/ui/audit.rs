//! The audit log, the newest entries first.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distd_core::api::AuditEntry;
use serde::Deserialize;
use url::form_urlencoded;

use super::super::auth::ToView;
use super::super::body::QueryParams;
use super::super::{App, audit};
use super::filters;
use super::forms::PageQuery;
use super::page::{Frame, Page, Stop};
use super::session::Visitor;

/// Filters as a form sends them: those that were left alone are empty.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    actor: String,
    action: String,
    subject: String,
    before: Option<u64>,
}

#[derive(Template)]
#[template(path = "ui/audit.html")]
struct Audit {
    frame: Frame,
    filters: Filters,
    entries: Vec<AuditEntry>,
    next: Option<String>,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PageQuery(filters): PageQuery<Filters>,
) -> Result<Response, Stop> {
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let page = audit::Page {
        actor: given(&filters.actor),
        action: given(&filters.action),
        subject: given(&filters.subject),
        before: filters.before,
        ..audit::Page::default()
    };
    let Json(list) = audit::list(State(app), visitor.caller::<ToView>()?, QueryParams(page)).await?;
    let next = list.next.map(|before| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in
            [("actor", &filters.actor), ("action", &filters.action), ("subject", &filters.subject)]
        {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        query.append_pair("before", &before.to_string());
        format!("/ui/audit?{}", query.finish())
    });
    let frame = visitor.frame("Audit log", "audit");
    Ok(Page(Audit { frame, filters, entries: list.entries, next }).into_response())
}
