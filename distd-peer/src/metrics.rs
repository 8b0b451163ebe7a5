//! Metrics for operators in Prometheus' text format, and an HTTP listener for them on the loopback
//! interface.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::apt;
use crate::clock::unix_now;
use crate::gateway;
use crate::net::MeterReading;
use crate::parents::Parents;
use crate::relay::Relay;
use crate::serve::ServeCounters;
use crate::share::ShareCounters;

/// Maximum number of scrapers connected at once.
const CONNECTIONS_MAX: usize = 8;

/// Time that a scraper may take to send its request. The whole exchange may take twice as long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Silence after which a relay's parent counts as down, seconds. The relay asks its parent every 30
/// s.
const PARENT_SILENT_SECONDS: u64 = 90;

/// Reason why the metrics listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Other hosts could connect to this address.
    #[error("metrics are served on loopback only: {0} is not a loopback address; use 127.0.0.1:{port}", port = .0.port())]
    NotLoopback(SocketAddr),
    /// The system refused to listen on this address.
    #[error("could not listen for metrics on {0}")]
    Bind(SocketAddr, #[source] std::io::Error),
}

/// Metrics in Prometheus' text format.
#[derive(Debug, Default)]
pub struct MetricsText(pub String);

impl MetricsText {
    /// Writes the header (help and type) of the samples that follow, all named `name`.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes one number without labels.
    pub fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// Writes counters without labels; each is (name, help, value).
    pub fn counters(&mut self, counters: &[(&str, &str, &AtomicU64)]) {
        for (name, help, counter) in counters {
            self.one(name, "counter", help, counter.load(Ordering::Relaxed));
        }
    }

    /// Writes the counters of a node's answering side.
    pub fn serve(&mut self, c: &ServeCounters) {
        self.counters(&[
            ("distd_quic_connections_total", "QUIC connections accepted.", &c.connections),
            ("distd_quic_connections_refused_total", "QUIC connections refused.", &c.connections_refused),
            ("distd_quic_batches_total", "Batches of chunks answered.", &c.batches),
            ("distd_quic_batches_choked_total", "Batches choked.", &c.choked),
            (
                "distd_quic_chunks_leased_total",
                "Chunks refused because a neighbour of the asker fetches or has them.",
                &c.leased,
            ),
            (
                "distd_quic_nodes_alone_total",
                "Nodes that got none of the chunks left to their neighbours.",
                &c.alone,
            ),
            ("distd_quic_chunks_total", "Chunks served.", &c.chunks),
            ("distd_quic_chunk_bytes_total", "Packed chunk bytes served.", &c.chunk_bytes),
            ("distd_quic_nodes_total", "Manifest nodes served.", &c.nodes),
            ("distd_quic_control_bytes_total", "Bytes of metadata and nodes served.", &c.control_bytes),
            ("distd_quic_breaches_total", "Streams ended because a peer broke the protocol.", &c.breaches),
            ("distd_quic_unknown_frames_total", "Frames of unknown type ignored.", &c.unknown_frames),
        ]);
    }

    /// Writes the counters of a proxy for apt.
    fn apt(&mut self, proxy: &apt::Proxy) {
        self.counters(&proxy.counters.all());
        self.head("distd_apt_received_bytes_total", "counter", "Bytes of bodies received, by sender.");
        for (source, bytes) in proxy.received() {
            let _ = writeln!(self.0, "distd_apt_received_bytes_total{{source=\"{source}\"}} {bytes}");
        }
        let store = proxy.store();
        self.one("distd_apt_store_bytes", "gauge", "Bytes of the cache of packages.", store.bytes());
        self.counters(&[
            (
                "distd_apt_evicted_total",
                "Files removed from the cache to make room.",
                &store.counters.evicted,
            ),
            (
                "distd_apt_rotten_total",
                "Files of the cache that were damaged on disk.",
                &store.counters.rotten,
            ),
        ]);
    }

    /// Writes the traffic fetched, by kind of sender; neighbours only if `neighbours` is given.
    fn fetched(&mut self, parents: &Parents, neighbours: Option<MeterReading>) {
        let (relay, origin) = parents.readings();
        let sources = [("relay", Some(relay)), ("origin", Some(origin)), ("neighbour", neighbours)];
        for (name, help, number) in [
            (
                "distd_fetch_bytes_total",
                "Bytes received, by kind of sender.",
                (|reading| reading.bytes_in) as fn(MeterReading) -> u64,
            ),
            ("distd_fetch_requests_total", "Streams opened, by kind of peer.", |reading| reading.requests),
        ] {
            self.head(name, "counter", help);
            for (source, reading) in sources {
                if let Some(reading) = reading {
                    let _ = writeln!(self.0, "{name}{{source=\"{source}\"}} {}", number(reading));
                }
            }
        }
        let quarantined = parents.quarantined(unix_now()) as u64;
        self.one(
            "distd_peers_quarantined",
            "gauge",
            "Nodes in quarantine because they sent wrong bytes.",
            quarantined,
        );
    }
}

