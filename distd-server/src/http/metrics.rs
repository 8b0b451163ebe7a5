//! `/metrics`: counters of this process, with label values from closed sets.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, header};
use axum::response::IntoResponse;
use distd_core::error::Chain;
use distd_peer::metrics::MetricsText;

use super::App;
use super::route::{Route, routes};

pub(super) fn routes() -> Vec<Route> {
    routes![metrics]
}

/// Number of answers, and the seconds until each of them began.
#[derive(Clone, Copy, Default)]
struct Answers {
    count: u64,
    seconds: f64,
}

/// Counters of the HTTP side.
#[derive(Default)]
pub(super) struct Metrics {
    /// Answers by method, route and status, each from a closed set.
    answers: Mutex<BTreeMap<(String, String, u16), Answers>>,
    /// Connections that are open now.
    pub(super) connections_open: AtomicU64,
    /// Connections accepted.
    pub(super) connections: AtomicU64,
    /// Connections refused or closed because there were too many.
    pub(super) connections_refused: AtomicU64,
    /// TLS handshakes that failed or took too long.
    pub(super) handshakes_failed: AtomicU64,
    /// Releases made by this process.
    pub(super) releases: AtomicU64,
    /// Bytes of chunk records and whole files taken in.
    pub(super) received_bytes: AtomicU64,
    /// Bytes of packs sent.
    pub(super) pack_bytes_sent: AtomicU64,
}

impl Metrics {
    pub(super) fn count(&self, method: &Method, route: &str, status: u16, elapsed: Duration) {
        // A caller can invent methods; they share one label value, so that the table stays small.
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "PUT" | "POST" | "DELETE") => known,
            _ => "other",
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.entry((method.to_owned(), route.to_owned(), status)).or_default();
        answer.count += 1;
        answer.seconds += elapsed.as_secs_f64();
    }
}

/// Sends the metrics in Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "state", responses(
    (status = 200, description = "Metrics in Prometheus text format", body = String, content_type = "text/plain")
))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text(&app).await)
}

async fn text(app: &App) -> String {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut out = MetricsText::default();
    out.head("distd_build_info", "gauge", "Version of distd-server.");
    let _ = writeln!(out.0, "distd_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));

    let m = &app.metrics;
    let answers = m.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    out.head("distd_http_requests_total", "counter", "Requests answered, by method, route and status.");
    for ((method, route, status), answer) in &answers {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        let _ = writeln!(out.0, "distd_http_requests_total{{{labels}}} {}", answer.count);
    }
    out.head("distd_http_request_seconds_total", "counter", "Time until the response began, seconds.");
    for ((method, route, status), answer) in &answers {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        let _ = writeln!(out.0, "distd_http_request_seconds_total{{{labels}}} {:.6}", answer.seconds);
    }
    out.one("distd_http_connections_open", "gauge", "HTTP connections open.", load(&m.connections_open));
    for (name, help, counter) in [
        ("distd_http_connections_total", "HTTP connections accepted.", &m.connections),
        (
            "distd_http_connections_refused_total",
            "HTTP connections refused or closed because there were too many.",
            &m.connections_refused,
        ),
        ("distd_http_handshakes_failed_total", "TLS handshakes that failed.", &m.handshakes_failed),
        ("distd_releases_made_total", "Releases made by this process.", &m.releases),
        ("distd_ingest_bytes_total", "Bytes of chunks and files received.", &m.received_bytes),
        ("distd_http_pack_bytes_total", "Bytes of packs sent over HTTP.", &m.pack_bytes_sent),
    ] {
        out.one(name, "counter", help, load(counter));
    }

    let s = &app.spooling;
    for (name, help, value) in [
        ("distd_http_bodies", "Upload bodies that are being received or wait for a place.", s.bodies()),
        ("distd_http_bodies_memory_bytes", "Bytes of memory that upload bodies take.", s.held_bytes()),
        ("distd_http_bodies_disk_bytes", "Bytes of upload bodies in files without a name.", s.disk_bytes()),
    ] {
        out.one(name, "gauge", help, value);
    }

    let c = app.origin.ingest().compaction();
    for (name, help, counter) in [
        ("distd_compacted_packs_total", "Packs emptied because they were mostly unused.", &c.packs),
        (
            "distd_compacted_bytes_total",
            "Bytes of chunks copied out of packs to empty them.",
            &c.copied_bytes,
        ),
        ("distd_compaction_deleted_bytes_total", "Bytes of emptied packs deleted.", &c.deleted_bytes),
    ] {
        out.one(name, "counter", help, load(counter));
    }

    let p = &app.origin.patches().counters;
    out.head("distd_patch_sets_total", "counter", "Patch sets that this process tried to make, by result.");
    for (result, counter) in [("ready", &p.ready), ("empty", &p.empty), ("failed", &p.failed)] {
        let _ = writeln!(out.0, "distd_patch_sets_total{{result=\"{result}\"}} {}", load(counter));
    }
    for (name, help, counter) in [
        ("distd_patch_bytes_total", "Bytes of the patch sets made.", &p.bytes),
        ("distd_patch_chunk_bytes_total", "Bytes of the chunks that those patch sets replace.", &p.packed),
        (
            "distd_patches_wrong_total",
            "Patches that did not rebuild their target and were not used.",
            &p.wrong,
        ),
    ] {
        out.one(name, "counter", help, load(counter));
    }

    out.serve(&app.counters);

    let db = app.origin.db();
    // Every upload expires before the largest time, so this selects all open ones.
    let state = tokio::try_join!(
        db.uploads_expired(i64::MAX),
        db.pack_bytes(),
        db.emptied_bytes(),
        db.nodes(),
        db.patch_sets_waiting()
    );
    out.one("distd_database_up", "gauge", "Whether the database answers.", u64::from(state.is_ok()));
    match state {
        Ok((uploads, bytes, emptied, nodes, patch_sets)) => {
            out.one("distd_uploads_open", "gauge", "Uploads open.", uploads.len() as u64);
            out.one("distd_patch_sets_waiting", "gauge", "Patch sets queued or being made.", patch_sets);
            out.one("distd_pack_bytes", "gauge", "Bytes of all packs in the object store.", bytes);
            out.one(
                "distd_emptied_pack_bytes",
                "gauge",
                "Bytes of emptied packs that are not deleted yet.",
                emptied,
            );
            let active = nodes.iter().filter(|node| node.revoked.is_none()).count() as u64;
            out.one("distd_nodes", "gauge", "Nodes enrolled and not revoked.", active);
        }
        Err(error) => {
            tracing::warn!(
                error = %Chain(&error),
                "could not read the metrics of the database; they are left out"
            );
        }
    }
    out.0
}
