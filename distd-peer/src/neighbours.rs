//! The neighbours of this device: the ones it knows of, and the connections to them, shared by all
//! swarms.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::PeerRecord;
use distd_core::swarm::{DialBackoff, Neighbour, SiteKey, may_dial};
use distd_core::{ManifestId, NodeId};
use quinn::Endpoint;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::{monotonic_now, unix_now};
use crate::net::{Link, LinkError, Meter, MeterReading, own_address};
use crate::news::Newsroom;
use crate::quarantine::Quarantine;
use crate::serve::Sites;
use crate::trust::files;
use crate::trust::identity::IdentityError;
use crate::trust::record::{RecordSigner, verify_record};
use crate::trust::token::sha256;

/// Maximum number of neighbours remembered over restarts; beyond it the one heard of longest ago is
/// forgotten.
const REMEMBERED_MAX: usize = 64;

/// Maximum number of neighbours found by multicast DNS.
const LOCAL_MAX: usize = 64;

/// Number of connections, made or attempted, from which on unused ones are forgotten.
const LINKS_MAX: usize = 64;

/// How long a neighbour that is not heard of again is remembered, seconds.
const REMEMBERED_SECONDS: u64 = 30 * 24 * 3600;

/// Reason why a neighbour cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NeighbourError {
    /// Dialling the neighbour failed, or its connection did.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The neighbour sent wrong bytes before, did not answer several times, or is farther away than
    /// this device may reach.
    #[error("neighbour {0} is in quarantine or out of reach")]
    Unusable(NodeId),
    /// This node's own record could not be signed.
    #[error("could not sign this node's peer record")]
    Record(#[source] IdentityError),
}

type LinkSlot = Arc<tokio::sync::Mutex<Option<Arc<Link>>>>;

/// Settings of a device's exchange with its neighbours.
pub struct Neighbours {
    /// Whether neighbours may dial this device.
    pub serves: bool,
    /// Nodes that are not asked.
    pub quarantine: Arc<Quarantine>,
    /// Directory that receives learned peer records, from which the device's own server advertises
    /// them.
    pub sites: Arc<Sites>,
    /// File with the neighbours reached in earlier sessions; `None` to remember none.
    pub remembered: Option<PathBuf>,
    /// News of this device, which travels on the control streams of swarms too.
    pub news: Option<Arc<Newsroom>>,
    /// Whether an address may be dialled.
    pub allowed: Box<dyn Fn(SocketAddr) -> bool + Send + Sync>,
}

/// The neighbours of a device and its connections to them.
pub struct Neighbourhood {
    endpoint: Endpoint,
    ca: CertificateDer<'static>,
    signer: RecordSigner,
    settings: Neighbours,
    links: Mutex<HashMap<Neighbour, LinkSlot>>,
    remembered: Remembered,
    /// Neighbours found by multicast DNS.
    local: watch::Sender<BTreeSet<Neighbour>>,
    dial_backoff: Mutex<DialBackoff>,
    meter: Arc<Meter>,
}

impl Neighbourhood {
    /// Creates a neighbourhood that dials from `endpoint`, where the device also listens if it
    /// serves.
    pub fn new(
        endpoint: Endpoint,
        ca: CertificateDer<'static>,
        signer: RecordSigner,
        settings: Neighbours,
    ) -> Arc<Self> {
        let remembered = Remembered::load(settings.remembered.as_deref());
        let (links, dial_backoff, meter) = (Mutex::default(), Mutex::default(), Arc::default());
        let local = watch::Sender::new(BTreeSet::new());
        Arc::new(Self { endpoint, ca, signer, settings, links, remembered, local, dial_backoff, meter })
    }

    /// Id of this device.
    pub fn node_id(&self) -> NodeId {
        self.signer.node_id()
    }

    /// SHA-256 of the realm CA's certificate.
    pub(crate) fn realm(&self) -> [u8; 32] {
        sha256(&self.ca)
    }

    /// Port where neighbours find this device permanently; `None` if it does not serve or does not
    /// stay.
    pub(crate) fn resident_port(&self) -> Option<u16> {
        let stays = self.settings.serves && self.signer.is_resident();
        self.endpoint.local_addr().ok().filter(|_| stays).map(|at| at.port())
    }

    /// Takes a neighbour that was found by multicast DNS.
    pub(crate) fn found(&self, neighbour: Neighbour) {
        if self.is_usable(&neighbour) {
            self.local.send_if_modified(|local| local.len() < LOCAL_MAX && local.insert(neighbour));
        }
    }

