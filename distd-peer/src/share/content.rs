//! The [`Content`] of a device: the artifacts it is pulling and those it has installed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::fleet::Right;
use distd_core::manifest::Manifest;

use super::swarm::Serving;
use super::{Manifests, ShareCounters, SharedSwarm};
use crate::capabilities::Permit;
use crate::clock::unix_now;
use crate::parents::Parents;
use crate::serve::{Content, NodeBudget, ServeError, Swarm};
use crate::trust::tls::PeerIdentity;

/// The artifacts that a device has installed, besides those it is pulling.
#[async_trait]
pub trait InstalledArtifacts: Send + Sync + 'static {
    /// Returns the device's swarm of this manifest; `None` if it holds nothing of it. A manifest
    /// that must be fetched first is charged to `budget`, the asker's.
    async fn find(
        &self,
        id: ManifestId,
        budget: &NodeBudget,
        content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>>;

    /// Returns a manifest if it is known here.
    fn manifest(&self, id: &ManifestId) -> Option<Arc<Manifest>>;

    /// Whether an artifact with this manifest is installed.
    fn is_installed(&self, id: &ManifestId) -> bool;
}

/// Content that a device serves to its neighbours: chunks and manifest nodes. Serves neither
/// metadata nor enrolments, as a device is nobody's parent.
pub struct DeviceContent {
    published: Mutex<BTreeMap<ManifestId, Arc<SharedSwarm>>>,
    installed: Arc<dyn InstalledArtifacts>,
    /// Parents of the device, which give it its capabilities.
    parents: Arc<Parents>,
    /// Counters of all swarms.
    pub counters: Arc<ShareCounters>,
}

impl DeviceContent {
    /// Creates the content of a device with these installed artifacts and parents.
    pub fn new(installed: Arc<dyn InstalledArtifacts>, parents: Arc<Parents>) -> Arc<Self> {
        Arc::new(Self { published: Mutex::default(), installed, parents, counters: Arc::default() })
    }

    fn published(&self) -> MutexGuard<'_, BTreeMap<ManifestId, Arc<SharedSwarm>>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a swarm from now on.
    pub fn publish(&self, swarm: Arc<SharedSwarm>) {
        self.published().insert(swarm.manifest().id(), swarm);
    }

    /// Stops serving a swarm to new peers; peers that already have it open keep it.
    pub fn withdraw(&self, id: &ManifestId) {
        self.published().remove(id);
    }
}

impl Manifests for DeviceContent {
    fn manifest(&self, id: &ManifestId) -> Option<Arc<Manifest>> {
        let published = self.published().get(id).map(|swarm| swarm.manifest().clone());
        published.or_else(|| self.installed.manifest(id))
    }
}

/// [`DeviceContent`] as the trait object a server takes.
pub struct Device(pub Arc<DeviceContent>);

#[async_trait]
impl Content for Device {
    async fn permit(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        shown: &Bytes,
    ) -> Result<Permit, ServeError> {
        let capabilities = self.0.parents.capabilities();
        let judge = || capabilities.permit(&peer.node_id, &manifest, shown, unix_now());
        let mut permit = judge();
        let is_own =
            || self.0.published().contains_key(&manifest) || self.0.installed.is_installed(&manifest);
        // The device does not know its own rights now, or a device of an earlier release asks and
        // the origin may have released the manifest for any node. Nobody else makes this device
        // ask.
        let asks = match &permit {
            Ok(_) => capabilities.rights(&manifest, unix_now()).is_empty(),
            Err(_) => shown.is_empty() && is_own(),
        };
        if asks && !budget.is_spent() && !capabilities.was_settled(&manifest) {
            let _few = budget.opening().await;
            self.0.parents.capability(manifest).await;
            permit = judge();
        }
        let permit = permit.map_err(ServeError::NotPermitted)?;
        // The origin decides whether this device may serve, too.
        match capabilities.rights(&manifest, unix_now()).has(Right::Seed) {
            true => Ok(permit),
            false => Err(ServeError::Unauthorised),
        }
    }

    async fn swarm(
        &self,
        _peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        id: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        let published = self.0.published().get(&id).cloned();
        let found = match published {
            Some(swarm) => Some(swarm),
            None => self.0.installed.find(id, budget, &self.0).await,
        };
        let swarm = found.ok_or(ServeError::NoManifest(id))?;
        Ok(Arc::new(Serving(swarm)))
    }

    async fn metadata(&self, _peer: &PeerIdentity, _query: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }

    async fn enroll(&self, _body: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }
}
