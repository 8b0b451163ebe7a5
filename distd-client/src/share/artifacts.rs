//! Installed artifacts, opened when a neighbour asks. Each artifact is its own chunk store; the
//! manifest beside it says where each chunk is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use distd_core::error::Chain;
use distd_core::manifest::{ChunkAt, Entry, Manifest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchCredit;
use distd_core::{ChunkId, ManifestId};
use distd_peer::clock::monotonic_now;
use distd_peer::manifest_fetch::fetch_manifest_within;
use distd_peer::parents::Parents;
use distd_peer::serve::NodeBudget;
use distd_peer::share::{ChunkBytes, DeviceContent, Holdings, InstalledArtifacts, SharedSwarm};
use distd_peer::table::ChunkTable;

use super::installed::{self, Installed};
use crate::pull::{SeedFile, open_artifact, read_kept_manifest};

/// Number of swarms kept open. One costs its manifest and an index, some 3 MB for an image of 800
/// MB.
const OPEN_MAX: usize = 3;

/// Number of installed artifacts searched for chunks of a manifest that is not installed.
const SEARCHED_MAX: usize = 2;

/// Time for which a device remembers that it holds no chunk of a manifest.
const NOTHING: Duration = Duration::from_secs(30);

/// Largest number of such manifests that are remembered.
const NOTHING_MAX: usize = 256;

/// Largest size of the nodes fetched for a manifest that only a neighbour named, in bytes. An image
/// of 18 GB has as many.
const FOREIGN_BYTES_MAX: u64 = 16 << 20;

/// Cost charged for a search, in bytes: it reads the manifests of installed artifacts.
const LOOK_COST: u64 = 256 << 10;

/// Bytes of manifests that all neighbours together may make this device fetch per hour.
const FOREIGN_CREDIT: u64 = 64 << 20;

/// Open swarms, with the time of their last use.
type Opened = Vec<(ManifestId, Instant, Arc<SharedSwarm>)>;

/// The installed artifacts of a device.
pub(super) struct KeptArtifacts {
    data: PathBuf,
    parents: Arc<Parents>,
    opened: Mutex<Opened>,
    /// Manifests of which no chunk is held, and when that was found.
    nothing: Mutex<HashMap<ManifestId, Instant>>,
    /// Held while an installed artifact is opened, so that many askers at once open it only once.
    opening: tokio::sync::Mutex<()>,
    /// Held while another manifest is fetched for a neighbour. One is fetched at a time, and
    /// opening an installed artifact does not wait for it.
    fetching: tokio::sync::Mutex<()>,
    credit: Mutex<FetchCredit>,
}

impl KeptArtifacts {
    /// Serves the artifacts listed in `data`. Manifests that are not installed are fetched from the
    /// parents.
    pub(super) fn new(data: PathBuf, parents: Arc<Parents>) -> Arc<Self> {
        Arc::new(Self {
            data,
            parents,
            opened: Mutex::default(),
            nothing: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            credit: Mutex::new(FetchCredit::new(FOREIGN_CREDIT, monotonic_now())),
        })
    }

    fn credit(&self) -> MutexGuard<'_, FetchCredit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nothing(&self) -> MutexGuard<'_, HashMap<ManifestId, Instant>> {
        self.nothing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, id: ManifestId) -> Option<Arc<SharedSwarm>> {
        let mut opened = self.opened();
        let (_, used, swarm) = opened.iter_mut().find(|(other, ..)| *other == id)?;
        *used = Instant::now();
        Some(swarm.clone())
    }

    fn keep(&self, id: ManifestId, swarm: &Arc<SharedSwarm>) {
        let mut opened = self.opened();
        opened.push((id, Instant::now(), swarm.clone()));
        while opened.len() > OPEN_MAX {
            let oldest = (0..opened.len()).min_by_key(|n| opened[*n].1);
            oldest.map(|n| opened.swap_remove(n));
        }
    }

    /// Opens the installed artifact `whole`.
    async fn open_installed(
        &self,
        whole: &Installed,
        content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>> {
        let _one = self.opening.lock().await;
        if let Some(known) = self.look(whole.manifest) {
            return Some(known);
        }
        let (held, bytes) = self.load(whole).await?;
        let index = Index::of(bytes, &held);
        let swarm = serve(Arc::new(held), vec![index], content);
        self.keep(whole.manifest, &swarm);
        Some(swarm)
    }

    /// Opens the chunks that installed artifacts share with another manifest, which has to be
    /// fetched from a parent.
    async fn open_foreign(
        &self,
        id: ManifestId,
        installed: &[Installed],
        budget: &NodeBudget,
        content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>> {
        let _few = budget.opening().await;
        let _one = self.fetching.lock().await;
        if let Some(known) = self.look(id) {
            return Some(known);
        }
        let is_nothing = self.nothing().get(&id).is_some_and(|at| at.elapsed() < NOTHING);
        if is_nothing || budget.is_spent() || self.credit().is_spent(monotonic_now()) {
            return None;
        }
        let mut parts = Vec::new();
        for artifact in installed.iter().take(SEARCHED_MAX) {
            parts.extend(self.load(artifact).await);
        }
        let swarm = if parts.is_empty() { None } else { self.open_parts(id, parts, budget, content).await };
        match &swarm {
            Some(swarm) => self.keep(id, swarm),
            None => {
                let mut nothing = self.nothing();
                if nothing.len() >= NOTHING_MAX {
                    nothing.retain(|_, at| at.elapsed() < NOTHING);
                }
                if nothing.len() < NOTHING_MAX {
                    nothing.insert(id, Instant::now());
                }
            }
        }
        swarm
    }

    async fn open_parts(
        &self,
        id: ManifestId,
        parts: Vec<(Manifest, SeedFile)>,
        budget: &NodeBudget,
        content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>> {
        let held: Vec<&Manifest> = parts.iter().map(|(manifest, _)| manifest).collect();
        let manifest = self.fetch(id, &held, budget).await?;
        let indexes = parts.into_iter().map(|(manifest, bytes)| Index::of(bytes, &manifest)).collect();
        let swarm = serve(Arc::new(manifest), indexes, content);
        (!swarm.holdings().snapshot().is_empty()).then_some(swarm)
    }

    async fn load(&self, artifact: &Installed) -> Option<(Manifest, SeedFile)> {
        let (data, artifact) = (self.data.clone(), artifact.clone());
        let load = move || {
            let manifest = read_kept_manifest(&artifact.path, &data)?;
            // If the ids differ, the file was replaced outside distd.
            let manifest = Some(manifest).filter(|manifest| manifest.id() == artifact.manifest)?;
            Some((manifest, open_artifact(&artifact.path, &data).ok()?))
        };
        tokio::task::spawn_blocking(load).await.ok()?
    }

    async fn fetch(&self, id: ManifestId, held: &[&Manifest], budget: &NodeBudget) -> Option<Manifest> {
        for index in 0..self.parents.len() {
            let Ok(link) = self.parents.link(index).await else { continue };
            let capability = self.parents.capability_for(link.role(), id).await;
            let Ok(swarm) = link.open_swarm(id, capability).await else { continue };
            let fetched = fetch_manifest_within(&swarm.handle(), id, None, held, FOREIGN_BYTES_MAX).await;
            swarm.leave();
            // Charge at least the cost of this device's own search.
            let cost = fetched.as_ref().map_or(LOOK_COST, |manifest| manifest.nodes_bytes().max(LOOK_COST));
            budget.charge(cost);
            self.credit().charge(monotonic_now(), cost);
            match fetched {
                Ok(manifest) => return Some(manifest),
                Err(error) if error.is_breach() => self.parents.quarantine(&link),
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "could not fetch a manifest for a neighbour")
                }
            }
        }
        None
    }
}

fn serve(manifest: Arc<Manifest>, indexes: Vec<Index>, content: &Arc<DeviceContent>) -> Arc<SharedSwarm> {
    let table = Arc::new(ChunkTable::of(&manifest));
    let held: ChunkRanges =
        table.ids().ids().filter(|id| indexes.iter().any(|index| index.offset(*id).is_some())).collect();
    let holdings = Arc::new(Holdings::new(held));
    let counters = content.counters.clone();
    SharedSwarm::new(manifest, table, holdings, Arc::new(Indexes(indexes)), content.clone(), counters)
}

#[async_trait]
impl InstalledArtifacts for KeptArtifacts {
    async fn find(
        &self,
        id: ManifestId,
        budget: &NodeBudget,
        content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>> {
        if let Some(known) = self.look(id) {
            return Some(known);
        }
        let installed = installed::list(&self.data);
        match installed.iter().find(|artifact| artifact.manifest == id) {
            Some(whole) => self.open_installed(whole, content).await,
            None => self.open_foreign(id, &installed, budget, content).await,
        }
    }

    fn is_installed(&self, id: &ManifestId) -> bool {
        installed::list(&self.data).iter().any(|artifact| artifact.manifest == *id)
    }

    fn manifest(&self, id: &ManifestId) -> Option<Arc<Manifest>> {
        let opened = self.opened();
        let (.., swarm) = opened.iter().find(|(other, ..)| other == id)?;
        Some(swarm.manifest().clone())
    }
}

/// Offsets of the chunks of one artifact, 16 bytes each. Chunk ids are unique in the realm, so the
/// chunks of another manifest are found too.
struct Index {
    bytes: SeedFile,
    offsets: Vec<(ChunkId, u64)>,
}

impl Index {
    fn of(bytes: SeedFile, manifest: &Manifest) -> Self {
        let mut offsets: Vec<_> =
            manifest.entries().map(|ChunkAt { offset, entry }| (entry.id, offset)).collect();
        offsets.sort_unstable();
        offsets.dedup_by_key(|(id, _)| *id);
        offsets.shrink_to_fit();
        Self { bytes, offsets }
    }

    fn offset(&self, id: ChunkId) -> Option<u64> {
        let at = self.offsets.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.offsets[at].1)
    }
}

struct Indexes(Vec<Index>);

impl ChunkBytes for Indexes {
    fn read(&self, entry: &Entry, buffer: &mut [u8]) -> bool {
        // If a damaged copy of the chunk fails its hash, try the next artifact.
        self.0.iter().any(|index| {
            index.offset(entry.id).is_some_and(|offset| {
                index.bytes.read_at(offset, buffer).is_ok() && distd_core::ChunkHash::of(buffer) == entry.hash
            })
        })
    }
}
