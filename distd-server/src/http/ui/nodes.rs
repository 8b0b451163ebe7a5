//! Nodes: a list with filters, and everything about one.

use std::sync::Arc;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use distd_core::api::{FleetNode, FleetPage};
use distd_core::fleet::report::SourceBytes;
use distd_core::fleet::state::{Contact, UpdateState};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::super::auth::ToView;
use super::super::body::{PathParams, QueryParams};
use super::super::{ApiError, App, fleet};
use super::charts::{Part, sources};
use super::filters;
use super::forms::{PagePath, PageQuery};
use super::page::{Frame, Page, Stop};
use super::session::Visitor;

/// Filters as a form sends them: those that were left alone are empty.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Filters {
    node: String,
    product: String,
    channel: String,
    version: String,
    update: String,
    contact: String,
    group: String,
    r#where: String,
    after: String,
}

impl Filters {
    fn pairs(&self) -> [(&'static str, &str); 7] {
        [
            ("product", &self.product),
            ("channel", &self.channel),
            ("version", &self.version),
            ("update", &self.update),
            ("contact", &self.contact),
            ("group", &self.group),
            ("where", &self.r#where),
        ]
    }

    /// Address of the page of these filters behind the device `after`.
    fn address(&self, after: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.pairs().into_iter().filter(|(_, value)| !value.is_empty()));
        query.append_pair("after", after);
        format!("/ui/nodes?{}", query.finish())
    }

    fn page(&self) -> Result<fleet::Page, ApiError> {
        /// Parses a filter; an empty one is none.
        fn parsed<T: DeserializeOwned>(name: &str, text: &str) -> Result<Option<T>, ApiError> {
            let wrong = |error: serde_json::Error| {
                let message = format!("the filter {name:?} cannot be {text:?}: {error}");
                ApiError::bad_request(message, "go back and correct the filter")
            };
            let text = Some(text.trim()).filter(|text| !text.is_empty());
            text.map(|text| serde_json::from_value(text.into()).map_err(wrong)).transpose()
        }
        Ok(fleet::Page {
            product: parsed("product", &self.product)?,
            channel: parsed("channel", &self.channel)?,
            version: parsed("version", &self.version)?,
            update: parsed("update", &self.update)?,
            contact: parsed("contact", &self.contact)?,
            group: parsed("group", &self.group)?,
            r#where: parsed("where", &self.r#where)?,
            after: parsed("after", &self.after)?,
            limit: None,
        })
    }
}

#[derive(Template)]
#[template(path = "ui/nodes.html")]
struct Nodes {
    frame: Frame,
    filters: Filters,
    updates: Vec<String>,
    contacts: Vec<String>,
    page: FleetPage,
    next: Option<String>,
}

/// All words of an enumeration, as the API writes them.
fn words<T: serde::Serialize>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    let word = |value| serde_json::to_value(value).ok()?.as_str().map(str::to_owned);
    all.into_iter().filter_map(word).collect()
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PageQuery(filters): PageQuery<Filters>,
) -> Result<Response, Stop> {
    let node = filters.node.trim();
    if !node.is_empty() {
        let node: String = form_urlencoded::byte_serialize(node.as_bytes()).collect();
        return Ok(Redirect::to(&format!("/ui/nodes/{node}")).into_response());
    }
    let Json(page) =
        fleet::list(State(app), visitor.caller::<ToView>()?, QueryParams(filters.page()?)).await?;
    let next = page.after.as_deref().map(|after| filters.address(after));
    let page = Nodes {
        frame: visitor.frame("Nodes", "nodes"),
        updates: words(UpdateState::ALL),
        contacts: words(Contact::ALL),
        filters,
        page,
        next,
    };
    Ok(Page(page).into_response())
}

#[derive(Template)]
#[template(path = "ui/node.html")]
struct OneNode {
    frame: Frame,
    node: FleetNode,
    attempts: Vec<Vec<Part>>,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    PagePath(id): PagePath<String>,
) -> Result<Response, Stop> {
    let Json(node) = fleet::show(State(app), visitor.caller::<ToView>()?, PathParams(id)).await?;
    let attempts = node.attempts.iter().map(|attempt| {
        sources(SourceBytes {
            disk: attempt.bytes_disk,
            neighbours: attempt.bytes_neighbours,
            relay: attempt.bytes_relay,
            origin: attempt.bytes_origin,
        })
    });
    let page = OneNode {
        frame: visitor
            .frame(format!("Node {}", &node.detail.node.id[..12.min(node.detail.node.id.len())]), "nodes"),
        attempts: attempts.collect(),
        node,
    };
    Ok(Page(page).into_response())
}
