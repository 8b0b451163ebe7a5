//! Metrics for operators in Prometheus' text format, and an HTTP listener for them on the loopback
//! interface.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text;
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::apt;
use crate::clock::unix_now;
use crate::filesystem::Space;
use crate::gateway;
use crate::net::MeterReading;
use crate::parents::Parents;
use crate::relay::Relay;
use crate::serve::ServeCounters;
use crate::share::ShareCounters;
use crate::trust::identity::CertInfo;
use crate::trust::tls::Credentials;
use crate::trust::tuf::wire::end_of;

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

/// Upper bounds of the classes of [`Durations::short`], seconds.
const SHORT: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Upper bounds of the classes of [`Durations::long`], seconds.
const LONG: [f64; 11] = [0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

/// Labels of one sample. Each value comes from a closed set: a value that a stranger could invent
/// would make the table grow without bound.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// Durations of a kind of work, counted by classes.
#[derive(Clone, Debug)]
pub struct Durations(Histogram);

impl Durations {
    /// Durations of answers: classes from a millisecond to half a minute.
    pub fn short() -> Self {
        Self(Histogram::new(SHORT))
    }

    /// Durations of work: classes from a tenth of a second to a day.
    pub fn long() -> Self {
        Self(Histogram::new(LONG))
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// Durations of a kind of work, counted by classes and by labels.
#[derive(Clone, Debug)]
pub struct DurationsBy(Family<Labels, Histogram, fn() -> Histogram>);

impl DurationsBy {
    /// As [`Durations::short`].
    pub fn short() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(SHORT)))
    }

    /// As [`Durations::long`].
    pub fn long() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(LONG)))
    }

    /// Counts one duration.
    pub fn observe(&self, labels: &Labels, duration: Duration) {
        self.0.get_or_create(labels).observe(duration.as_secs_f64());
    }
}

/// Counters of a kind, by labels.
#[derive(Clone, Debug, Default)]
pub struct CountersBy(Family<Labels, Counter>);

impl CountersBy {
    /// Adds to the counter with these labels.
    pub fn add(&self, labels: &Labels, more: u64) {
        self.0.get_or_create(labels).inc_by(more);
    }
}

/// The metrics of one scrape.
#[derive(Debug)]
pub struct Scrape(Registry);

impl Scrape {
    /// Begins the metrics of a program.
    pub fn of(program: &str) -> Self {
        let mut scrape = Self(Registry::default());
        let version = vec![("version", Cow::from(env!("CARGO_PKG_VERSION")))];
        scrape.gauges("distd_build_info", &format!("Version of {program}."), [(version, 1)]);
        scrape.gauge(
            "distd_clock_timestamp_seconds",
            "Time by the clock of this machine, unix seconds.",
            unix_now(),
        );
        scrape
    }

