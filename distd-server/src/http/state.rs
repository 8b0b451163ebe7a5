//! Health, readiness and version of the origin.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_core::api::{Ready, Version};
use distd_peer::clock::unix_now;
use distd_peer::trust::tuf::wire::end_of;

use super::App;
use super::route::{Route, routes};
use crate::tuf::MetadataStore;

pub(super) fn routes() -> Vec<Route> {
    routes![healthz, readyz, version]
}

/// Free bytes above the disks' reserve that an upload needs: one pack and the database. With less,
/// the origin is not ready.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Answers as long as the process runs.
#[utoipa::path(get, path = "/healthz", tag = "state", responses(
    (status = 200, description = "The process runs", body = String, content_type = "text/plain")
))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Tells whether requests can be expected to work.
#[utoipa::path(get, path = "/readyz", tag = "state", responses(
    (status = 200, description = "Everything works", body = Ready),
    (status = 503, description = "A part does not work", body = Ready)
))]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Ready>) {
    let origin = &app.origin;
    let say = |ok: bool, otherwise| if ok { "ok" } else { otherwise };
    let (database, store, timestamp) = tokio::join!(
        origin.db().ping(),
        origin.ingest().store().check(),
        origin.metadata().get("timestamp.json")
    );
    let failed = |error: &(dyn std::error::Error + 'static)| {
        tracing::warn!(error, "a part of the origin is not ready")
    };
    if let Err(error) = &database {
        failed(error);
    }
    if let Err(error) = &store {
        failed(error);
    }
    let metadata = match timestamp {
        Err(error) => {
            failed(&error);
            "cannot be read"
        }
        Ok(None) => "missing",
        Ok(Some(json)) => match end_of(&json) {
            None => "cannot be read",
            Some(end) if end <= unix_now() => "expired: devices refuse it",
            Some(_) => "ok",
        },
    };
    let space = say(origin.ingest().check_room(FREE_BYTES_MIN).is_ok(), "the disk is full up to its reserve");
    let database = say(database.is_ok(), "does not answer");
    let store = say(store.is_ok(), "does not answer");
    let ready = [database, store, metadata, space].iter().all(|s| *s == "ok");
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (
        status,
        Json(Ready {
            ready,
            database: database.into(),
            store: store.into(),
            metadata: metadata.into(),
            space: space.into(),
        }),
    )
}

/// Sends the name and versions of the program.
#[utoipa::path(get, path = "/v1/version", tag = "state", responses((status = 200, body = Version)))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { name: "distd-server".into(), version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() })
}
