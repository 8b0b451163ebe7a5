//! `/ui`: the web page of people who run the fleet (docs/web.md).
//!
//! Pages are written by the server from the same handlers that answer `/v1`, in the name of the API
//! token with which a person signed in, so a page shows and does what that token may. They can be
//! read without scripts; with scripts they are fetched again when something has changed.

mod access;
mod assets;
mod audit;
mod channels;
mod charts;
#[expect(unreachable_pub, reason = "the macro of filters makes public items")]
mod filters;
mod forms;
mod live;
mod nodes;
mod oidc;
mod overview;
mod page;
mod products;
mod session;
mod storage;
mod sums;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};

use super::{ApiError, App};
use page::Stop;

pub(super) use live::Live;
pub use oidc::{Provider, ProviderError};
pub(super) use sums::Sums;

/// Everything comes from this origin, and nothing is inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Adds the pages to the API's router.
pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let pages = Router::new()
        .route("/ui", get(overview::show))
        .route("/ui/", get(|| async { Redirect::to("/ui") }))
        .route("/ui/{*page}", get(unknown))
        .route("/ui/sign-in", get(session::form).post(session::sign_in))
        .route("/ui/sign-out", post(session::sign_out))
        .route("/ui/oidc", get(oidc::end))
        .route("/ui/oidc/begin", get(oidc::begin))
        .route("/ui/static/{name}", get(assets::send))
        .route("/ui/events", get(live::events))
        .route("/ui/products", get(products::list))
        .route("/ui/products/{product}", get(products::show))
        .route("/ui/products/{product}/releases/{version}", get(products::release))
        .route("/ui/products/{product}/channels/{channel}", get(channels::show))
        .route("/ui/products/{product}/channels/{channel}/rollouts", post(channels::start))
        .route("/ui/products/{product}/channels/{channel}/rollout", post(channels::order))
        .route("/ui/nodes", get(nodes::list))
        .route("/ui/nodes/{id}", get(nodes::show))
        .route("/ui/access", get(access::show))
        .route("/ui/storage", get(storage::show))
        .route("/ui/audit", get(audit::show))
        .layer(from_fn(secured));
    router.route("/", get(front)).merge(pages)
}

async fn unknown() -> Stop {
    ApiError::not_found("such page").into()
}

/// Sends people to the page, and programs away.
async fn front(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match accepts.contains("text/html") {
        true => Redirect::to("/ui").into_response(),
        false => ApiError::not_found("such address").into_response(),
    }
}

/// Whether a form comes from a page of this origin, as the browser says. A program says nothing.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    let host = text("host").unwrap_or_default();
    text("origin").is_none_or(|origin| origin.split_once("://").is_some_and(|(_, origin)| origin == host))
}

/// Refuses forms of other pages, and sets the headers that keep pages, scripts and caches out.
async fn secured(request: Request, next: Next) -> Response {
    let mut response = match request.method() == Method::GET || is_own(request.headers()) {
        true => next.run(request).await,
        false => {
            let message = "the form comes from another page";
            Stop::from(ApiError::bad_request(message, "open this origin's page and use its form"))
                .into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
