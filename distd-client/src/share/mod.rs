//! A device's part in the exchange of its site: the artifacts that it serves (`artifacts`,
//! [`installed`]), and how far its packets may go (`connectivity`). [`agent`] is a process that
//! only serves.

pub mod agent;
mod artifacts;
mod connectivity;
pub mod installed;
mod node;
mod settings;

pub use connectivity::Connectivity;
pub(crate) use node::open_sockets;
pub use node::{DeviceNode, anywhere};
pub use settings::Sharing;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::swarm::{Linger, SiteRule};
use distd_peer::clock::monotonic_now;
use distd_peer::driver::Exchange;
use distd_peer::manifest_fetch::fetch_manifest;
use distd_peer::mdns::Mdns;
use distd_peer::neighbours::{Neighbourhood, Neighbours};
use distd_peer::news::Newsroom;
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::serve::{ServeConfig, Server, Sites};
use distd_peer::share::{ChunkBytes, Device, DeviceContent, Holdings, InstalledArtifacts, SharedSwarm};
use distd_peer::table::ChunkTable;
use distd_peer::trust::record::{RecordSigner, RecordText};
use quinn::Endpoint;
use rustls::pki_types::CertificateDer;
use tokio::task::AbortHandle;

use self::artifacts::KeptArtifacts;

/// File in the state directory with the neighbours of earlier sessions.
const NEIGHBOURS_FILE: &str = "neighbours.json";

/// Time to wait for the first answer to multicast DNS when no neighbour is known.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// This device's side of the exchange, for as long as the process runs.
pub struct Lateral {
    pub(crate) neighbourhood: Arc<Neighbourhood>,
    pub(crate) content: Arc<DeviceContent>,
    pub(crate) server: Arc<Server>,
    sites: Arc<Sites>,
    parents: Arc<Parents>,
    serving: AbortHandle,
    /// Multicast DNS; `None` when it is off or could not be started.
    mdns: Option<Mdns>,
}

/// A node as its exchange with neighbours needs it.
pub(crate) struct Station {
    /// Socket that listens and dials.
    pub(crate) endpoint: Endpoint,
    /// Certificate of the realm's CA.
    pub(crate) ca: CertificateDer<'static>,
    /// Signer of the node's records.
    pub(crate) signer: RecordSigner,
    /// Nodes that are not asked.
    pub(crate) quarantine: Arc<Quarantine>,
    /// File with the neighbours of earlier sessions; `None` to remember none.
    pub(crate) remembered: Option<PathBuf>,
    /// Artifacts that are served beside those being fetched.
    pub(crate) installed: Arc<dyn InstalledArtifacts>,
    /// Parents of the node.
    pub(crate) parents: Arc<Parents>,
}

impl Lateral {
    /// Starts to serve as `node`. `resident` says that the process keeps running after its current
    /// work; `news` is what the device tells its peers.
    ///
    /// # Errors
    /// When the identity is incomplete or cannot sign.
    pub fn start(
        node: &DeviceNode,
        sharing: &Sharing,
        resident: bool,
        news: Option<Arc<Newsroom>>,
    ) -> anyhow::Result<Self> {
        let ca = node.identity.ca_der().context("the device has no CA certificate")?.clone();
        let text = RecordText { site: sharing.site.clone(), resident };
        let station = Station {
            endpoint: node.endpoint.clone(),
            ca,
            signer: RecordSigner::new(&node.identity, node.credentials.clone(), text)?,
            quarantine: node.quarantine.clone(),
            remembered: Some(node.data.join(NEIGHBOURS_FILE)),
            installed: KeptArtifacts::new(node.data.clone(), node.parents.clone()),
            parents: node.parents.clone(),
        };
        Ok(Self::open(station, sharing, news))
    }

