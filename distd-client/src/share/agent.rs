//! The agent: a process that serves the installed artifacts. It stays enrolled, advertises them to
//! parents and neighbours, and is otherwise silent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::proto::control::ControlEvent;
use distd_core::ranges::ChunkRanges;
use distd_peer::apt::AptSettings;
use distd_peer::enrollment::renew_regularly;
use distd_peer::metrics::{self, DeviceParts};
use distd_peer::net::{Link, Outbound, close_code};
use distd_peer::news::{self, Newsroom};
use distd_peer::process::told_to_end;
use distd_peer::random;
use distd_peer::rates::Throttle;
use distd_peer::service::ServiceManager;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{DeviceNode, Lateral, Sharing, installed};
use crate::apt::{self, DeviceProxy};
use crate::failure::{Code, Failure, code_of};
use crate::follow::{FollowRequest, Follower};
use crate::gateway::{DeviceGateway, GatewayRequest};
use crate::pull::{PULL_SECONDS, read_kept_manifest};
use crate::tickets::kept;

/// Interval of the agent's announcements. Its peer records are valid three times as long.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(20 * 60);

/// Interval after an announcement that reached nobody.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(60);

/// Polling interval for `installed.json`: one `stat`, no network traffic.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Largest number of artifacts announced; the newest are taken.
const ANNOUNCED_MAX: usize = 4;

/// Largest number of neighbours that receive the announcement, in addition to the parents.
const ANNOUNCE_NEIGHBOURS_MAX: usize = 8;

/// Time limit for announcing one artifact to one peer.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// Time that an agent has to end what it does when it is told to stop.
const STOP: Duration = Duration::from_secs(5);

/// First pause before an agent without a valid certificate tries again. The pause doubles up to
/// [`OPEN_AGAIN_MAX`].
const OPEN_AGAIN: Duration = Duration::from_secs(5);
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Arguments of an agent.
pub struct AgentRequest {
    /// State directory of the device.
    pub data: PathBuf,
    /// Addresses of the parents, nearest first.
    pub parents: Vec<String>,
    /// Address to serve neighbours at; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Address of the metrics; `None` to publish none.
    pub metrics: Option<SocketAddr>,
    /// Settings of the exchange with neighbours.
    pub sharing: Sharing,
    /// Settings for reaching parents.
    pub outbound: Arc<Outbound>,
    /// Channel to follow; `None` for an agent that only serves.
    pub follow: Option<FollowRequest>,
    /// Gateway for other updaters; `None` for none.
    pub gateway: Option<GatewayRequest>,
    /// Proxy for apt; `None` for none.
    pub apt: Option<AptSettings>,
}

/// A running agent: a device that serves its neighbours, and follows a channel if it is told to.
pub struct Agent {
    /// Address that the agent listens on.
    pub address: SocketAddr,
    /// Address of the metrics; `None` when none are published.
    pub metrics: Option<SocketAddr>,
    node: DeviceNode,
    lateral: Arc<Lateral>,
    outbound: Arc<Outbound>,
    measuring: Option<JoinHandle<()>>,
    /// Whether the device serves its neighbours.
    serves: bool,
    follower: Option<Follower>,
    /// Gateway for other updaters.
    pub gateway: Option<DeviceGateway>,
    /// Proxy for apt.
    pub apt: Option<DeviceProxy>,
    news: Arc<Newsroom>,
    /// Limit of the upload of shares.
    upload: Option<Arc<Throttle>>,
}

