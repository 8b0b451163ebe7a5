//! The [`Content`] of a device: the artifacts it is pulling and those it has installed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::manifest::Manifest;

use super::swarm::Serving;
use super::{Manifests, ShareCounters, SharedSwarm};
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
}

/// Content that a device serves to its neighbours: chunks and manifest nodes. Serves neither
/// metadata nor enrolments, as a device is nobody's parent.
pub struct DeviceContent {
    published: Mutex<BTreeMap<ManifestId, Arc<SharedSwarm>>>,
    installed: Arc<dyn InstalledArtifacts>,
    /// Counters of all swarms.
    pub counters: Arc<ShareCounters>,
}

impl DeviceContent {
    /// Creates the content of a device with these installed artifacts.
    pub fn new(installed: Arc<dyn InstalledArtifacts>) -> Arc<Self> {
        Arc::new(Self { published: Mutex::default(), installed, counters: Arc::default() })
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

    async fn metadata(&self, _query: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }

    async fn enroll(&self, _body: Bytes) -> Result<Bytes, ServeError> {
        Err(ServeError::Unauthorised)
    }
}