    /// Starts to serve from `station`.
    pub(crate) fn open(station: Station, sharing: &Sharing, news: Option<Arc<Newsroom>>) -> Self {
        let Station { endpoint, ca, signer, quarantine, remembered, installed, parents } = station;
        let sites = Sites::new(ca.clone(), SiteRule::All, false);
        let reach = sharing.connectivity;
        let neighbourhood = Neighbourhood::new(
            endpoint.clone(),
            ca,
            signer,
            Neighbours {
                serves: sharing.serves,
                quarantine,
                sites: sites.clone(),
                remembered,
                news: news.clone(),
                allowed: Box::new(move |address| reach.allows_neighbour(address)),
            },
        );
        let content = DeviceContent::new(installed, parents.clone());
        let config = ServeConfig { sites: Some(sites.clone()), news, ..sharing.serve_config() };
        let server = Server::new(Arc::new(Device(content.clone())), config);
        let running = server.clone();
        let serves = sharing.serves;
        let serving = tokio::spawn(async move {
            if serves {
                running.run(endpoint).await;
            }
        });
        let mdns = sharing.mdns.then(|| Mdns::start(&neighbourhood)).and_then(|started| {
            started
                .inspect_err(|error| tracing::info!(error = %Chain(&error), "could not start multicast DNS"))
                .ok()
        });
        let serving = serving.abort_handle();
        Self { neighbourhood, content, server, sites, parents, serving, mdns }
    }

    /// Serves the held chunks of a manifest until the returned value is dropped.
    pub fn publish(
        self: &Arc<Self>,
        manifest: Arc<Manifest>,
        table: Arc<ChunkTable>,
        holdings: Arc<Holdings>,
        bytes: Arc<dyn ChunkBytes>,
    ) -> Published {
        let id = manifest.id();
        let known = self.content.clone();
        let counters = self.content.counters.clone();
        self.content.publish(SharedSwarm::new(manifest, table, holdings.clone(), bytes, known, counters));
        Published { lateral: self.clone(), id, holdings }
    }

    /// Fetches a manifest from any known neighbour that has it, for when no parent can be reached.
    pub async fn manifest(
        &self,
        id: ManifestId,
        root: Option<Bytes>,
        held: &[&Manifest],
    ) -> Option<Manifest> {
        let mut known = self.neighbourhood.remembered();
        let mut local = self.neighbourhood.local();
        if known.is_empty() && self.mdns.is_some() && local.borrow().is_empty() {
            // Multicast DNS may still bring the first neighbour.
            let _ = tokio::time::timeout(FIRST_ANSWER, local.changed()).await;
        }
        known.extend(local.borrow().iter().cloned());
        for neighbour in known {
            let Ok(link) = self.neighbourhood.link(&neighbour).await else { continue };
            let capability = self.parents.capability(id).await;
            let Ok(swarm) = link.open_swarm(id, capability).await else { continue };
            let fetched = fetch_manifest(&swarm.handle(), id, root.clone(), held).await;
            swarm.leave();
            match fetched {
                Ok(manifest) => return Some(manifest),
                Err(error) if error.is_breach() => self.neighbourhood.quarantine(&link),
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "a neighbour does not have the manifest")
                }
            }
        }
        None
    }

    /// Waits until no neighbour has the swarm open any more, or for as long as
    /// [`Linger`] makes of `most`.
    pub async fn linger(&self, manifest: &ManifestId, most: Duration) {
        let linger = Linger::new(monotonic_now(), most);
        while let Some(next) = linger.poll(monotonic_now(), self.sites.members(manifest)) {
            tokio::time::sleep(next.since(monotonic_now())).await;
        }
    }

    /// Returns the number of packed chunk bytes sent so far.
    pub fn served_bytes(&self) -> u64 {
        self.server.counters.chunk_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Lateral {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A served swarm; dropping it stops the serving.
pub struct Published {
    lateral: Arc<Lateral>,
    id: ManifestId,
    holdings: Arc<Holdings>,
}

impl Published {
    /// Returns the settings with which a driver of the swarm takes part in the exchange.
    pub fn exchange(&self) -> Exchange {
        Exchange { neighbourhood: self.lateral.neighbourhood.clone(), holdings: self.holdings.clone() }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.lateral.content.withdraw(&self.id);
    }
}