    /// The crate adds the full stop at the end of a help text by itself.
    fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.0.register(name, help.trim_end_matches('.'), metric);
    }

    /// Adds a counter without labels. Its name ends in `_total`, which the crate adds by itself.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.register(name.trim_end_matches("_total"), help, ConstCounter::new(value));
    }

    /// Adds counters without labels; each is (name, help, value).
    pub fn counters(&mut self, counters: &[(&str, &str, &AtomicU64)]) {
        for (name, help, counter) in counters {
            self.counter(name, help, counter.load(Ordering::Relaxed));
        }
    }

    /// Adds a counter with labels.
    pub fn counters_by(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, u64)>) {
        let counters = CountersBy::default();
        for (labels, value) in samples {
            counters.add(&labels, value);
        }
        self.counted_by(name, help, &counters);
    }

    /// Adds counters that are kept by their labels.
    pub fn counted_by(&mut self, name: &str, help: &str, counters: &CountersBy) {
        self.register(name.trim_end_matches("_total"), help, counters.0.clone());
    }

    /// Adds a gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.register(name, help, ConstGauge::new(value));
    }

    /// Adds a gauge with labels.
    pub fn gauges(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Gauge<u64, AtomicU64>>::default();
        for (labels, value) in samples {
            family.get_or_create(&labels).set(value);
        }
        self.register(name, help, family);
    }

    /// Adds durations.
    pub fn durations(&mut self, name: &str, help: &str, durations: &Durations) {
        self.register(name, help, durations.0.clone());
    }

    /// Adds durations with labels.
    pub fn durations_by(&mut self, name: &str, help: &str, durations: &DurationsBy) {
        self.register(name, help, durations.0.clone());
    }

    /// Adds the space of the file systems that hold some directories, each with the word that the
    /// label `disk` has for it. A file system that cannot be read is left out.
    pub fn disks<'a>(&mut self, directories: impl IntoIterator<Item = (&'static str, &'a Path)>) {
        let spaces: Vec<_> = directories
            .into_iter()
            .filter_map(|(word, path)| Some((vec![("disk", Cow::from(word))], Space::at(path).ok()?)))
            .collect();
        let of = |number: fn(&Space) -> u64| -> Vec<(Labels, u64)> {
            spaces.iter().map(|(labels, space)| (labels.clone(), number(space))).collect()
        };
        self.gauges("distd_disk_bytes", "Size of the file system, by its use.", of(|space| space.total));
        self.gauges(
            "distd_disk_free_bytes",
            "Bytes that this process may still write, by the file system's use.",
            of(|space| space.free),
        );
    }

    /// Adds the ends of certificates, each with the word that the label `certificate` has for it.
    /// A certificate without a known end is left out.
    pub fn certificates(&mut self, ends: impl IntoIterator<Item = (&'static str, Option<u64>)>) {
        let ends =
            ends.into_iter().filter_map(|(word, end)| Some((vec![("certificate", Cow::from(word))], end?)));
        self.gauges(
            "distd_certificate_end_timestamp_seconds",
            "End of a certificate's validity, unix seconds.",
            ends,
        );
    }

    /// Adds the ends of signed metadata, each with its role. Metadata that is not here is left out.
    pub fn metadata_ends(&mut self, ends: impl IntoIterator<Item = (&'static str, Option<u64>)>) {
        let ends = ends.into_iter().filter_map(|(role, end)| Some((vec![("role", Cow::from(role))], end?)));
        self.gauges(
            "distd_metadata_end_timestamp_seconds",
            "End of the validity of signed metadata, unix seconds.",
            ends,
        );
    }

    /// Adds the counters of a node's answering side.
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
        self.durations(
            "distd_quic_chunk_seconds",
            "Time from the begin of a batch until one of its chunks was on its way to the asker, seconds.",
            &c.chunk_seconds,
        );
        self.durations(
            "distd_quic_batch_seconds",
            "Time from the begin of a batch, with its upload slot, until its answer was written, seconds.",
            &c.batch_seconds,
        );
    }

    /// Adds the counters of a proxy for apt.
    fn apt(&mut self, proxy: &apt::Proxy) {
        self.counters(&proxy.counters.all());
        self.counters_by(
            "distd_apt_received_bytes_total",
            "Bytes of bodies received, by sender.",
            proxy.received().map(|(source, bytes)| (by_source(source), bytes)),
        );
        let store = proxy.store();
        self.gauge("distd_apt_store_bytes", "Bytes of the cache of packages.", store.bytes());
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

    /// Adds the traffic fetched, by kind of sender; neighbours only if `neighbours` is given.
    fn fetched(&mut self, parents: &Parents, neighbours: Option<MeterReading>) {
        let (relay, origin) = parents.readings();
        let sources = [("relay", Some(relay)), ("origin", Some(origin)), ("neighbour", neighbours)];
        let of = |number: fn(MeterReading) -> u64| {
            sources.into_iter().filter_map(move |(word, reading)| Some((by_source(word), number(reading?))))
        };
        self.counters_by(
            "distd_fetch_bytes_total",
            "Bytes received, by kind of sender.",
            of(|reading| reading.bytes_in),
        );
        self.counters_by(
            "distd_fetch_requests_total",
            "Streams opened, by kind of peer.",
            of(|reading| reading.requests),
        );
        let quarantined = parents.quarantined(unix_now()) as u64;
        self.gauge(
            "distd_peers_quarantined",
            "Nodes in quarantine because they sent wrong bytes.",
            quarantined,
        );
    }

    /// The metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.0).expect("a string takes every text");
        text
    }
}

