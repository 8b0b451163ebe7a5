//! Start of a relay and its regular tasks: enrol if needed, open the store, serve, renew the
//! certificate, commit the store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::swarm::SiteRule;
use quinn::Endpoint;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::{Relay, RelayConfig, import};
use crate::apt;
use crate::capabilities::Capabilities;
use crate::clock::unix_now;
use crate::enrollment::{self, EnrollmentError};
use crate::metrics::{self, MetricsError};
use crate::net::{
    BindError, Dialer, Outbound, Proxies, ProxyError, ResetKey, endpoint_of_both, everywhere_ipv4,
    is_without_ipv6, parent_sockets,
};
use crate::news::{self, Newsroom};
use crate::parents::Parents;
use crate::quarantine::Quarantine;
use crate::serve::{ServeConfig, ServeError, Server, Sites};
use crate::store::{EdgeStore, Recovered, StoreError};
use crate::trust::identity::{IdentityError, NodeIdentity};
use crate::trust::revoked::{self, Revoked};
use crate::trust::tls::{
    ALPN_APT, Credentials, TlsError, TrustAnchor, https_parent, quic_client, quic_server,
};
use crate::trust::token::JoinToken;
use crate::trust::tuf::wire::{Answer, Query};
use distd_core::role::Role;

/// Interval at which appended chunks are made durable and indexed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Interval at which a relay checks whether a parent answers.
const WATCH_EVERY: Duration = Duration::from_secs(30);

/// Interval at which a relay asks for the list of revoked nodes: well within the quarter of an hour
/// that docs/trust.md states.
const REVOKED_EVERY: Duration = Duration::from_secs(20);

/// Number of times that a relay tries to fetch metadata that a parent announced, and the pause
/// between two. Then nodes below find it when they look.
const NEWER_TRIES: u32 = 5;
const NEWER_AGAIN: Duration = Duration::from_secs(1);

/// First pause before a relay that reached no parent tries to enrol again. Doubles up to
/// [`ENROLL_AGAIN_MAX`].
const ENROLL_AGAIN: Duration = Duration::from_secs(1);
const ENROLL_AGAIN_MAX: Duration = Duration::from_secs(30);

/// Reason why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No parent is configured.
    #[error("a relay needs a parent: --parent HOST:PORT")]
    NoParent,
    /// The relay is not enrolled and has no token to enrol with.
    #[error(
        "this relay is not enrolled: give it a join token with --token (make one with: distd token join --role relay)"
    )]
    NotEnrolled,
    /// The relay's identity is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Enrolment failed.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The metrics listener could not start.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The proxy cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The proxy for apt could not start.
    #[error("could not start the proxy for apt")]
    Apt(#[source] std::io::Error),
}

/// A running relay.
pub struct Running {
    /// Content of the relay, for counters.
    pub relay: Arc<Relay>,
    /// Answering side of the relay, for counters.
    pub server: Arc<Server>,
    /// Address that the relay listens on.
    pub address: SocketAddr,
    /// Address that metrics are served on; `None` if they are not configured.
    pub metrics: Option<SocketAddr>,
    /// Address of the proxy for apt; `None` if it serves nodes alone, or there is none.
    pub apt: Option<SocketAddr>,
    /// Result of opening the store.
    pub recovered: Recovered,
    endpoint: Endpoint,
    /// The tasks that answer nodes, which end only with the relay.
    serving: [AbortHandle; 2],
    tasks: JoinSet<()>,
}

