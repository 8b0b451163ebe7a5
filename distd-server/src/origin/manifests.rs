//! Manifests of releases and patch sets, kept in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::ManifestId;
use distd_core::lru::Lru;
use distd_core::manifest::Manifest;
use distd_core::ranges::ChunkRanges;
use tokio::sync::OnceCell;

use crate::ingest::{Ingest, IngestError};

/// Manifests kept in memory, each some 5 MB for an 800 MB image.
const MANIFESTS_MAX: u64 = 8;

/// A manifest and its chunk ids.
pub(crate) struct LoadedManifest {
    /// The manifest.
    pub(crate) manifest: Arc<Manifest>,
    /// Ids of its chunks.
    pub(crate) ids: ChunkRanges,
}

/// A manifest that the first task reads and the others wait for.
type Place = Arc<OnceCell<Arc<LoadedManifest>>>;

/// The manifests that were used last. Whoever asks has checked that the manifest is released.
pub(crate) struct ManifestCache {
    ingest: Ingest,
    places: Mutex<Lru<ManifestId, Place>>,
}

impl ManifestCache {
    pub(super) fn new(ingest: Ingest) -> Self {
        Self { ingest, places: Mutex::new(Lru::new(MANIFESTS_MAX)) }
    }

    fn places(&self) -> MutexGuard<'_, Lru<ManifestId, Place>> {
        // Nothing is left half-done inside the lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a manifest, from memory or from the store.
    ///
    /// # Errors
    /// As [`Ingest::manifest`]; the next call reads again.
    pub(crate) async fn load(&self, id: &ManifestId) -> Result<Arc<LoadedManifest>, IngestError> {
        let place = self.places().get_or_put(*id, 1, Place::default);
        let read = || async {
            let manifest = Arc::new(self.ingest.manifest(id).await?);
            let ids = manifest.entries().map(|at| at.entry.id).collect();
            Ok(Arc::new(LoadedManifest { manifest, ids }))
        };
        place.get_or_try_init(read).await.cloned()
    }

    /// Forgets a manifest, which is not released any more.
    pub(crate) fn forget(&self, id: &ManifestId) {
        self.places().remove(id);
    }
}