    /// Neighbours found by multicast DNS, now and as more are found.
    pub fn local(&self) -> watch::Receiver<BTreeSet<Neighbour>> {
        self.local.subscribe()
    }

    fn dial_backoff(&self) -> MutexGuard<'_, DialBackoff> {
        self.dial_backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a neighbour may be dialled: it is not this device itself, not in quarantine, not too
    /// far away, and did not just fail to answer several dials.
    fn is_usable(&self, neighbour: &Neighbour) -> bool {
        if !(self.settings.allowed)(neighbour.address) {
            return false;
        }
        let own = self.signer.node_id();
        let (backoff, quarantine) = (self.dial_backoff(), self.settings.quarantine.list());
        may_dial(monotonic_now(), unix_now(), &own, neighbour, &backoff, &quarantine)
    }

    /// This node's record, for the node at `remote`.
    ///
    /// # Errors
    /// [`NeighbourError::Record`].
    pub fn own_record(&self, remote: SocketAddr) -> Result<PeerRecord, NeighbourError> {
        let port = self.endpoint.local_addr().map_or(0, |at| at.port());
        let own = own_address(remote, port).ok().filter(|_| self.settings.serves && port != 0);
        self.signer.sign(own.into_iter().collect()).map_err(NeighbourError::Record)
    }

    /// News of this device.
    pub(crate) fn news(&self) -> Option<&Arc<Newsroom>> {
        self.settings.news.as_ref()
    }

    /// How long a record of this node is valid, seconds.
    pub fn record_seconds(&self) -> u64 {
        self.signer.seconds()
    }

    /// Returns the neighbours in `records`, which came in the swarm of `manifest`: those whose
    /// record verifies and that may be dialled.
    pub fn take(&self, manifest: ManifestId, records: Vec<PeerRecord>) -> Vec<Neighbour> {
        let now = unix_now();
        let mut found = Vec::new();
        for record in records {
            let node = match verify_record(&record, &self.ca, now) {
                Ok(node) => node,
                Err(error) => {
                    tracing::info!(error = %Chain(&error), "peer record refused");
                    continue;
                }
            };
            let first = record.addresses.iter().map(|&address| Neighbour { node, address });
            let Some(neighbour) = first.into_iter().find(|neighbour| self.is_usable(neighbour)) else {
                continue;
            };
            found.push(neighbour);
            self.settings.sites.learned(node, manifest, record);
        }
        found
    }

    /// Neighbours of earlier sessions, most recently heard of first.
    pub fn remembered(&self) -> Vec<Neighbour> {
        let mut known = self.remembered.list(unix_now());
        known.retain(|neighbour| self.is_usable(neighbour));
        known
    }

    /// Resident nodes whose records this device's own server or a parent's list brought.
    pub(crate) fn residents(&self) -> Vec<Neighbour> {
        let residents = self.settings.sites.residents().into_iter();
        residents.filter(|neighbour| self.is_usable(neighbour)).collect()
    }

    /// Remembers a neighbour for later sessions.
    pub fn remember(&self, neighbour: &Neighbour) {
        self.remembered.add(neighbour, unix_now());
    }

    /// Returns the connection to a neighbour and makes one if there is none.
    ///
    /// # Errors
    /// [`NeighbourError`].
    pub async fn link(&self, neighbour: &Neighbour) -> Result<Arc<Link>, NeighbourError> {
        let node = neighbour.node;
        if !self.is_usable(neighbour) {
            return Err(NeighbourError::Unusable(node));
        }
        let slot = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            if links.len() >= LINKS_MAX {
                links.retain(|_, slot| is_in_use(slot));
            }
            links.entry(neighbour.clone()).or_default().clone()
        };
        let mut held = slot.lock().await;
        if let Some(link) = held.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        self.dial_backoff().handle_dialled(monotonic_now(), node);
        let dialled =
            Link::connect_neighbour(&self.endpoint, neighbour.address, node, &self.meter, unix_now()).await?;
        self.dial_backoff().handle_reached(&node);
        let link = Arc::new(dialled);
        self.remember(neighbour);
        *held = Some(link.clone());
        Ok(link)
    }

    /// Quarantines the node behind a link, persistently, and closes the link.
    pub fn quarantine(&self, link: &Link) {
        self.settings.quarantine.add(link.node_id(), unix_now());
        link.close(CloseCode::IntegrityFailed);
    }

    /// Nodes that have the swarm of `manifest` open at this device and that listen, too.
    pub(crate) fn callers(&self, manifest: &ManifestId) -> Vec<Neighbour> {
        let callers = self.settings.sites.callers(manifest).into_iter();
        callers.filter(|neighbour| self.is_usable(neighbour)).collect()
    }

    /// Receiver that is marked as changed when the device's directory changes, for example because
    /// another node opened a swarm here.
    pub(crate) fn calls(&self) -> watch::Receiver<()> {
        self.settings.sites.changes(&SiteKey::default())
    }

    /// Nodes from which this device takes nothing.
    pub(crate) fn shunned(&self) -> Vec<NodeId> {
        self.settings.quarantine.nodes(unix_now())
    }

    /// Receiver that is marked as changed whenever a node is added to [`Self::shunned`].
    pub(crate) fn shunning(&self) -> watch::Receiver<()> {
        self.settings.quarantine.changes()
    }

    /// Traffic received from neighbours so far.
    pub fn reading(&self) -> MeterReading {
        self.meter.read()
    }
}

