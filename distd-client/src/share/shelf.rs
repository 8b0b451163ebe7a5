//! What is installed, opened when a neighbour asks: each artifact is its own store, its manifest beside it says what is where.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use distd_core::manifest::{ChunkAt, Entry, Manifest};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkId, ManifestId};
use distd_peer::manifest_fetch::fetch_manifest;
use distd_peer::parents::Parents;
use distd_peer::share::{ChunkBytes, DeviceContent, Holdings, SharedSwarm, Shelf};
use distd_peer::table::ChunkTable;

use super::installed::{self, Installed};
use crate::pull::{Bytes, open_artifact, read_kept_manifest};

/// Swarms kept open; one costs its manifest and an index, some 3 MB for an 800 MB image.
const OPEN_MAX: usize = 3;

/// Artifacts searched for what they hold of a manifest that is not theirs.
const SEARCHED_MAX: usize = 2;

/// How long it is remembered that nothing is held of a manifest.
const NOTHING: Duration = Duration::from_secs(30);

/// Swarms opened, with the time of their last use; `None` where nothing is held.
type Opened = Vec<(ManifestId, Instant, Option<Arc<SharedSwarm>>)>;

/// The installed artifacts of a device.
pub(super) struct InstalledShelf {
    data: PathBuf,
    parents: Arc<Parents>,
    opened: Mutex<Opened>,
    /// Held while one is opened, so that many who ask at once open it once.
    opening: tokio::sync::Mutex<()>,
}

impl InstalledShelf {
    /// Those remembered in `data`; manifests that are not there come from the parents.
    pub(super) fn new(data: PathBuf, parents: Arc<Parents>) -> Arc<Self> {
        Arc::new(Self { data, parents, opened: Mutex::default(), opening: tokio::sync::Mutex::default() })
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, id: ManifestId) -> Option<Option<Arc<SharedSwarm>>> {
        let mut opened = self.opened();
        opened.retain(|(_, used, swarm)| swarm.is_some() || used.elapsed() < NOTHING);
        let (_, used, swarm) = opened.iter_mut().find(|(other, ..)| *other == id)?;
        if swarm.is_some() {
            *used = Instant::now();
        }
        Some(swarm.clone())
    }

    async fn open(&self, id: ManifestId, content: &Arc<DeviceContent>) -> Option<Arc<SharedSwarm>> {
        let installed = installed::list(&self.data);
        if let Some(whole) = installed.iter().find(|artifact| artifact.manifest == id) {
            let (held, bytes) = self.load(whole).await?;
            let index = Index::of(bytes, &held);
            return Some(serve(Arc::new(held), vec![index], content));
        }
        let mut parts = Vec::new();
        for artifact in installed.iter().take(SEARCHED_MAX) {
            parts.extend(self.load(artifact).await);
        }
        if parts.is_empty() {
            return None;
        }
        let held: Vec<&Manifest> = parts.iter().map(|(manifest, _)| manifest).collect();
        let manifest = self.fetch(id, &held).await?;
        let indexes = parts.into_iter().map(|(manifest, bytes)| Index::of(bytes, &manifest)).collect();
        let swarm = serve(Arc::new(manifest), indexes, content);
        (!swarm.holdings().snapshot().is_empty()).then_some(swarm)
    }

    async fn load(&self, artifact: &Installed) -> Option<(Manifest, Bytes)> {
        let (data, artifact) = (self.data.clone(), artifact.clone());
        let load = move || {
            let manifest = read_kept_manifest(&artifact.path, &data)?;
            // Something else was put there since, without distd.
            let manifest = Some(manifest).filter(|manifest| manifest.id() == artifact.manifest)?;
            Some((manifest, open_artifact(&artifact.path).ok()?))
        };
        tokio::task::spawn_blocking(load).await.ok()?
    }

    async fn fetch(&self, id: ManifestId, held: &[&Manifest]) -> Option<Manifest> {
        for index in 0..self.parents.len() {
            let Ok(link) = self.parents.link(index).await else { continue };
            let Ok(swarm) = link.open_swarm(id).await else { continue };
            let fetched = fetch_manifest(&swarm.handle(), id, None, held).await;
            swarm.leave();
            match fetched {
                Ok(manifest) => return Some(manifest),
                Err(error) if error.is_breach() => self.parents.quarantine(&link),
                Err(error) => tracing::debug!(%error, "a manifest that a neighbour asked for did not come"),
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
impl Shelf for InstalledShelf {
    async fn find(&self, id: ManifestId, content: &Arc<DeviceContent>) -> Option<Arc<SharedSwarm>> {
        if let Some(known) = self.look(id) {
            return known;
        }
        let _one = self.opening.lock().await;
        if let Some(known) = self.look(id) {
            return known;
        }
        let swarm = self.open(id, content).await;
        let mut opened = self.opened();
        opened.push((id, Instant::now(), swarm.clone()));
        while opened.len() > OPEN_MAX {
            let oldest = (0..opened.len()).min_by_key(|n| opened[*n].1);
            oldest.map(|n| opened.swap_remove(n));
        }
        swarm
    }

    fn manifest(&self, id: &ManifestId) -> Option<Arc<Manifest>> {
        let opened = self.opened();
        let (.., swarm) = opened.iter().find(|(other, ..)| other == id)?;
        swarm.as_ref().map(|swarm| swarm.manifest().clone())
    }
}

/// Where the chunks of one artifact lie: 16 bytes each. Ids are the realm's, so those of another manifest are found too.
struct Index {
    bytes: Bytes,
    offsets: Vec<(ChunkId, u64)>,
}

impl Index {
    fn of(bytes: Bytes, manifest: &Manifest) -> Self {
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
        // One that has rotted does not hide a sound one.
        self.0.iter().any(|index| {
            index.offset(entry.id).is_some_and(|offset| {
                index.bytes.read_at(offset, buffer).is_ok() && distd_core::ChunkHash::of(buffer) == entry.hash
            })
        })
    }
}