/// Returns the metrics of a relay.
pub fn of_relay(relay: &Relay, served: &ServeCounters, apt: Option<&apt::Proxy>) -> String {
    let mut out = MetricsText::default();
    out.head("distd_build_info", "gauge", "Version of distd-peer.");
    let _ = writeln!(out.0, "distd_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    out.serve(served);
    out.fetched(relay.parents(), None);
    let (fetched, again) = relay.fetched();
    let heard = relay.heard();
    let is_up = u64::from(unix_now().saturating_sub(heard) <= PARENT_SILENT_SECONDS);
    out.one("distd_relay_parent_up", "gauge", "1 when a parent answered in the last 90 s.", is_up);
    out.one("distd_relay_parent_heard_seconds", "gauge", "When a parent answered last, unix seconds.", heard);
    out.one("distd_relay_chunks_fetched", "gauge", "Chunks fetched from parents, of open swarms.", fetched);
    out.one(
        "distd_relay_chunks_fetched_again",
        "gauge",
        "Chunks fetched from parents that were here already, of open swarms.",
        again,
    );
    let store = relay.store();
    out.one("distd_store_bytes", "gauge", "Bytes of the cache.", store.bytes());
    out.counters(&[
        ("distd_relay_swarms_opened_total", "Swarms opened.", &relay.counters.swarms_opened),
        (
            "distd_relay_metadata_stale_total",
            "Metadata questions answered from kept metadata because no parent answered.",
            &relay.counters.metadata_stale,
        ),
        (
            "distd_store_unstored_total",
            "Chunks that could not be stored on disk and were served from memory.",
            &store.counters.unstored,
        ),
        ("distd_store_rotten_total", "Chunks that were damaged on the disk.", &store.counters.rotten),
        (
            "distd_store_evicted_segments_total",
            "Segments evicted to make room.",
            &store.counters.evicted_segments,
        ),
    ]);
    if let Some(apt) = apt {
        out.apt(apt);
    }
    out.0
}

/// Returns the metrics of a device that serves its neighbours.
pub fn of_device(
    parents: &Parents,
    neighbours: MeterReading,
    shared: &ShareCounters,
    served: &ServeCounters,
    gateway: Option<&gateway::Counters>,
    apt: Option<&apt::Proxy>,
) -> String {
    let mut out = MetricsText::default();
    out.head("distd_build_info", "gauge", "Version of distd.");
    let _ = writeln!(out.0, "distd_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    out.serve(served);
    out.fetched(parents, Some(neighbours));
    out.counters(&[(
        "distd_share_misses_total",
        "Chunks that were unreadable or damaged when read, and not sent.",
        &shared.misses,
    )]);
    if let Some(gateway) = gateway {
        out.counters(&[
            ("distd_gateway_requests_total", "Requests to the gateway.", &gateway.requests),
            (
                "distd_gateway_refused_total",
                "Requests that the gateway answered with a status of 400 or above.",
                &gateway.refused,
            ),
            (
                "distd_gateway_sent_bytes_total",
                "Bytes of bodies that the gateway handed to callers.",
                &gateway.sent_bytes,
            ),
            (
                "distd_gateway_connections_refused_total",
                "Connections that the gateway refused because too many were open.",
                &gateway.connections_refused,
            ),
        ]);
    }
    if let Some(apt) = apt {
        out.apt(apt);
    }
    out.0
}

/// Opens a listener on a loopback address.
///
/// # Errors
/// [`MetricsError`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(MetricsError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|e| MetricsError::Bind(address, e))
}

/// Answers `GET /metrics` with the current result of `text`, until the future is dropped.
pub async fn run(listener: TcpListener, text: impl Fn() -> String + Send + Sync + 'static) {
    let (text, room) = (Arc::new(text), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PATIENCE / 100).await;
            continue;
        };
        let text = text.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &*text);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let serving = server.serve_connection(TokioIo::new(stream), service);
            // A timeout or an error ends only this scrape.
            let _ = tokio::time::timeout(PATIENCE * 2, serving).await;
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, text: &dyn Fn() -> String) -> Response<String> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, text()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