impl Agent {
    /// Opens the node and starts to serve. While no parent renews an expired certificate, the call
    /// keeps trying.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when the exchange is off; otherwise the failures of
    /// [`DeviceNode::open`].
    pub async fn start(request: AgentRequest) -> anyhow::Result<Self> {
        let serves_nobody = request.follow.is_none() && request.gateway.is_none() && request.apt.is_none();
        if !request.sharing.serves && serves_nobody {
            let error = anyhow!(
                "this device serves nobody: share.enabled is false, it is offline, or its link is metered"
            );
            let next = "change that in client.toml of the state directory, or do not run an agent here";
            return Err(Failure::new(Code::Usage, error).next(next).into());
        }
        let mut node = open_patiently(&request).await?;
        let address = node.endpoint.local_addr().context("the socket has no address")?;
        let ca = node.identity.ca_der().context("the device has no CA certificate")?.clone();
        let news = Newsroom::open(&node.data, ca);
        let lateral = Arc::new(Lateral::start(&node, &request.sharing, true, Some(news.clone()))?);
        let follower = match request.follow {
            Some(follow) => {
                Some(Follower::open(follow, &node.identity, node.parents.clone(), news.clone()).await?)
            }
            None => None,
        };
        let gateway = match request.gateway {
            Some(gateway) => Some(DeviceGateway::open(gateway, news.clone()).await?),
            None => None,
        };
        let apt = match request.apt {
            Some(apt) => {
                Some(DeviceProxy::open(apt, &mut node, &request.sharing, &lateral.neighbourhood).await?)
            }
            None => None,
        };
        let (metrics, measuring) = match request.metrics {
            Some(at) => give_metrics(at, &node, &lateral, gateway.as_ref(), apt.as_ref())
                .await
                .map(|(at, task)| (Some(at), Some(task)))?,
            None => (None, None),
        };
        let (outbound, serves) = (request.outbound, request.sharing.serves);
        let upload = request.sharing.upload();
        Ok(Self {
            address,
            metrics,
            node,
            lateral,
            outbound,
            measuring,
            serves,
            follower,
            gateway,
            apt,
            news,
            upload,
        })
    }

    /// Runs until SIGTERM or ctrl-c, and tells `manager` that it runs and works.
    ///
    /// # Errors
    /// When the system lets the process watch no signals.
    pub async fn run(self, manager: &ServiceManager) -> anyhow::Result<()> {
        manager.ready(&format!("listening on {}", self.address));
        let Self { node, lateral, outbound, measuring, serves, follower, gateway, apt, news, upload, .. } =
            self;
        let DeviceNode { identity, credentials, parent_addresses, endpoint, parents, data, .. } = node;
        let ca = identity.ca_der().context("the device has no CA certificate")?.clone();
        let kept_in = data.clone();
        let renewing = tokio::spawn(renew_regularly(identity, credentials, parent_addresses, outbound));
        let wants_news = follower.is_some() || gateway.is_some();
        let listening =
            wants_news.then(|| tokio::spawn(news::parents::follow(parents.clone(), news.clone())));
        let looks = [follower.as_ref().map(Follower::looks), gateway.as_ref().map(DeviceGateway::looks)];
        let (neighbourhood, room) = (lateral.neighbourhood.clone(), news);
        let spreading = tokio::spawn(news::neighbours::spread(neighbourhood, room, serves, move || {
            looks.iter().flatten().for_each(|looks| looks.notify_one());
        }));
        let announcer = Announcer { data, parents, lateral, unserved: Mutex::default() };
        let announcing = serves.then(|| tokio::spawn(async move { announcer.run().await }));
        let (stop, stopped) = watch::channel(false);
        let mut sharing = serves.then(|| tokio::spawn(kept::serve(kept_in, ca, upload, stopped.clone())));
        let mut giving = gateway.map(|gateway| tokio::spawn(gateway.run(stopped.clone())));
        let mut proxying = apt.map(|apt| tokio::spawn(apt.run(stopped.clone())));
        let mut following = follower.map(|follower| tokio::spawn(follower.run(stopped)));
        // These end only when they are told to.
        let work: Vec<_> =
            [&following, &giving].into_iter().flatten().map(JoinHandle::abort_handle).collect();
        tokio::select! {
            told = told_to_end() => told?,
            () = manager.watched(|| work.iter().all(|task| !task.is_finished())) => {}
        }
        manager.stopping();
        renewing.abort();
        stop.send_replace(true);
        if let Some(following) = &mut following {
            // It ends a hook that runs, and notes that.
            let _ = tokio::time::timeout(STOP, following).await;
        }
        if let Some(sharing) = &mut sharing {
            // Fetchers are told that the share ended.
            let _ = tokio::time::timeout(STOP, sharing).await;
        }
        if let Some(giving) = &mut giving {
            // It lets short downloads end.
            let _ = tokio::time::timeout(STOP, giving).await;
        }
        if let Some(proxying) = &mut proxying {
            let _ = tokio::time::timeout(STOP, proxying).await;
        }
        let tasks = [measuring, announcing, following, giving, proxying, sharing, listening, Some(spreading)];
        for task in tasks.into_iter().flatten() {
            task.abort();
        }
        endpoint.close(close_code(CloseCode::Done), b"");
        let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        Ok(())
    }
}