/// Starts a relay. `token` is used if there is no certificate yet.
///
/// # Errors
/// [`StartError`].
pub async fn start(config: RelayConfig, token: Option<&JoinToken>) -> Result<Running, StartError> {
    if config.parents.is_empty() {
        return Err(StartError::NoParent);
    }
    let proxies = match &config.proxy_url {
        Some(url) => Proxies::fixed(url)?,
        None => Proxies::of_environment(),
    };
    let outbound = Outbound::new(config.transport, proxies, &config.data.join("transports.json"));
    let mut identity = NodeIdentity::load_or_create(&config.data)?;
    if identity.cert().is_none() {
        let token = token.ok_or(StartError::NotEnrolled)?;
        enroll_patiently(&mut identity, token, &config, &outbound).await?;
    } else if identity.needs_renewal(unix_now()) {
        // A relay whose parent is away still serves its office. The renewal task tries again.
        if let Err(error) = enrollment::renew(&mut identity, &config.parents, &outbound).await {
            tracing::warn!(
                error = %Chain(&error),
                "certificate could not be renewed; trying again in a minute"
            );
        }
    }
    let ca = identity.ca_der().ok_or(StartError::NotEnrolled)?.clone();
    let credentials = Credentials::of_node(&identity)?;
    let (store, recovered) = {
        let (dir, bounds) = (config.data.join("cache"), config.store.clone());
        tokio::task::block_in_place(|| EdgeStore::open(&dir, bounds))?
    };
    let store = Arc::new(store);
    let quic = endpoint_of_both(|| Ok::<_, StartError>(quic_client(credentials.clone(), &ca)?))?;
    let dialer = Dialer::new(quic, credentials.clone(), &ca, outbound.clone())?;
    let quarantine = Arc::new(Quarantine::load(&config.data.join("quarantine.json")));
    let capabilities = Capabilities::load(identity.node_id(), ca.clone(), &config.data.join("capabilities"));
    let parents = Arc::new(Parents::new(dialer, config.parents.clone(), quarantine, capabilities));
    let relay = Relay::new(store.clone(), parents, TrustAnchor::Ca(ca.clone()));
    let relay = relay.limited(config.download.clone()).mirroring(&config.data.join("metadata"));
    let relay = relay.watching_log(&config.data, ca.clone());
    let relay = Arc::new(relay.keeping_reports(&config.data.join("reports")));
    let reset = ResetKey::of_node(&identity.private_key());
    let quic = quic_server(credentials.clone(), &ca)?;
    let (endpoint, listener) = match parent_sockets(config.listen, &quic, &reset) {
        Err(error) if config.listen_is_default && is_without_ipv6(&error.cause) => {
            parent_sockets(everywhere_ipv4(config.listen), &quic, &reset)?
        }
        other => other?,
    };
    let address = endpoint.local_addr().map_err(|cause| BindError { address: config.listen, cause })?;
    // A chunk crosses a relay's uplink once, whoever asks for it, so a relay leases nothing.
    let sites = Sites::new(ca.clone(), SiteRule::Named, false);
    let revoked = Revoked::load(&config.data.join("revoked"), &ca);
    let room = Newsroom::open(&config.data, ca.clone());
    let news = Some(room.clone());
    let proxy = match config.apt.clone() {
        Some(settings) => {
            let directory = settings.directory_in(&config.data);
            let opened = tokio::task::block_in_place(|| apt::Proxy::open(settings, &directory, None, None));
            Some(opened.map_err(StartError::Apt)?)
        }
        None => None,
    };
    let serve = ServeConfig {
        sites: Some(sites),
        revoked: revoked.clone(),
        news,
        apt: proxy.clone(),
        ..config.serve.clone()
    };
    let server = Server::new(relay.clone(), serve);
    let mut tasks = JoinSet::new();
    let metrics = match config.metrics {
        Some(at) => {
            let listener = metrics::listen(at).await?;
            let bound = listener.local_addr().map_err(|cause| MetricsError::Bind(at, cause))?;
            let (relay, served, apt) = (relay.clone(), server.counters.clone(), proxy.clone());
            let (data, credentials) = (config.data.clone(), credentials.clone());
            tasks.spawn(metrics::run(listener, move || {
                metrics::of_relay(&relay, &data, &credentials, &served, apt.as_deref())
            }));
            Some(bound)
        }
        None => None,
    };
    let over_quic = tasks.spawn(server.clone().run(endpoint.clone()));
    let mut tls = https_parent(credentials.clone(), &ca)?;
    let mut apt = None;
    if let Some(proxy) = proxy {
        tls.alpn_protocols.push(ALPN_APT.to_vec());
        if let Some(at) = proxy.settings().listen {
            let listener = TcpListener::bind(at).await.map_err(StartError::Apt)?;
            apt = Some(listener.local_addr().map_err(StartError::Apt)?);
            // The proxy ends with the other tasks.
            let (going_on, stop) = watch::channel(false);
            tasks.spawn(async move {
                apt::serve(listener, proxy, stop).await;
                drop(going_on);
            });
        }
    }
    let serving = [over_quic, tasks.spawn(server.clone().run_tcp(listener, tls))];
    tasks.spawn(commit_regularly(store));
    tasks.spawn(learn_revoked(relay.clone(), revoked, ca.clone()));
    let passing_on = relay.clone();
    tasks.spawn(async move { passing_on.pass_reports_on().await });
    tasks.spawn(news::parents::follow(relay.parents().clone(), room.clone()));
    tasks.spawn(pass_versions_on(relay.clone(), room));
    let watching = relay.clone();
    tasks.spawn(async move { watching.watch_log().await });
    tasks.spawn(watch_parents(relay.clone(), config.parents.clone()));
    if let Some(root) = identity.root_json() {
        tasks.spawn(import::import_regularly(relay.clone(), config.data.clone(), root.to_vec()));
    }
    tasks.spawn(enrollment::renew_regularly(identity, credentials, config.parents.clone(), outbound));
    Ok(Running { relay, server, address, metrics, apt, recovered, endpoint, serving, tasks })
}