fn by_source(word: &'static str) -> Labels {
    vec![("source", Cow::from(word))]
}

/// End of a certificate's validity, unix seconds; `None` for bytes that are no certificate of a
/// realm.
pub fn certificate_end(certificate: &CertificateDer<'_>) -> Option<u64> {
    CertInfo::parse(certificate).ok().map(|info| info.not_after)
}

/// Returns the metrics of a relay with the state directory `data`.
pub fn of_relay(
    relay: &Relay,
    data: &Path,
    credentials: &Credentials,
    served: &ServeCounters,
    apt: Option<&apt::Proxy>,
) -> String {
    let mut out = Scrape::of("distd-peer");
    out.serve(served);
    out.fetched(relay.parents(), None);
    let (fetched, again) = relay.fetched();
    let heard = relay.heard();
    let is_up = u64::from(unix_now().saturating_sub(heard) <= PARENT_SILENT_SECONDS);
    out.gauge("distd_relay_parent_up", "1 when a parent answered in the last 90 s.", is_up);
    out.gauge("distd_relay_parent_heard_seconds", "When a parent answered last, unix seconds.", heard);
    out.gauge("distd_relay_chunks_fetched", "Chunks fetched from parents, of open swarms.", fetched);
    out.gauge(
        "distd_relay_chunks_fetched_again",
        "Chunks fetched from parents that were here already, of open swarms.",
        again,
    );
    let store = relay.store();
    out.gauge("distd_store_bytes", "Bytes of the cache.", store.bytes());
    out.gauge("distd_store_max_bytes", "Most bytes of the cache.", store.max_bytes());
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
    out.disks([("data", data)]);
    out.certificates([("node", certificate_end(&credentials.certificate()))]);
    let timestamp = std::fs::read(data.join("metadata/timestamp.json")).ok();
    out.metadata_ends([("timestamp", timestamp.as_deref().and_then(end_of))]);
    if let Some(apt) = apt {
        out.apt(apt);
    }
    out.text()
}

/// Parts of a device that serves its neighbours, whose numbers its metrics show.
pub struct DeviceParts<'a> {
    /// State directory.
    pub data: &'a Path,
    /// Key and certificate.
    pub credentials: &'a Credentials,
    /// Parents of the device.
    pub parents: &'a Parents,
    /// Traffic from neighbours.
    pub neighbours: MeterReading,
    /// Counters of the artifacts that are shared.
    pub shared: &'a ShareCounters,
    /// Counters of the answering side.
    pub served: &'a ServeCounters,
    /// Durations of pulls, by result.
    pub pulls: &'a DurationsBy,
    /// Counters of a gateway.
    pub gateway: Option<&'a gateway::Counters>,
    /// Proxy for apt.
    pub apt: Option<&'a apt::Proxy>,
}

/// Returns the metrics of a device that serves its neighbours.
pub fn of_device(device: &DeviceParts<'_>) -> String {
    let mut out = Scrape::of("distd");
    out.serve(device.served);
    out.fetched(device.parents, Some(device.neighbours));
    out.counters(&[(
        "distd_share_misses_total",
        "Chunks that were unreadable or damaged when read, and not sent.",
        &device.shared.misses,
    )]);
    out.durations_by(
        "distd_pull_seconds",
        "Time that pulls of the agent took, by result, seconds.",
        device.pulls,
    );
    out.disks([("data", device.data)]);
    out.certificates([("node", certificate_end(&device.credentials.certificate()))]);
    if let Some(gateway) = device.gateway {
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
    if let Some(apt) = device.apt {
        out.apt(apt);
    }
    out.text()
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
    let kind = header::HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
