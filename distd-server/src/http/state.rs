//! Whether the origin lives, is ready, and what it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use distd_peer::clock::unix_now;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use crate::tuf::MetadataStore;

/// Free bytes above the disks' reserve below which no upload can be expected to work: one pack and the database.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// What works.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// All of it.
    ready: bool,
    /// `ok`, or what is wrong.
    database: &'static str,
    /// `ok`, or what is wrong.
    store: &'static str,
    /// `ok`, or what is wrong.
    metadata: &'static str,
    /// `ok`, or what is wrong.
    space: &'static str,
}

/// What answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// `distd-server`.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// Version of this API.
    api: &'static str,
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "state", responses(
    (status = 200, description = "It runs", body = String, content_type = "text/plain")
))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Requests can be expected to work.
#[utoipa::path(get, path = "/readyz", tag = "state", responses(
    (status = 200, description = "Everything works", body = Ready),
    (status = 503, description = "Something does not", body = Ready)
))]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Ready>) {
    let origin = &app.origin;
    let say = |ok: bool, otherwise| if ok { "ok" } else { otherwise };
    let (database, store, timestamp) = tokio::join!(
        origin.db().ping(),
        origin.ingest().store().check(),
        origin.metadata().get("timestamp.json")
    );
    let failed = |error: &(dyn std::error::Error + 'static)| tracing::warn!(error, "not ready");
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
        Ok(Some(json)) => match expiry(&json) {
            None => "cannot be read",
            Some(end) if end <= unix_now() => "expired: devices refuse it",
            Some(_) => "ok",
        },
    };
    let space =
        say(origin.ingest().check_room(FREE_BYTES_MIN).is_ok(), "the disk is full but for its reserve");
    let database = say(database.is_ok(), "does not answer");
    let store = say(store.is_ok(), "does not answer");
    let ready = [database, store, metadata, space].iter().all(|s| *s == "ok");
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, database, store, metadata, space }))
}

/// End of a TUF document, unix seconds.
fn expiry(json: &[u8]) -> Option<u64> {
    let document: serde_json::Value = serde_json::from_slice(json).ok()?;
    let end: jiff::Timestamp = document.get("signed")?.get("expires")?.as_str()?.parse().ok()?;
    u64::try_from(end.as_second()).ok()
}

/// What answers.
#[utoipa::path(get, path = "/v1/version", tag = "state", responses((status = 200, body = Version)))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { name: "distd-server", version: env!("CARGO_PKG_VERSION"), api: "v1" })
}
