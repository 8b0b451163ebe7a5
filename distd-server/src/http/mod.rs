//! HTTP API of the origin (docs/http-api.md). One file for each resource; `error.rs` decides what a
//! failure looks like to the caller.
//!
//! No length from a caller is trusted: each route bounds its body and reads it in pieces. A change
//! of the database or the store runs in a task of its own, which goes on if the connection ends.

mod audit;
mod auth;
mod body;
mod channels;
mod content;
mod ddi;
mod drain;
mod error;
mod fleet;
mod gateway;
mod gc;
mod grants;
mod groups;
mod manifests;
mod metrics;
mod nodes;
mod objects;
mod openapi;
mod openpgp;
mod packs;
mod passing;
mod patches;
mod products;
mod quotas;
mod receipts;
mod releases;
mod request_id;
mod rollouts;
mod route;
mod serve;
mod spool;
mod state;
mod tokens;
mod tuf;
#[cfg(feature = "ui")]
mod ui;
mod uploads;
mod webhooks;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use distd_core::ManifestId;
use distd_core::manifest::Manifest;
use distd_peer::gateway::Remembered;
use distd_peer::serve::ServeCounters;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};
use tokio_util::task::TaskTracker;

pub use auth::Scope;
pub use ddi::DdiOptions;
use error::ApiError;
pub use passing::{Passing, ReplicaHttp};
use route::Route;
pub use serve::serve;
#[cfg(feature = "ui")]
pub use ui::{Provider, ProviderError};

use crate::origin::Origin;

/// Memory for the chunk lists of commits, MiB, shared by all requests. It holds one of the longest
/// lists, or many of the usual 1 to 4 MiB.
const LISTS_MIB: u32 = 256;

/// State that all request handlers share.
pub struct App {
    origin: Arc<Origin>,
    counters: Arc<ServeCounters>,
    metrics: metrics::Metrics,
    tasks: TaskTracker,
    lists: Arc<Semaphore>,
    /// Turn of the one who reads every manifest, which takes memory for each release.
    collections: Semaphore,
    spooling: Arc<spool::Spooling>,
    /// Memory of the gateway.
    remembered: Remembered,
    /// Settings of hawkBit's DDI; `None` where it is off.
    ddi: Option<DdiOptions>,
    /// Part of this process among replicas; `None` where it is alone.
    replica: Option<ReplicaHttp>,
    #[cfg(feature = "ui")]
    live: ui::Live,
    #[cfg(feature = "ui")]
    sums: ui::Sums,
    /// Provider at which people sign in; `None` where it is off.
    #[cfg(feature = "ui")]
    provider: Option<Provider>,
}

/// Parts of the HTTP side that are off unless settings switch them on.
#[derive(Default)]
pub struct HttpOptions {
    /// Part of this process among replicas.
    pub replica: Option<ReplicaHttp>,
    /// Settings of hawkBit's DDI.
    pub ddi: Option<DdiOptions>,
    /// Provider at which people sign in.
    #[cfg(feature = "ui")]
    pub provider: Option<Provider>,
}

impl App {
    /// Creates the API of `origin`. `counters` are those of the QUIC side.
    pub fn new(origin: Arc<Origin>, counters: Arc<ServeCounters>, options: HttpOptions) -> Arc<Self> {
        Arc::new(Self {
            origin,
            counters,
            metrics: metrics::Metrics::default(),
            tasks: TaskTracker::new(),
            lists: Arc::new(Semaphore::new(LISTS_MIB as usize)),
            collections: Semaphore::new(1),
            spooling: Arc::default(),
            remembered: Remembered::default(),
            ddi: options.ddi,
            replica: options.replica,
            #[cfg(feature = "ui")]
            live: ui::Live::default(),
            #[cfg(feature = "ui")]
            sums: ui::Sums::default(),
            #[cfg(feature = "ui")]
            provider: options.provider,
        })
    }

    /// Ends the streams of open pages, which would not end by themselves.
    pub fn end_streams(&self) {
        #[cfg(feature = "ui")]
        self.live.end();
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

    /// Turn for a report of a collection; waits while another one is made.
    async fn gc_turn(&self) -> SemaphorePermit<'_> {
        self.collections.acquire().await.expect("the semaphore is never closed")
    }

    /// Permit for a chunk list of `bytes` bytes in memory; waits while other lists take the room.
    async fn list_room(&self, bytes: u64) -> OwnedSemaphorePermit {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(LISTS_MIB).clamp(1, LISTS_MIB);
        self.lists.clone().acquire_many_owned(mib).await.expect("the semaphore is never closed")
    }

    /// Manifest of a release or patch set, from memory or from the store.
    async fn manifest(&self, id: ManifestId) -> Result<Arc<Manifest>, ApiError> {
        Ok(self.origin.manifests().load(&id).await?.manifest.clone())
    }
}

/// All routes of the API: those of each resource.
fn routes() -> impl Iterator<Item = Route> {
    let resources = [
        state::routes(),
        metrics::routes(),
        openapi::routes(),
        products::routes(),
        releases::routes(),
        content::routes(),
        uploads::routes(),
        manifests::routes(),
        packs::routes(),
        channels::routes(),
        patches::routes(),
        gc::routes(),
        quotas::routes(),
        webhooks::routes(),
        tokens::routes(),
        ddi::token_routes(),
        nodes::routes(),
        fleet::routes(),
        groups::routes(),
        grants::routes(),
        rollouts::routes(),
        audit::routes(),
        receipts::routes(),
        tuf::routes(),
        gateway::routes(),
        openpgp::routes(),
    ];
    resources.into_iter().flatten()
}

/// Router of the whole API.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        router = router.route(&route.path, route.handler);
    }
    let router = ddi::add_to(router);
    #[cfg(feature = "ui")]
    let router = ui::add_to(router);
    router
        .fallback(|| async { ApiError::not_found("such address") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(axum::middleware::from_fn_with_state(app.clone(), passing::layer))
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
        let app = App::new(origin, Arc::default(), HttpOptions::default());
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
