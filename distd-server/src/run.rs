//! A whole origin: opened, listening, maintained, and stopped in good order.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use distd_core::error::Chain;
use distd_core::swarm::SiteRule;
use distd_peer::clock::unix_now;
use distd_peer::net::{BindError, everywhere_ipv4, is_without_ipv6, parent_sockets};
use distd_peer::serve::{ServeConfig, Server, Sites};
use distd_peer::trust::files::{self, FileError};
use distd_peer::trust::tls::{TlsError, https_parent, https_server, quic_server};
use distd_peer::trust::token::ApiToken;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::db::{ApiTokenRow, DbError, LeaderRow};
use crate::http::{self, App, Passing, ReplicaHttp, Scope};
use crate::ingest::{IngestError, SweepScope};
use crate::locks::{LockError, Locks};
use crate::origin::{OpenError, Origin, OriginContent, OwnerError, Part, Places, SeenElsewhere, signed};
use crate::publisher::Products;
use crate::replica::ReplicaError;

/// Time that running requests have after the origin was told to stop.
pub const STOP: Duration = Duration::from_secs(10);

/// Time between two looks at changes by other processes: a revocation counts within the minute
/// that docs/trust.md states, and so does a root that was handed in.
const WATCH_EVERY: Duration = Duration::from_secs(30);

/// Time between two looks at what other replicas have changed.
const ELSEWHERE_EVERY: Duration = Duration::from_secs(2);

/// Time between two tries to count the devices of each version.
const HISTORY: Duration = Duration::from_secs(60);

/// Time between two readings of the name of the store's owner. With [`STOP`] this bounds the time
/// for which an overtaken origin still serves.
const OWNER_EVERY: Duration = Duration::from_secs(10);

/// Wait after maintenance failed.
const MAINTAIN_AGAIN: Duration = Duration::from_secs(60);

/// Time between sweeps for orphans, seconds.
const SWEEP_SECONDS: u64 = 24 * 3600;

/// QUIC close code of an endpoint that stops: no error of the peer's.
const CLOSE_STOPPING: u32 = 0;

/// Error of starting an origin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A lock cannot be taken.
    #[error(transparent)]
    Lock(LockError),
    /// Another process has the lock.
    #[error("another distd-server uses {}: stop it, or give this one another --data directory", .0.display())]
    InUse(PathBuf),
    /// This process cannot be a replica.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Requests could not be passed on.
    #[error("could not make the client that passes requests on")]
    Passing(#[source] reqwest::Error),
    /// The origin cannot be opened.
    #[error("could not open the origin")]
    Open(#[from] OpenError),
    /// Cleaning up after the last run failed.
    #[error("could not clean up after the last run")]
    Sweep(#[from] IngestError),
    /// The file of the first admin token cannot be used.
    #[error(transparent)]
    TokenFile(#[from] FileError),
    /// The file of the first admin token holds something other than a token of this realm.
    #[error("{} holds no token of this realm: remove it, a new one is made then", .0.display())]
    ForeignToken(PathBuf),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// Not listening for HTTP.
    #[error("could not listen on {0} (TCP): choose another --http address, or stop what uses it")]
    Http(SocketAddr, #[source] io::Error),
    /// Not listening for nodes.
    #[error("nodes are answered on UDP and TCP at one port: choose another --quic address")]
    Quic(#[from] BindError),
    /// The TLS configuration cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The settings of the OpenID provider cannot be used.
    #[cfg(feature = "ui")]
    #[error(transparent)]
    Provider(#[from] http::ProviderError),
    /// Plain HTTP where others could read it.
    #[error("plain HTTP only on a loopback address, not on {0}")]
    PlainHttp(SocketAddr),
}

impl From<LockError> for StartError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Data(path) => Self::InUse(path),
            error => Self::Lock(error),
        }
    }
}

/// Part of a process among replicas, as far as other processes see it.
pub(crate) enum ReplicaPart {
    /// It leads, and is passed requests with this secret.
    Leads(String),
    /// It passes requests on to the one that leads.
    Follows(watch::Receiver<Option<LeaderRow>>),
}

/// A running origin.
pub struct Running {
    /// Address of HTTP(S).
    pub http: SocketAddr,
    /// Address for nodes: QUIC over UDP, and the same over TCP.
    pub quic: SocketAddr,
    /// Whether HTTP is plain.
    pub plain: bool,
    /// The first admin token's file, where there is one.
    pub admin_token: Option<PathBuf>,
    /// The origin.
    pub origin: Arc<Origin>,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    http_task: JoinHandle<()>,
    quic_task: JoinHandle<()>,
    nodes_task: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    patches: JoinHandle<()>,
    webhooks: JoinHandle<()>,
    stop_patches: CancellationToken,
    endpoint: quinn::Endpoint,
    /// Locks of an origin that is alone.
    locks: Option<Locks>,
}

/// The part of an origin that another process has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overtaken {
    /// The lock of the database.
    #[error(
        "another distd-server has taken the database over, and this one stops serving: find out which of the two is to \
         run, stop the other one for good, then start the one that is to run"
    )]
    Database,
    /// The object `owner` of the store.
    #[error(
        "another distd-server has taken the store over, and this one stops serving: find out which of the two is to \
         run, stop the other one for good, then start the one that is to run"
    )]
    Store,
}