/// Opens the node. If the certificate has expired, the function tries again until a parent renews
/// it: a device that was off for a day may boot before its network is up.
async fn open_patiently(request: &AgentRequest) -> anyhow::Result<DeviceNode> {
    let AgentRequest { data, parents, listen, outbound, sharing, .. } = request;
    let gives_packages = request.apt.as_ref().is_some_and(|apt| apt::gives_neighbours(apt, sharing));
    let mut pause = OPEN_AGAIN;
    loop {
        let opened =
            DeviceNode::open(data, parents.clone(), *listen, gives_packages, sharing, outbound.clone());
        match opened.await {
            Err(error) if code_of(&error) == Code::Network => {
                tracing::warn!(error = %Chain(error.as_ref()), "no parent can be reached; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(OPEN_AGAIN_MAX);
            }
            other => return other,
        }
    }
}

/// Serves metrics at a loopback address; returns the bound address and the task.
async fn give_metrics(
    at: SocketAddr,
    node: &DeviceNode,
    lateral: &Arc<Lateral>,
    gateway: Option<&DeviceGateway>,
    apt: Option<&DeviceProxy>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = metrics::listen(at).await.map_err(|e| Failure::new(Code::Usage, e.into()))?;
    let bound = listener.local_addr().context("the socket has no address")?;
    let (parents, lateral) = (node.parents.clone(), lateral.clone());
    let gateway = gateway.map(|gateway| gateway.counters.clone());
    let apt = apt.map(|apt| apt.proxy.clone());
    let (data, credentials) = (node.data.clone(), node.credentials.clone());
    let text = move || {
        metrics::of_device(&DeviceParts {
            data: &data,
            credentials: &credentials,
            parents: &parents,
            neighbours: lateral.neighbourhood.reading(),
            shared: &lateral.content.counters,
            served: &lateral.server.counters,
            pulls: &PULL_SECONDS,
            gateway: gateway.as_deref(),
            apt: apt.as_deref(),
        })
    };
    Ok((bound, tokio::spawn(metrics::run(listener, text))))
}

struct Announcer {
    data: PathBuf,
    parents: Arc<distd_peer::parents::Parents>,
    lateral: Arc<Lateral>,
    /// Installed artifacts that could not be served the last time; each is logged once.
    unserved: Mutex<BTreeSet<PathBuf>>,
}

impl Announcer {
    async fn run(&self) {
        loop {
            let written = self.last_written();
            let told = self.announce().await;
            let every = if told > 0 { ANNOUNCE_EVERY } else { ANNOUNCE_AGAIN };
            // Jitter keeps a fleet that was switched on at once from announcing in step ever after.
            let wait = every.mul_f64(0.75 + 0.25 * random::fraction());
            let next = tokio::time::Instant::now() + wait;
            while tokio::time::Instant::now() < next && self.last_written() == written {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    fn last_written(&self) -> Option<SystemTime> {
        std::fs::metadata(self.data.join(installed::FILE_NAME)).and_then(|meta| meta.modified()).ok()
    }

    /// Announces the installed artifacts to parents and neighbours; returns how many of them were
    /// reached.
    async fn announce(&self) -> usize {
        let data = self.data.clone();
        let looked = tokio::task::spawn_blocking(move || holdings(&data)).await;
        let (holdings, unserved) = looked.unwrap_or_default();
        self.warn_of(unserved);
        let mut reached = 0;
        let mut told = BTreeSet::new();
        for index in 0..self.parents.len() {
            if let Ok(link) = self.parents.link(index).await {
                reached += usize::from(self.tell(&link, &holdings).await);
            }
        }
        let mut near: Vec<_> = self.lateral.neighbourhood.local().borrow().iter().cloned().collect();
        near.extend(self.lateral.neighbourhood.remembered());
        for neighbour in near.into_iter().take(ANNOUNCE_NEIGHBOURS_MAX) {
            if told.insert(neighbour.node)
                && let Ok(link) = self.lateral.neighbourhood.link(&neighbour).await
            {
                reached += usize::from(self.tell(&link, &holdings).await);
            }
        }
        tracing::debug!(reached, "announced");
        reached
    }

    /// Logs each unserved artifact once. A typical cause is a service with a private `/tmp`.
    fn warn_of(&self, unserved: BTreeSet<PathBuf>) {
        let mut said = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        for path in unserved.difference(&said) {
            let path = path.display();
            tracing::warn!(%path, "installed, but not served: its manifest cannot be read by this process");
        }
        *said = unserved;
    }

    async fn tell(&self, link: &Arc<Link>, holdings: &[(ManifestId, ChunkRanges)]) -> bool {
        let mut told = true;
        for (manifest, held) in holdings {
            let one = tokio::time::timeout(TOLD_WITHIN, self.tell_one(link, *manifest, held)).await;
            if let Ok(Err(error)) = &one {
                tracing::debug!(peer = link.address(), error = %Chain(error.as_ref()), "could not announce");
            }
            told &= matches!(one, Ok(Ok(())));
        }
        // Nothing more is sent until the next announcement, so close the connection rather than
        // keep it alive. A count above 2 (the list it is in, and this reference) means that another
        // task uses the connection.
        if Arc::strong_count(link) <= 2 {
            link.close(CloseCode::Done);
        }
        told
    }

    async fn tell_one(
        &self,
        link: &Arc<Link>,
        manifest: ManifestId,
        held: &ChunkRanges,
    ) -> anyhow::Result<()> {
        let own = self.lateral.neighbourhood.own_record(link.remote())?;
        let capability = self.parents.capability_for(link.role(), manifest).await;
        let mut swarm = link.open_swarm_exchanging(manifest, capability, own).await?;
        swarm.announce(held).await?;
        let mut met = Vec::new();
        // The list of neighbours is the answer to wait for. HAVE frames of the peer may come before
        // it.
        while let Some(event) = swarm.next_event().await? {
            if let ControlEvent::Peers(records) = event {
                met = self.lateral.neighbourhood.take(manifest, records);
                break;
            }
        }
        swarm.finish().await?;
        for neighbour in met {
            self.lateral.neighbourhood.remember(&neighbour);
        }
        Ok(())
    }
}

/// Returns the installed artifacts, each with the ids of its chunks, and the paths of those whose
/// manifest is missing.
fn holdings(data: &std::path::Path) -> (Vec<(ManifestId, ChunkRanges)>, BTreeSet<PathBuf>) {
    let (mut found, mut missing) = (Vec::new(), BTreeSet::new());
    for artifact in installed::list(data) {
        if found.len() == ANNOUNCED_MAX || found.iter().any(|(id, _)| *id == artifact.manifest) {
            continue;
        }
        let kept = read_kept_manifest(&artifact.path, data).filter(|kept| kept.id() == artifact.manifest);
        // An artifact that was removed is not missed.
        if kept.is_none() && artifact.path.exists() {
            missing.insert(artifact.path);
        }
        found.extend(kept.map(|kept| (kept.id(), kept.entries().map(|at| at.entry.id).collect())));
    }
    (found, missing)
}
