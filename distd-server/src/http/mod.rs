//! HTTP API of the origin (docs/http-api.md). One file for each resource; `error.rs` decides what a
//! failure looks like to the caller.
//!
//! No length from a caller is trusted: each route bounds its body and reads it in pieces. A change
//! of the database or the store runs in a task of its own, which goes on if the connection ends.

mod auth;
mod body;
mod channels;
mod connections;
mod content;
mod drain;
mod error;
mod manifests;
mod metrics;
mod nodes;
mod objects;
mod openapi;
mod packs;
mod patches;
mod products;
mod releases;
mod request_id;
mod serve;
mod spool;
mod state;
mod tokens;
mod tuf;
mod uploads;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use distd_core::ManifestId;
use distd_core::manifest::Manifest;
use distd_peer::serve::ServeCounters;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

pub use auth::Scope;
use error::ApiError;
pub use serve::serve;

use crate::origin::Origin;

/// Memory for the chunk lists of commits, MiB, shared by all requests. It holds one of the longest
/// lists, or many of the usual 1 to 4 MiB.
const LISTS_MIB: u32 = 256;

/// Number of manifests kept in memory for requests of single nodes. Each takes about 5 MB for an
/// 800 MB image.
const MANIFESTS_MAX: usize = 2;

/// State that all request handlers share.
pub struct App {
    origin: Arc<Origin>,
    counters: Arc<ServeCounters>,
    metrics: metrics::Metrics,
    tasks: TaskTracker,
    lists: Arc<Semaphore>,
    spooling: Arc<spool::Spooling>,
    manifests: Mutex<VecDeque<Arc<Manifest>>>,
}

impl App {
    /// Creates the API of `origin`. `counters` are those of the QUIC side.
    pub fn new(origin: Arc<Origin>, counters: Arc<ServeCounters>) -> Arc<Self> {
        Arc::new(Self {
            origin,
            counters,
            metrics: metrics::Metrics::default(),
            tasks: TaskTracker::new(),
            lists: Arc::new(Semaphore::new(LISTS_MIB as usize)),
            spooling: Arc::default(),
            manifests: Mutex::default(),
        })
    }

    /// Waits until all detached work is done, including work whose connection has ended.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Starts `work` at once. It runs to its end even if the caller goes away.
    fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, ApiError>> {
        let (tx, rx) = oneshot::channel();
        self.tasks.spawn(request_id::carry(async move {
            if let Err(Err(unseen)) = tx.send(work.await) {
                unseen.log();
            }
        }));
        async move { rx.await.unwrap_or_else(|_| Err(ApiError::internal("a task ended without a result"))) }
            .boxed()
    }

    /// Permit for a chunk list of `bytes` bytes in memory; waits while other lists take the room.
    async fn list_room(&self, bytes: u64) -> OwnedSemaphorePermit {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(LISTS_MIB).clamp(1, LISTS_MIB);
        self.lists.clone().acquire_many_owned(mib).await.expect("the semaphore is never closed")
    }

    /// Manifest of a release or patch set, from memory or from the store.
    async fn manifest(&self, id: ManifestId) -> Result<Arc<Manifest>, ApiError> {
        {
            let mut kept = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = kept.iter().position(|manifest| manifest.id() == id) {
                let found = kept.remove(at).expect("the position was just found");
                kept.push_back(found.clone());
                return Ok(found);
            }
        }
        let found = Arc::new(self.origin.ingest().manifest(&id).await?);
        let mut kept = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(found.clone());
        while kept.len() > MANIFESTS_MAX {
            kept.pop_front();
        }
        Ok(found)
    }
}

/// Handler of one method of one path.
struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "compared with the OpenAPI document"))]
    method: Method,
    path: &'static str,
    handler: MethodRouter<Arc<App>>,
}

impl Route {
    fn new<H: Handler<T, Arc<App>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("the API uses plain methods");
        Self { method, path, handler: on(filter, handler) }
    }
}