/// Enrols, and tries again for as long as no parent can be reached: at boot the network may come up
/// later than the relay.
async fn enroll_patiently(
    identity: &mut NodeIdentity,
    token: &JoinToken,
    config: &RelayConfig,
    outbound: &Arc<Outbound>,
) -> Result<(), EnrollmentError> {
    let mut pause = ENROLL_AGAIN;
    loop {
        let (label, parents) = (&config.label, &config.parents);
        match enrollment::enroll(identity, token, Role::Relay, label, parents, outbound).await {
            Err(error) if error.may_pass() => {
                let error = tracing::field::display(Chain(&error));
                tracing::warn!(error, "not enrolled yet: no parent can be reached; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ENROLL_AGAIN_MAX);
            }
            other => return other,
        }
    }
}

/// Keeps up to date the signed metadata that every device needs, and logs when no parent answers
/// and when one answers again.
async fn watch_parents(relay: Arc<Relay>, parents: Vec<String>) {
    let mut away = false;
    loop {
        relay.leave_idle();
        let refreshed = relay.refresh_metadata().await;
        relay.note_away(matches!(refreshed, Err(ServeError::Upstream(_))));
        match refreshed {
            Ok(()) if away => {
                tracing::warn!(parents = parents.join(" "), "a parent answers again");
                away = false;
            }
            Err(error) if !away => {
                let error = tracing::field::display(Chain(&error));
                let parents = parents.join(" ");
                tracing::warn!(
                    parents,
                    error,
                    "no parent answers; serving only what is cached until one does"
                );
                away = true;
            }
            Ok(()) | Err(_) => {}
        }
        // Metadata that a device has just asked for is kept too, for when the uplink fails.
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = relay.metadata_news() => {}
        }
    }
}

/// Fetches metadata that a parent announces, and announces it to the nodes below, for as long as
/// the relay runs.
async fn pass_versions_on(relay: Arc<Relay>, room: Arc<Newsroom>) {
    let mut heard = room.heard();
    // The sender lives as long as `room`.
    while heard.changed().await.is_ok() {
        let version = *heard.borrow_and_update();
        for _ in 0..NEWER_TRIES {
            match relay.refresh_metadata().await {
                Ok(()) => {
                    room.announce(version);
                    break;
                }
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "announced metadata could not be fetched");
                    tokio::time::sleep(NEWER_AGAIN).await;
                }
            }
        }
    }
}

/// Fetches the origin's list of revoked nodes from the parents, for as long as the relay runs.
async fn learn_revoked(relay: Arc<Relay>, revoked: Arc<Revoked>, ca: CertificateDer<'static>) {
    let question = Bytes::from(Query { revoked: true, ..Query::default() }.encode());
    loop {
        if let Ok(answer) = relay.ask_metadata(question.clone()).await
            && let Ok(answer) = Answer::decode(&answer)
            // An origin of an earlier release sends no such file.
            && let Some((_, bytes)) = answer.files.iter().find(|(name, _)| name == revoked::FILE)
            && let Err(error) = revoked.take(bytes, &ca)
        {
            tracing::warn!(error = %Chain(&error), "list of revoked nodes refused");
        }
        tokio::time::sleep(REVOKED_EVERY).await;
    }
}

async fn commit_regularly(store: Arc<EdgeStore>) {
    loop {
        tokio::time::sleep(COMMIT_EVERY).await;
        let store = store.clone();
        let result = tokio::task::spawn_blocking(move || store.commit()).await;
        if let Ok(Err(error)) = result {
            tracing::error!(error = %Chain(&error), "store could not be committed");
        }
    }
}

impl Running {
    /// Whether the tasks run that answer nodes.
    pub fn serves(&self) -> bool {
        self.serving.iter().all(|task| !task.is_finished())
    }

    /// Stops serving and makes everything stored durable.
    pub async fn stop(mut self) -> Result<(), StoreError> {
        self.endpoint.close(crate::net::close_code(distd_core::proto::close::CloseCode::Done), b"");
        self.tasks.shutdown().await;
        let store = self.relay.store().clone();
        tokio::task::spawn_blocking(move || store.commit()).await.unwrap_or(Ok(()))
    }
}
