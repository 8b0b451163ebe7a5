//! Requests that a replica passes on to the one that leads (docs/replicas.md).
//!
//! A replica answers what any of them can: health, metrics, metadata, files of releases, and every
//! GET of `/v1`. All else goes to the one that leads, with the address from which it came.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reqwest::{Client, redirect};
use tokio::sync::watch;

use super::gateway::From;
use super::serve::Encrypted;
use super::{ApiError, App};
use crate::db::LeaderRow;
use distd_peer::trust::tls::{TrustAnchor, https_client};

/// Secret of the one that leads, by which it knows a request that was passed on.
const SECRET: HeaderName = HeaderName::from_static("distd-replica-secret");

/// Address from which a request came that is passed on.
const CAME_FROM: HeaderName = HeaderName::from_static("distd-replica-from");

/// Present where a request that is passed on came encrypted.
const CAME_ENCRYPTED: HeaderName = HeaderName::from_static("distd-replica-encrypted");

/// Longest time for a connection to the one that leads.
const CONNECT: Duration = Duration::from_secs(3);

/// Headers that are about one connection.
const OF_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];

/// Part of this process among replicas, as far as HTTP goes.
pub enum ReplicaHttp {
    /// It leads, and others pass requests on to it with this secret.
    Leads(String),
    /// It passes requests on.
    Follows(Passing),
}

/// Way to the one that leads.
pub struct Passing {
    leader: watch::Receiver<Option<LeaderRow>>,
    scheme: &'static str,
    client: Client,
}

impl Passing {
    /// Passes requests on to the one that `leader` says: by HTTPS to an origin of the realm with
    /// this CA, or with `plain` by HTTP.
    ///
    /// # Errors
    /// The library's, when it cannot make a client.
    pub fn new(
        leader: watch::Receiver<Option<LeaderRow>>,
        ca_fingerprint: [u8; 32],
        plain: bool,
    ) -> Result<Self, reqwest::Error> {
        let mut tls = https_client(&TrustAnchor::Fingerprint(ca_fingerprint));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .no_proxy()
            .build()?;
        Ok(Self { leader, scheme: if plain { "http" } else { "https" }, client })
    }

    async fn pass(&self, request: Request) -> Result<Response, ApiError> {
        let mut changes = self.leader.clone();
        let leader = changes.borrow_and_update().clone().filter(|leader| leader.is_held);
        let leader = leader.ok_or_else(|| ApiError::no_leader("none leads at the moment"))?;
        let (mut parts, body) = request.into_parts();
        let came_from = parts.extensions.get().map_or(IpAddr::from([0, 0, 0, 0]), |From(address)| *address);
        let is_encrypted = parts.extensions.get().is_some_and(|Encrypted(is_encrypted)| *is_encrypted);
        strip(&mut parts.headers);
        let text = |text: &str| HeaderValue::from_str(text).map_err(|_| ApiError::no_leader("its secret"));
        let mut secret = text(&leader.secret)?;
        secret.set_sensitive(true);
        parts.headers.insert(SECRET, secret);
        parts.headers.insert(CAME_FROM, text(&came_from.to_string())?);
        if is_encrypted {
            parts.headers.insert(CAME_ENCRYPTED, HeaderValue::from_static("1"));
        }
        let (scheme, address) = (self.scheme, &leader.address);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let has_body = parts.headers.contains_key(header::CONTENT_LENGTH) || parts.method != Method::GET;
        let passed = self.client.request(parts.method, format!("{scheme}://{address}{path}"));
        let mut passed = passed.headers(parts.headers);
        if has_body {
            passed = passed.body(reqwest::Body::wrap_stream(body.into_data_stream()));
        }
        let answer = tokio::select! {
            answer = passed.send() => answer.map_err(|error| {
                tracing::warn!(error = %distd_core::error::Chain(&error), "a request could not be passed on");
                ApiError::no_leader("the one that leads does not answer")
            })?,
            // It stood still, and another one leads: whether it has carried the request out is not
            // known.
            () = succeeded(&mut changes, leader.epoch) => {
                return Err(ApiError::no_leader("another one began to lead meanwhile"));
            }
        };
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        strip(&mut headers);
        let mut response = (status, Body::from_stream(answer.bytes_stream())).into_response();
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// Waits until another process than that of the term `epoch` leads.
async fn succeeded(changes: &mut watch::Receiver<Option<LeaderRow>>, epoch: u64) {
    let other = |leader: &Option<LeaderRow>| leader.as_ref().is_some_and(|leader| leader.epoch != epoch);
    if changes.wait_for(other).await.is_err() {
        std::future::pending().await
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in OF_CONNECTION.iter().chain([&SECRET, &CAME_FROM, &CAME_ENCRYPTED]) {
        headers.remove(name);
    }
}

/// Whether a replica that follows answers a request itself.
fn is_answered_here(method: &Method, path: &str) -> bool {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let any = ["/healthz", "/readyz", "/metrics"];
    let reading = ["/v1/", "/tuf/", "/r/", "/ui/static/"];
    any.contains(&path) || reads && reading.iter().any(|prefix| path.starts_with(prefix))
}

/// Passes requests on, or takes those of others over.
pub(super) async fn layer(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match &app.replica {
        None => next.run(request).await,
        Some(ReplicaHttp::Leads(secret)) => {
            let headers = request.headers();
            let given = headers.get(SECRET).map(HeaderValue::as_bytes).unwrap_or_default();
            let is_passed =
                aws_lc_rs::constant_time::verify_slices_are_equal(given, secret.as_bytes()).is_ok();
            if is_passed {
                let came_from = headers.get(CAME_FROM).and_then(|from| from.to_str().ok()?.parse().ok());
                let is_encrypted = headers.contains_key(CAME_ENCRYPTED);
                if let Some(address) = came_from {
                    request.extensions_mut().insert(From(address));
                }
                request.extensions_mut().insert(Encrypted(is_encrypted));
            }
            let has_secret = request.headers().contains_key(SECRET);
            for name in [&SECRET, &CAME_FROM, &CAME_ENCRYPTED] {
                request.headers_mut().remove(name);
            }
            if has_secret && !is_passed {
                return ApiError::no_leader("the request was passed on to one that led before")
                    .into_response();
            }
            next.run(request).await
        }
        Some(ReplicaHttp::Follows(passing)) => {
            if request.headers().contains_key(SECRET) {
                return ApiError::no_leader("this one does not lead").into_response();
            }
            if is_answered_here(request.method(), request.uri().path()) {
                return next.run(request).await;
            }
            passing.pass(request).await.unwrap_or_else(IntoResponse::into_response)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_follows_answers_reads_and_passes_the_rest_on() {
        for (method, path, here) in [
            (Method::GET, "/healthz", true),
            (Method::GET, "/v1/products", true),
            (Method::HEAD, "/r/os/stable/os.img", true),
            (Method::GET, "/tuf/timestamp.json", true),
            (Method::POST, "/v1/products/os/uploads", false),
            (Method::DELETE, "/v1/products/os/releases/1", false),
            (Method::GET, "/ui", false),
            (Method::GET, "/ui/events", false),
            (Method::GET, "/ui/static/page.css", true),
            (Method::GET, "/default/controller/v1/device", false),
            (Method::POST, "/r/os", false),
        ] {
            assert_eq!(is_answered_here(&method, path), here, "{method} {path}");
        }
    }
}