/// Starts an origin that holds its keys in its own process. When this returns it answers.
///
/// # Errors
/// [`StartError`].
pub async fn start(settings: &Settings) -> Result<Running, StartError> {
    start_at(settings, &settings.places()).await
}

/// Starts an origin at `places`, which say who holds the keys. When this returns it answers.
///
/// # Errors
/// [`StartError`].
pub async fn start_at(settings: &Settings, places: &Places) -> Result<Running, StartError> {
    let plain = settings.http_plain;
    if plain && !settings.http.ip().is_loopback() {
        return Err(StartError::PlainHttp(settings.http));
    }
    let locks = Locks::take(places).await?;
    start_part(settings, places, (Part::Alone, None), Some(locks)).await
}

/// Starts one of several origins, whose locks the caller holds.
pub(crate) async fn start_among_replicas(
    settings: &Settings,
    places: &Places,
    part: Part,
    replica: ReplicaPart,
) -> Result<Running, StartError> {
    start_part(settings, places, (part, Some(replica)), None).await
}

async fn start_part(
    settings: &Settings,
    places: &Places,
    (part, replica): (Part, Option<ReplicaPart>),
    locks: Option<Locks>,
) -> Result<Running, StartError> {
    let plain = settings.http_plain;
    let origin = Origin::open_as(places, settings.tuning(), part).await?;
    let admin_token = match part {
        Part::Alone | Part::Leads(_) => first_token(&origin, &settings.data).await?,
        Part::Follows => None,
    };
    let replica = match replica {
        None => None,
        Some(ReplicaPart::Leads(secret)) => Some(ReplicaHttp::Leads(secret)),
        Some(ReplicaPart::Follows(leader)) => {
            let passing = Passing::new(leader, origin.realm().ca_fingerprint(), plain);
            Some(ReplicaHttp::Follows(passing.map_err(StartError::Passing)?))
        }
    };

    let listener = listen(settings).await?;
    let http = listener.local_addr().map_err(|e| StartError::Http(settings.http, e))?;
    let (credentials, ca) = (origin.credentials(), origin.realm().ca_der());
    let quic_config = quic_server(credentials.clone(), ca)?;
    let quic = settings.quic;
    let reset = origin.realm().reset_key();
    let (endpoint, nodes) = match parent_sockets(quic, &quic_config, &reset) {
        Err(error) if settings.is_default("quic") && is_without_ipv6(&error.cause) => {
            parent_sockets(everywhere_ipv4(quic), &quic_config, &reset)?
        }
        other => other?,
    };
    let quic = endpoint.local_addr().map_err(|cause| BindError { address: quic, cause })?;

    #[cfg(not(feature = "ui"))]
    if settings.oidc.is_some() {
        tracing::warn!("this distd-server has no web page: the setting oidc has no effect");
    }
    let options = http::HttpOptions {
        replica,
        ddi: settings.ddi_options(http),
        #[cfg(feature = "ui")]
        provider: settings.oidc.as_deref().map(http::Provider::open).transpose()?,
    };

    // Nothing can keep this process from serving any more: only now are objects deleted.
    if part != Part::Follows {
        origin.sweep_at_start().await?;
    }

    let sites = Sites::new(origin.realm().ca_der().clone(), SiteRule::NamedOrNetwork, true);
    let revoked = origin.revoked().clone();
    origin.tell_of_channels().await?;
    let news = Some(origin.news().clone());
    let serve = ServeConfig { sites: Some(sites), revoked, news, ..ServeConfig::default() };
    let server = Server::new(OriginContent::new(origin.clone()).into_content(), serve);
    let app = App::new(origin.clone(), server.counters.clone(), options);
    let nodes_tls = https_parent(credentials.clone(), ca)?;
    let tls = (!plain).then(|| Arc::new(https_server(origin.credentials().clone())));
    let (stop, stopped) = watch::channel(false);
    let stop_patches = CancellationToken::new();
    Ok(Running {
        http,
        quic,
        plain,
        admin_token,
        http_task: tokio::spawn(http::serve(listener, tls, app.clone(), stopped)),
        quic_task: tokio::spawn(server.clone().run(endpoint.clone())),
        nodes_task: tokio::spawn(server.run_tcp(nodes, nodes_tls)),
        maintenance: tokio::spawn(look_after(origin.clone(), part)),
        patches: tokio::spawn(make_patches(origin.clone(), part, stop_patches.clone())),
        webhooks: tokio::spawn(deliver_webhooks(origin.clone(), part)),
        stop_patches,
        origin,
        app,
        stop,
        endpoint,
        locks,
    })
}

