//! `/metrics`: counters of this process, with label values from closed sets.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{Method, header};
use axum::response::IntoResponse;
use distd_core::api::{FleetStatus, RolloutStage};
use distd_core::error::Chain;
use distd_core::fleet::state::UpdateState;
use distd_peer::clock::unix_now;
use distd_peer::metrics::{CONTENT_TYPE, CountersBy, DurationsBy, Labels, Scrape, certificate_end};

use super::App;
use super::route::{Route, routes};
use crate::db::DbError;
use crate::origin::{FleetSelection, Origin, signed};

pub(super) fn routes() -> Vec<Route> {
    routes![metrics]
}

/// Age up to which sums over the fleet are given again, so that scrapes cost the database little:
/// anybody may ask.
const FLEET_AGAIN: Duration = Duration::from_secs(5);

/// Counters of the HTTP side.
pub(super) struct Metrics {
    /// Answers by method, route and status, each from a closed set.
    answers: CountersBy,
    /// Times until answers began, by route and class of status.
    answer_seconds: DurationsBy,
    /// The newest sums over the fleet, and when they were made.
    fleet: tokio::sync::Mutex<Option<(Instant, FleetStatus)>>,
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

impl Default for Metrics {
    fn default() -> Self {
        Self {
            answers: CountersBy::default(),
            answer_seconds: DurationsBy::short(),
            fleet: tokio::sync::Mutex::default(),
            connections_open: AtomicU64::default(),
            connections: AtomicU64::default(),
            connections_refused: AtomicU64::default(),
            handshakes_failed: AtomicU64::default(),
            releases: AtomicU64::default(),
            received_bytes: AtomicU64::default(),
            pack_bytes_sent: AtomicU64::default(),
        }
    }
}

impl Metrics {
    pub(super) fn count(&self, method: &Method, route: &str, status: u16, elapsed: Duration) {
        // A caller can invent methods; they share one label value, so that the table stays small.
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "PUT" | "POST" | "DELETE") => known,
            _ => "other",
        };
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        let route = || Cow::from(route.to_owned());
        let labels = vec![
            ("method", Cow::from(method.to_owned())),
            ("route", route()),
            ("status", status.to_string().into()),
        ];
        self.answers.add(&labels, 1);
        self.answer_seconds.observe(&vec![("route", route()), ("class", class.into())], elapsed);
    }

    /// Sums over the fleet, at most [`FLEET_AGAIN`] old.
    async fn fleet(&self, origin: &Origin) -> Result<FleetStatus, DbError> {
        let mut newest = self.fleet.lock().await;
        if let Some((made, status)) = newest.as_ref()
            && made.elapsed() < FLEET_AGAIN
        {
            return Ok(status.clone());
        }
        let all = FleetSelection::default();
        let status = origin.fleet_status(None, None, &all, signed(unix_now())).await?;
        *newest = Some((Instant::now(), status.clone()));
        Ok(status)
    }
}

/// Sends the metrics in Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "state", responses(
    (status = 200, description = "Metrics in Prometheus text format", body = String, content_type = "text/plain")
))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(&app).await)
}

fn by(label: &'static str, word: &'static str) -> Labels {
    vec![(label, Cow::from(word))]
}

