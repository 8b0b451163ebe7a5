//! Packs and manifests that rows name and the store does not have: found at start, repaired by
//! pushing the same bytes.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use distd_core::names::Name;
use distd_core::{ChunkId, ManifestId};
use futures::TryStreamExt;

use super::{Ingest, IngestError, manifest_object};
use crate::db::{PackId, PatchSetKey};

/// Objects that are known to be lost. Empty as long as nothing went wrong with the store.
#[derive(Debug, Default)]
pub(super) struct Losses(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    packs: HashSet<PackId>,
    /// Manifests of releases and patch sets that cannot be served whole.
    manifests: HashSet<ManifestId>,
}

impl Losses {
    fn known(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a pack is lost.
    pub(super) fn has_packs(&self) -> bool {
        !self.known().packs.is_empty()
    }

    /// The packs that are lost.
    pub(super) fn packs(&self) -> HashSet<PackId> {
        self.known().packs.clone()
    }

    /// Whether nothing is lost, so that nothing needs to be looked up.
    pub(super) fn is_empty(&self) -> bool {
        let known = self.known();
        known.packs.is_empty() && known.manifests.is_empty()
    }

    /// Whether the pack is lost.
    pub(super) fn has_pack(&self, pack: PackId) -> bool {
        self.known().packs.contains(&pack)
    }

    /// Whether a release of this manifest cannot be served whole.
    pub(super) fn has_manifest(&self, manifest: &ManifestId) -> bool {
        self.known().manifests.contains(manifest)
    }
}

/// Objects that a look at the store found missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LossReport {
    /// Objects of packs that are not there, or have another length than their rows say.
    pub packs: Vec<String>,
    /// Objects of manifests that are not there.
    pub manifests: Vec<String>,
    /// Releases that cannot be served whole.
    pub releases: Vec<(Name, Name)>,
    /// Patch sets that cannot be served whole.
    pub patch_sets: Vec<PatchSetKey>,
}

impl LossReport {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.manifests.is_empty()
    }
}

impl Ingest {
    /// Compares the rows of packs and manifests with a listing of the store, and remembers what is
    /// missing: its chunks count as not known, so a publisher that has them sends them again.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn look_for_losses(&self) -> Result<LossReport, IngestError> {
        let mut report = LossReport::default();
        let mut known = Known::default();
        let stored: HashMap<String, u64> =
            self.store.list("packs").map_ok(|object| (object.name, object.bytes)).try_collect().await?;
        let mut lost_chunks: HashSet<ChunkId> = HashSet::new();
        for (pack, object, bytes) in self.db.packs().await? {
            if stored.get(&object) != Some(&bytes) {
                lost_chunks.extend(self.db.pack_chunks(pack).await?);
                known.packs.insert(pack);
                report.packs.push(object);
            }
        }
        drop(stored);
        let stored: HashSet<String> =
            self.store.list("manifests").map_ok(|object| object.name).try_collect().await?;
        let releases = self.db.every_release().await?;
        let sets = self.db.patch_sets_with_manifest().await?;
        let named = releases.iter().map(|release| release.manifest).chain(sets.iter().map(|(_, set)| *set));
        for manifest in named.collect::<HashSet<_>>() {
            let object = manifest_object(&manifest);
            if !stored.contains(&object) {
                known.manifests.insert(manifest);
                report.manifests.push(object);
            } else if !lost_chunks.is_empty() && self.needs(&manifest, &lost_chunks).await? {
                known.manifests.insert(manifest);
            }
        }
        report.manifests.sort();
        for release in releases {
            if known.manifests.contains(&release.manifest) {
                report.releases.push((release.product, release.version));
            }
        }
        let lost = |(key, set): (PatchSetKey, ManifestId)| known.manifests.contains(&set).then_some(key);
        report.patch_sets = sets.into_iter().filter_map(lost).collect();
        *self.losses.0.write().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(report)
    }

    /// Whether a manifest names one of these chunks. A manifest that cannot be read counts as one:
    /// it must be pushed again as well.
    async fn needs(&self, manifest: &ManifestId, chunks: &HashSet<ChunkId>) -> Result<bool, IngestError> {
        match self.manifest(manifest).await {
            Ok(manifest) => Ok(manifest.entries().any(|at| chunks.contains(&at.entry.id))),
            Err(IngestError::MissingManifest(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether a release or patch set of this manifest cannot be served whole.
    pub fn is_damaged(&self, manifest: &ManifestId) -> bool {
        self.losses.has_manifest(manifest)
    }

    /// Whether a pack is known to be lost.
    pub fn is_lost(&self, pack: PackId) -> bool {
        self.losses.has_pack(pack)
    }

    /// Forgets the lost packs that nothing needs any more, after chunks were moved out of them, and
    /// looks for losses again.
    pub(super) async fn look_again(&self) -> Result<(), IngestError> {
        let packs: Vec<PackId> = self.losses.known().packs.iter().copied().collect();
        for pack in packs {
            self.db.forget_empty_pack(pack).await?;
        }
        self.look_for_losses().await.map(drop)
    }
}