impl Running {
    /// Whether each of the tasks runs that answer requests and nodes, and that maintain the origin.
    pub fn serves(&self) -> bool {
        let Self { http_task, quic_task, nodes_task, maintenance, .. } = self;
        [http_task, quic_task, nodes_task, maintenance].iter().all(|task| !task.is_finished())
    }

    /// Waits until another process has taken the database or the store over: this one must end
    /// then.
    pub async fn overtaken(&self) -> Overtaken {
        let lost = async {
            match &self.locks {
                Some(locks) => locks.lost().cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lost => Overtaken::Database,
            () = self.origin.overtaken() => Overtaken::Store,
        }
    }

    /// Stops: requests under way have until `deadline` to end. `false` when some were cut off; what
    /// they had committed stays.
    pub async fn stop(self, deadline: Duration) -> bool {
        let Self {
            stop, http_task, quic_task, nodes_task, maintenance, endpoint, app, origin, locks, ..
        } = self;
        let Self { mut patches, webhooks, stop_patches, .. } = self;
        stop.send_replace(true);
        app.end_streams();
        stop_patches.cancel();
        maintenance.abort();
        // A try that is cut off is made again after the next start.
        webhooks.abort();
        let abort = http_task.abort_handle();
        let ended = tokio::time::timeout(deadline, async {
            if let Err(error) = http_task.await {
                tracing::error!(error = %Chain(&error), "the HTTP server failed");
            }
            app.idle().await;
            if let Err(error) = (&mut patches).await {
                tracing::error!(error = %Chain(&error), "making patches failed");
            }
        });
        let in_time = ended.await.is_ok();
        abort.abort();
        patches.abort();
        endpoint.close(CLOSE_STOPPING.into(), b"stopping");
        quic_task.abort();
        nodes_task.abort();
        // Wait, so that peers learn of the end before the process is gone.
        let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), origin.db().close()).await;
        // The locks are given back only after the last write.
        drop(locks);
        in_time
    }
}

/// Makes the first token, with which all others are made, while the database has no token. The file
/// comes first, so that a crash in between leaves a token that the next start records.
async fn first_token(origin: &Origin, data: &Path) -> Result<Option<PathBuf>, StartError> {
    let path = data.join("admin.token");
    if !origin.db().api_tokens().await?.is_empty() {
        return Ok(path.exists().then_some(path));
    }
    let fingerprint = origin.realm().ca_fingerprint();
    let fresh = ApiToken::generate(fingerprint);
    files::create_secret(&path, format!("{}\n", fresh.to_secret_string()).as_bytes())?;
    let foreign = || StartError::ForeignToken(path.clone());
    let text = files::read_secret(&path)?.ok_or_else(foreign)?;
    let token: ApiToken =
        std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).ok_or_else(foreign)?;
    if *token.ca_fingerprint() != fingerprint {
        return Err(foreign());
    }
    let row = ApiTokenRow {
        secret_sha256: token.secret_hash(),
        label: "first admin".to_owned(),
        scopes: Scope::Admin.as_str().to_owned(),
        products: Products::all().to_row(),
        created: signed(unix_now()),
        expires: None,
        revoked: None,
    };
    origin.db().put_api_token(&row).await?;
    Ok(Some(path))
}