/// Whether a task is dialling with this slot, or the slot's connection is open.
fn is_in_use(slot: &LinkSlot) -> bool {
    Arc::strong_count(slot) > 1
        || slot.try_lock().is_ok_and(|held| held.as_ref().is_some_and(|link| !link.is_closed()))
}

/// One entry of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    node: String,
    address: SocketAddr,
    /// When the node was last heard of, unix seconds.
    heard: u64,
}

/// Neighbours that were reached, in a JSON file. These are only addresses to try: the node that
/// answers must show the certificate of the remembered node.
struct Remembered {
    path: Option<PathBuf>,
    lines: Mutex<BTreeMap<Neighbour, u64>>,
}

impl Remembered {
    fn load(path: Option<&Path>) -> Self {
        let Some(path) = path else { return Self { path: None, lines: Mutex::default() } };
        let lines: Vec<Line> = match files::read(path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "list of neighbours is unreadable; starting with an empty list");
                Vec::new()
            }),
            _ => Vec::new(),
        };
        let parse = |line: Line| {
            Some((Neighbour { node: line.node.parse().ok()?, address: line.address }, line.heard))
        };
        let lines = lines.into_iter().take(REMEMBERED_MAX).filter_map(parse).collect();
        Self { path: Some(path.to_owned()), lines: Mutex::new(lines) }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Neighbour, u64>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, now: u64) -> Vec<Neighbour> {
        let lines = self.lines();
        let young = lines.iter().filter(|(_, heard)| heard.saturating_add(REMEMBERED_SECONDS) > now);
        let mut list: Vec<_> = young.map(|(neighbour, heard)| (*heard, neighbour.clone())).collect();
        list.sort_by_key(|(heard, _)| std::cmp::Reverse(*heard));
        list.into_iter().map(|(_, neighbour)| neighbour).collect()
    }

    fn add(&self, neighbour: &Neighbour, now: u64) {
        let mut lines = self.lines();
        // A resident device keeps its address; the address of a single pull is gone when the pull
        // ends.
        lines.insert(neighbour.clone(), now);
        while lines.len() > REMEMBERED_MAX {
            let oldest =
                lines.iter().min_by_key(|(_, heard)| **heard).map(|(neighbour, _)| neighbour.clone());
            oldest.map(|neighbour| lines.remove(&neighbour));
        }
        let Some(path) = &self.path else { return };
        let list: Vec<Line> = lines
            .iter()
            .map(|(n, heard)| Line { node: n.node.to_string(), address: n.address, heard: *heard })
            .collect();
        let text = serde_json::to_vec_pretty(&list).expect("strings and numbers always encode");
        if let Err(error) = files::write_atomic(path, &text, 0o600) {
            tracing::warn!(
                error = %Chain(&error),
                "list of neighbours could not be written; it will be lost at the next restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_outlive_a_restart_and_are_bounded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("neighbours.json");
        let neighbour = |n: u8| Neighbour { node: NodeId([n; 16]), address: ([10, 0, 0, n], 4434).into() };
        let first = Remembered::load(Some(&path));
        for n in 0..REMEMBERED_MAX as u8 + 5 {
            first.add(&neighbour(n), 1000 + u64::from(n));
        }
        let again = Remembered::load(Some(&path)).list(2000);
        assert_eq!(again.len(), REMEMBERED_MAX);
        assert_eq!(again[0], neighbour(REMEMBERED_MAX as u8 + 4), "the one heard of last");
        assert!(!again.contains(&neighbour(0)));
        assert!(Remembered::load(Some(&path)).list(1100 + REMEMBERED_SECONDS).is_empty());
        std::fs::write(&path, "garbage").expect("write");
        assert!(Remembered::load(Some(&path)).list(0).is_empty());
    }
}