/// All routes of the API.
fn routes() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/healthz", state::healthz),
        Route::new(Method::GET, "/readyz", state::readyz),
        Route::new(Method::GET, "/metrics", metrics::metrics),
        Route::new(Method::GET, "/v1/version", state::version),
        Route::new(Method::GET, "/v1/openapi.json", openapi::show),
        Route::new(Method::POST, "/v1/products", products::create),
        Route::new(Method::GET, "/v1/products", products::list),
        Route::new(Method::GET, "/v1/products/{product}", products::show),
        Route::new(Method::GET, "/v1/products/{product}/releases", releases::list),
        Route::new(Method::GET, "/v1/products/{product}/releases/{version}", releases::show),
        Route::new(Method::DELETE, "/v1/products/{product}/releases/{version}", releases::withdraw),
        Route::new(Method::PUT, "/v1/products/{product}/releases/{version}/content", content::put),
        Route::new(Method::POST, "/v1/products/{product}/releases/{version}/uploads", uploads::begin),
        Route::new(Method::POST, "/v1/uploads/{upload}/missing", uploads::missing),
        Route::new(Method::POST, "/v1/uploads/{upload}/chunks", uploads::chunks),
        Route::new(Method::POST, "/v1/uploads/{upload}/commit", uploads::commit),
        Route::new(Method::GET, "/v1/uploads", uploads::list),
        Route::new(Method::DELETE, "/v1/uploads/{upload}", uploads::abort),
        Route::new(Method::GET, "/v1/manifests/{manifest}", manifests::show),
        Route::new(Method::GET, "/v1/manifests/{manifest}/nodes/{node}", manifests::node),
        Route::new(Method::GET, "/v1/packs/{name}", packs::show),
        Route::new(Method::GET, "/v1/products/{product}/channels", channels::list),
        Route::new(Method::GET, "/v1/products/{product}/channels/{channel}", channels::show),
        Route::new(Method::PUT, "/v1/products/{product}/channels/{channel}", channels::put),
        Route::new(Method::DELETE, "/v1/products/{product}/channels/{channel}", channels::remove),
        Route::new(Method::GET, "/v1/products/{product}/channels/{channel}/history", channels::history),
        Route::new(Method::GET, "/v1/products/{product}/patches", patches::list),
        Route::new(Method::POST, "/v1/products/{product}/releases/{version}/patches", patches::create),
        Route::new(Method::POST, "/v1/tokens", tokens::create),
        Route::new(Method::GET, "/v1/tokens", tokens::list),
        Route::new(Method::DELETE, "/v1/tokens/{id}", tokens::revoke),
        Route::new(Method::GET, "/v1/token", tokens::own),
        Route::new(Method::POST, "/v1/join-tokens", tokens::create_join),
        Route::new(Method::GET, "/v1/join-tokens", tokens::list_join),
        Route::new(Method::DELETE, "/v1/join-tokens/{id}", tokens::revoke_join),
        Route::new(Method::GET, "/v1/nodes", nodes::list),
        Route::new(Method::POST, "/v1/nodes/{id}/revoke", nodes::revoke),
        Route::new(Method::POST, "/v1/enroll", nodes::enroll),
        Route::new(Method::GET, "/tuf/{*path}", tuf::file),
    ]
}

/// Router of the whole API.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(|| async { ApiError::not_found("such address") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(axum::middleware::from_fn(drain::layer))
        .layer(axum::middleware::from_fn_with_state(app.clone(), request_id::layer))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::origin::{Places, Tuning};

    #[tokio::test]
    async fn detached_work_runs_to_its_end_when_nobody_waits_for_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let places = Places::in_dir(directory.path());
        let origin = Origin::open(&places, Tuning::default()).await.expect("an origin");
        let app = App::new(origin, Arc::default());
        let done = Arc::new(AtomicBool::new(false));
        let sign = done.clone();
        drop(app.detached(async move {
            tokio::task::yield_now().await;
            sign.store(true, Ordering::Relaxed);
            Ok(())
        }));
        app.idle().await;
        assert!(done.load(Ordering::Relaxed));
    }
}