async fn listen(settings: &Settings) -> Result<TcpListener, StartError> {
    let address = settings.http;
    match TcpListener::bind(address).await {
        Err(error) if settings.is_default("http") && is_without_ipv6(&error) => {
            let address = everywhere_ipv4(address);
            TcpListener::bind(address).await.map_err(|e| StartError::Http(address, e))
        }
        other => other.map_err(|e| StartError::Http(address, e)),
    }
}

/// Does what an origin does by itself, for as long as it runs.
async fn look_after(origin: Arc<Origin>, part: Part) {
    match part {
        Part::Alone => lead(origin).await,
        Part::Leads(_) => {
            tokio::join!(lead(origin.clone()), look_elsewhere(origin));
        }
        Part::Follows => {
            tokio::join!(follow(origin.clone()), look_elsewhere(origin));
        }
    }
}

async fn lead(origin: Arc<Origin>) {
    tokio::join!(
        maintain(origin.clone()),
        watch(origin.clone()),
        watch_owner(origin.clone()),
        origin.drive_rollouts(),
        count_history(origin.clone())
    );
}

/// Makes patch sets, and lists those that workers have made.
async fn make_patches(origin: Arc<Origin>, part: Part, stop: CancellationToken) {
    match part {
        Part::Alone => origin.make_patches(stop).await,
        Part::Leads(_) => {
            tokio::join!(origin.clone().make_patches(stop.clone()), origin.list_sets_of_workers(&stop));
        }
        Part::Follows => {}
    }
}

/// Delivers the events that this process and others have recorded.
async fn deliver_webhooks(origin: Arc<Origin>, part: Part) {
    match part {
        Part::Alone | Part::Leads(_) => origin.deliver_webhooks().await,
        Part::Follows => {}
    }
}

/// Notices what other processes have changed.
async fn look_elsewhere(origin: Arc<Origin>) {
    let mut seen = SeenElsewhere::default();
    loop {
        origin.look_elsewhere(&mut seen).await;
        tokio::time::sleep(ELSEWHERE_EVERY).await;
    }
}

/// Looks after an origin that does not lead.
async fn follow(origin: Arc<Origin>) {
    loop {
        if let Err(error) = origin.renew_certificate() {
            tracing::error!(error = %Chain(&error), "the origin's certificate was not renewed");
        }
        tokio::time::sleep(WATCH_EVERY).await;
        if let Err(error) = origin.refresh_revoked().await {
            tracing::warn!(error = %Chain(&error), "revoked nodes could not be read");
        }
    }
}

/// Ends the connections of nodes that another process revoked, and puts a root in force that was
/// handed in.
async fn watch(origin: Arc<Origin>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        if let Err(error) = origin.take_next_root().await {
            tracing::error!(
                error = %Chain(&error),
                "the next TUF root was not put in force"
            );
        }
        if let Err(error) = origin.refresh_revoked().await {
            tracing::warn!(error = %Chain(&error), "revoked nodes could not be read");
        }
    }
}

/// Looks after the owner of the store, so that an origin without anything to sign learns of another
/// one.
async fn watch_owner(origin: Arc<Origin>) {
    loop {
        tokio::time::sleep(OWNER_EVERY).await;
        match origin.check_owner().await {
            Ok(()) => {}
            // `Running::overtaken` says so.
            Err(OwnerError::Overtaken) => return,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the store's owner is not known");
            }
        }
    }
}

/// Counts the devices of each version now and then, for charts.
async fn count_history(origin: Arc<Origin>) {
    loop {
        if let Err(error) = origin.db().count_history(signed(unix_now())).await {
            tracing::warn!(error = %Chain(&error), "cannot count the devices of each version");
        }
        tokio::time::sleep(HISTORY).await;
    }
}

async fn maintain(origin: Arc<Origin>) {
    let mut swept = unix_now();
    loop {
        let (wait, is_well) = match origin.maintain().await {
            Ok(seconds) => (Duration::from_secs(seconds), true),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "maintenance failed");
                (MAINTAIN_AGAIN, false)
            }
        };
        let now = unix_now();
        // An overtaken process must not sweep.
        if is_well && now.saturating_sub(swept) >= SWEEP_SECONDS {
            match origin.ingest().sweep_orphans(SweepScope::Shared, signed(now)).await {
                Ok(found) => {
                    swept = now;
                    tracing::info!(swept = ?found, "swept");
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "sweeping failed");
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}