async fn text(app: &App) -> String {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut out = Scrape::of("distd-server");

    let m = &app.metrics;
    out.counted_by(
        "distd_http_requests_total",
        "Requests answered, by method, route and status.",
        &m.answers,
    );
    out.durations_by(
        "distd_http_request_seconds",
        "Time until the response began, by route and class of status, seconds.",
        &m.answer_seconds,
    );
    out.gauge("distd_http_connections_open", "HTTP connections open.", load(&m.connections_open));
    out.counters(&[
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
    ]);

    let s = &app.spooling;
    for (name, help, value) in [
        ("distd_http_bodies", "Upload bodies that are being received or wait for a place.", s.bodies()),
        ("distd_http_bodies_memory_bytes", "Bytes of memory that upload bodies take.", s.held_bytes()),
        ("distd_http_bodies_disk_bytes", "Bytes of upload bodies in files without a name.", s.disk_bytes()),
    ] {
        out.gauge(name, help, value);
    }

    let c = app.origin.ingest().compaction();
    out.counters(&[
        ("distd_compacted_packs_total", "Packs emptied because they were mostly unused.", &c.packs),
        (
            "distd_compacted_bytes_total",
            "Bytes of chunks copied out of packs to empty them.",
            &c.copied_bytes,
        ),
        ("distd_compaction_deleted_bytes_total", "Bytes of emptied packs deleted.", &c.deleted_bytes),
    ]);

    let p = &app.origin.patches().counters;
    let results = [("ready", &p.ready), ("empty", &p.empty), ("failed", &p.failed)];
    out.counters_by(
        "distd_patch_sets_total",
        "Patch sets that this process tried to make, by result.",
        results.map(|(word, counter)| (by("result", word), load(counter))),
    );
    out.counters(&[
        ("distd_patch_bytes_total", "Bytes of the patch sets made.", &p.bytes),
        ("distd_patch_chunk_bytes_total", "Bytes of the chunks that those patch sets replace.", &p.packed),
        (
            "distd_patches_wrong_total",
            "Patches that did not rebuild their target and were not used.",
            &p.wrong,
        ),
    ]);
    out.durations_by(
        "distd_patch_make_seconds",
        "Time that making a patch set took, by kind and result, seconds.",
        &p.seconds,
    );
    out.durations_by(
        "distd_publish_seconds",
        "Time that signing and storing took, by what was published, seconds.",
        app.origin.publications(),
    );

    app.origin.measure_webhooks(&mut out);
    out.serve(&app.counters);
    out.disks(app.origin.directories());
    let realm = app.origin.realm();
    out.certificates([
        ("origin", certificate_end(&app.origin.credentials().certificate())),
        ("ca", realm.ca_end()),
    ]);
    out.metadata_ends(app.origin.metadata_ends().await);
    state(app, &mut out).await;
    out.text()
}

/// Adds the numbers that the database knows.
async fn state(app: &App, out: &mut Scrape) {
    let db = app.origin.db();
    // Every upload expires before the largest time, so this selects all open ones.
    let state = tokio::try_join!(
        db.uploads_expired(i64::MAX),
        db.pack_bytes(),
        db.emptied_bytes(),
        db.nodes(),
        db.patch_sets_waiting(),
        db.rollouts_under_way(),
        db.delivery_counts(),
        app.metrics.fleet(&app.origin)
    );
    out.gauge("distd_database_up", "Whether the database answers.", u64::from(state.is_ok()));
    match state {
        Ok((uploads, bytes, emptied, nodes, patch_sets, rollouts, (waiting, given_up), fleet)) => {
            out.gauge("distd_uploads_open", "Uploads open.", uploads.len() as u64);
            out.gauge("distd_patch_sets_waiting", "Patch sets queued or being made.", patch_sets);
            out.gauge("distd_pack_bytes", "Bytes of all packs in the object store.", bytes);
            out.gauge(
                "distd_emptied_pack_bytes",
                "Bytes of emptied packs that are not deleted yet.",
                emptied,
            );
            let active = nodes.iter().filter(|node| node.revoked.is_none()).count() as u64;
            out.gauge("distd_nodes", "Nodes enrolled and not revoked.", active);
            let stages = [RolloutStage::Open, RolloutStage::Paused, RolloutStage::Halted];
            let of = |stage| rollouts.iter().filter(|row| row.stage == stage).count() as u64;
            out.gauges(
                "distd_rollouts",
                "Rollouts that have not ended, by state.",
                stages.map(|stage| (by("state", stage.as_str()), of(stage))),
            );
            out.gauges(
                "distd_webhook_deliveries",
                "Events for webhooks that wait, and that were given up in the last 30 days.",
                [("waiting", waiting), ("given_up", given_up)]
                    .map(|(word, count)| (by("state", word), count)),
            );
            let FleetStatus { contact, mut update, .. } = fleet;
            let contacts =
                [("online", contact.online), ("offline", contact.offline), ("unknown", contact.unknown)];
            out.gauges(
                "distd_devices",
                "Devices by whether the origin has heard of them within 3 hours.",
                contacts.map(|(word, devices)| (by("contact", word), devices)),
            );
            out.gauges(
                "distd_device_updates",
                "Devices by the state of their update, once for each channel that they follow.",
                UpdateState::ALL.iter().map(|state| (by("state", state.as_str()), *update.of(*state))),
            );
        }
        Err(error) => {
            tracing::warn!(
                error = %Chain(&error),
                "could not read the metrics of the database; they are left out"
            );
        }
    }
}
