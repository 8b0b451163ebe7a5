//! `/r/PRODUCT/{VERSION|CHANNEL}/NAME`: releases as files, for updaters that know nothing of distd
//! (docs/gateway.md). A channel leads to its own release: what a rollout brings, each device
//! decides by itself.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use distd_core::error::Chain;
use distd_peer::gateway::{self, Address, FileBytes, Found, Refusal, Releases, shown_token};

use super::auth::{Caller, ToRead};
use super::route::{Route, routes};
use super::{ApiError, App};
use crate::origin::Origin;

/// Time after which a caller may try again when the database or the store cannot be reached,
/// seconds.
const AGAIN_SECONDS: u32 = 10;

pub(super) fn routes() -> Vec<Route> {
    routes![file, file_by_token, chunk, chunk_by_token]
}

/// Address of the caller, which each request carries in its extensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct From(pub(super) IpAddr);

/// Sends the file of a release, whole or in parts.
#[utoipa::path(get, path = "/r/{product}/{release}/{file}", tag = "gateway",
    params(("product" = String, Path), ("release" = String, Path, description = "A version or a channel"),
        ("file" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The parts that Range asked for")), security(("token" = ["read"])))]
pub(super) async fn file(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    respond(&app, &request.into_parts().0).await
}

/// As `/r/{product}/{release}/{file}`, for updaters that can send neither a header nor a password.
#[utoipa::path(get, path = "/t/{token}/r/{product}/{release}/{file}", tag = "gateway",
    params(("token" = String, Path, description = "An API token with the scope read"),
        ("product" = String, Path), ("release" = String, Path, description = "A version or a channel"),
        ("file" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The parts that Range asked for")))]
pub(super) async fn file_by_token(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    respond(&app, &request.into_parts().0).await
}

/// Sends a chunk for casync, of the index beside the file.
#[utoipa::path(get, path = "/r/{product}/{release}/default.castr/{prefix}/{chunk}", tag = "gateway",
    params(("product" = String, Path), ("release" = String, Path, description = "A version or a channel"),
        ("prefix" = String, Path), ("chunk" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")),
    security(("token" = ["read"])))]
pub(super) async fn chunk(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    respond(&app, &request.into_parts().0).await
}

/// As `/r/{product}/{release}/default.castr/{prefix}/{chunk}`, with the token in the path.
#[utoipa::path(get, path = "/t/{token}/r/{product}/{release}/default.castr/{prefix}/{chunk}", tag = "gateway",
    params(("token" = String, Path, description = "An API token with the scope read"),
        ("product" = String, Path), ("release" = String, Path, description = "A version or a channel"),
        ("prefix" = String, Path), ("chunk" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")))]
pub(super) async fn chunk_by_token(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    respond(&app, &request.into_parts().0).await
}

async fn respond(app: &Arc<App>, request: &Parts) -> Result<Response, ApiError> {
    let parsed = Address::of_path(request.uri.path());
    let in_path = parsed.as_ref().ok().and_then(|(_, token)| token.clone());
    let shown = shown_token(&request.headers).or(in_path);
    let shown = shown.ok_or_else(|| ApiError::unauthorised("this request needs an API token"))?;
    let caller = Caller::<ToRead>::of_token(app, &shown, request.extensions.get()).await?;
    let (address, _) = parsed.map_err(|error| {
        ApiError::bad_request(error.to_string(), "see \"The origin as a gateway\" in docs/gateway.md")
    })?;
    caller.may(&address.reference.product)?;
    // A server of tests may have no address of its caller.
    let from = request.extensions.get().map_or(IpAddr::from([0, 0, 0, 0]), |From(address)| *address);
    let asker = gateway::Caller { address: from, remembered: &app.remembered };
    let releases = Stored(app.origin.clone());
    Ok(gateway::answer(&releases, &request.method, &address, &request.headers, asker).await.map(Body::new))
}

/// The releases in the origin's store.
struct Stored(Arc<Origin>);

fn failed(error: impl std::error::Error + 'static) -> Refusal {
    tracing::error!(error = %Chain(&error), "a release could not be looked up for a download");
    Refusal::later("the origin could not look that up", "ask again", AGAIN_SECONDS)
}

#[async_trait]
impl Releases for Stored {
    async fn find(&self, address: &Address) -> Result<Found, Refusal> {
        let (product, name) = (&address.reference.product, &address.reference.name);
        let channel = self.0.db().channel(product, name).await.map_err(failed)?;
        let by_channel = channel.is_some();
        let version = channel.map_or_else(|| name.clone(), |channel| channel.version);
        let row = self.0.db().release(product, &version).await.map_err(failed)?;
        let row = row.ok_or_else(|| {
            let message = format!("{product} has no release and no channel {name}");
            Refusal::not_found(message, format!("look them up: distd release ls {product}"))
        })?;
        if row.kind != "file" {
            let message = format!("{product}@{version} is a directory, and a gateway offers files");
            return Err(Refusal::not_found(message, "install it with distd pull"));
        }
        let file = self.0.named_file(&row).await.map_err(failed)?;
        Ok(Found {
            product: product.clone(),
            version,
            by_channel,
            manifest: row.manifest,
            bytes: row.bytes,
            blake3: row.blake3.0,
            file,
        })
    }

    async fn open(&self, found: &Found) -> Result<Arc<dyn FileBytes>, Refusal> {
        match self.0.artifact(found.manifest).await {
            Ok(bytes) => Ok(Arc::new(bytes)),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the manifest of a release could not be read");
                let next = "look at the origin's log";
                Err(Refusal::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the origin could not read the release",
                    next,
                ))
            }
        }
    }
}
