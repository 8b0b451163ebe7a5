//! Makes a set that devices can fetch: durable packs first, then one transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use distd_core::bounds::PATCH_INDEX_BYTES_MAX;
use distd_core::cut::CutParams;
use distd_core::manifest::{Builder, Entry, Kind};
use distd_core::packing::Codec;
use distd_core::patch::{Outline, SetIndex, SetPatch};
use distd_core::{ChunkHash, ChunkId};
use distd_peer::clock::unix_now;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::artifact::StoredArtifact;
use super::cache::ChunkCache;
use super::make::{Releases, make};
use super::packs::{PackedSet, PayloadPacks, StoredPack, delete};
use super::{MakeError, PatchMaker};
use crate::db::{Location, MadeSet, PackId, PatchSetRow, SetKind};
use crate::ingest::manifest_object;
use crate::origin::signed;
use crate::store::PackReader;

/// Cut parameters in a set's manifest. A set is not cut by its content; the largest size only has
/// to allow every length that a chunk can have.
const CUT: (u32, u32, u32) = (64 << 10, 256 << 10, 1 << 20);

/// Most raw bytes that a set with an outline rebuilds. A device sets that much aside before it
/// knows the manifest.
const OUTLINE_TARGETS_MAX: usize = 64 << 20;

impl PatchMaker {
    pub(super) async fn make_and_record(
        &self,
        row: &PatchSetRow,
        stop: &CancellationToken,
    ) -> Result<Option<MadeSet>, MakeError> {
        let mut packs = PayloadPacks::new(self.ingest.clone());
        let packed = match self.make_packs(row, &mut packs, stop).await {
            Ok(packed) => packed,
            Err(error) => {
                packs.discard().await;
                return Err(error);
            }
        };
        // From here on a failure deletes nothing, because a commit whose answer was lost may have
        // succeeded.
        let Some((index_bytes, packed_bytes, set)) = packed else {
            let tx = self.db.begin_patch_set(signed(unix_now())).await?;
            let made = MadeSet::default();
            return Ok(tx.finish(&row.key, &self.maker, &made).await?.then_some(made));
        };
        self.record(row, index_bytes, packed_bytes, set).await
    }

    /// Makes the patches and stores their packs. Returns the length of the index, the bytes of the
    /// rebuilt chunks as sent without patches, and the packed set; `None` if there are no patches.
    async fn make_packs(
        &self,
        row: &PatchSetRow,
        packs: &mut PayloadPacks,
        stop: &CancellationToken,
    ) -> Result<Option<(u64, u64, PackedSet)>, MakeError> {
        // This reader is separate, because its blocks would evict those that devices are served
        // from.
        let reader = PackReader::new(self.db.clone(), self.store.clone());
        let cache = Arc::new(ChunkCache::default());
        let old = match row.key.kind() {
            SetKind::Solid => StoredArtifact::nothing(&reader, &cache),
            SetKind::Pair => {
                let old = self.ingest.manifest(&row.key.from).await?;
                StoredArtifact::open(&old, &self.db, &reader, &cache).await?
            }
        };
        let new = self.ingest.manifest(&row.key.to).await?;
        let new = StoredArtifact::open(&new, &self.db, &reader, &cache).await?;
        let spool = self.spool.clone();
        let memory = self.options.memory_bytes;
        let releases = spawn_blocking(move || Releases::new(old, new, &spool, memory).map(Arc::new));
        let releases = tokio::select! {
            releases = releases => releases.map_err(MakeError::Panicked)?.map_err(MakeError::Content)?,
            () = stop.cancelled() => return Err(MakeError::Stopped),
        };
        let patches = match row.key.kind() {
            SetKind::Pair => {
                let _alone = self.turn.write().await;
                make(&releases, &self.options, None, packs, stop).await
            }
            SetKind::Solid => make(&releases, &self.options, Some(&self.turn), packs, stop).await,
        };
        self.counters.wrong.fetch_add(releases.wrong(), std::sync::atomic::Ordering::Relaxed);
        let patches = patches?;
        if patches.is_empty() {
            return Ok(None);
        }
        let outline = outline(&releases, &patches);
        drop(releases);
        let packed = patches.iter().map(|patch| patch.packed).sum();
        let index = SetIndex { from: row.key.from, to: row.key.to, patches };
        let index = spawn_blocking(move || index.encode()).await.expect("packing an index does not panic");
        // The chunks of a release bound the unpacked index today; this check holds if that bound
        // grows.
        if index.len() as u64 > PATCH_INDEX_BYTES_MAX {
            return Err(MakeError::TooLarge);
        }
        Ok(Some((index.len() as u64, packed, packs.finish(index, outline).await?)))
    }

    async fn record(
        &self,
        row: &PatchSetRow,
        index_bytes: u64,
        packed: u64,
        set: PackedSet,
    ) -> Result<Option<MadeSet>, MakeError> {
        let hashes: Vec<ChunkHash> = set.chunks.iter().map(|chunk| chunk.hash).collect();
        // This takes the lock that commits take. Until the transaction ends, nothing here may ask
        // for another connection: a task that has one may be waiting for this lock.
        let mut tx = self.db.begin_patch_set(signed(unix_now())).await?;
        let known = tx.places(&hashes).await?;
        let known: HashMap<ChunkHash, (ChunkId, PackId)> =
            hashes.iter().zip(known).filter_map(|(hash, place)| Some((*hash, place?))).collect();
        // Chunks of an earlier, equal set whose packs are lost; they keep their ids.
        let (lost, held): (HashMap<_, _>, HashMap<_, _>) =
            known.into_iter().partition(|(_, (_, pack))| self.ingest.is_lost(*pack));
        let mut ids: HashMap<ChunkHash, ChunkId> =
            held.into_iter().map(|(hash, (id, _))| (hash, id)).collect();
        let mut seen = HashSet::new();
        let fresh: Vec<_> = set
            .chunks
            .iter()
            .filter(|chunk| !ids.contains_key(&chunk.hash) && seen.insert(chunk.hash))
            .collect();
        let used: HashSet<usize> = fresh.iter().map(|chunk| chunk.pack).collect();
        let mut rows: HashMap<usize, PackId> = HashMap::new();
        let mut unused: Vec<StoredPack> = Vec::new();
        for (number, pack) in set.packs.iter().enumerate() {
            if used.contains(&number) {
                rows.insert(number, tx.record_pack(&pack.object, pack.bytes).await?);
            } else {
                unused.push(pack.clone());
            }
        }
        let places: Vec<(ChunkHash, Location)> = fresh
            .iter()
            .map(|chunk| {
                let place = Location {
                    pack: rows[&chunk.pack],
                    offset: u64::from(chunk.offset),
                    stored_len: chunk.len,
                    raw_len: chunk.len,
                    codec: Codec::Raw,
                };
                (chunk.hash, place)
            })
            .collect();
        let (again, places): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|(hash, _)| lost.contains_key(hash));
        let again: Vec<_> = again.into_iter().map(|(hash, place)| (hash, lost[&hash].0, place)).collect();
        tx.relocate(&again.iter().map(|(_, id, place)| (*id, *place)).collect::<Vec<_>>()).await?;
        ids.extend(again.into_iter().map(|(hash, id, _)| (hash, id)));
        let given = tx.give_ids(&places).await?;
        ids.extend(places.iter().map(|(hash, _)| *hash).zip(given));
        let cut = CutParams::new(CUT.0, CUT.1, CUT.2).expect("these sizes are within the bounds");
        let mut builder = Builder::new(cut, Kind::PatchSet { index_bytes });
        for chunk in &set.chunks {
            builder.push(Entry { id: ids[&chunk.hash], hash: chunk.hash, len: chunk.len });
        }
        let manifest = builder.finish(set.blake3);
        self.store.put(&manifest_object(&manifest.id()), manifest.to_file_bytes()).await?;
        let patches = set.patches;
        let made = MadeSet { set: Some(manifest.id()), bytes: set.bytes, packed, patches };
        if !tx.finish(&row.key, &self.maker, &made).await? {
            delete(&self.db, &self.store, &set.packs).await;
            return Ok(None);
        }
        delete(&self.db, &self.store, &unused).await;
        Ok(Some(made))
    }
}

/// Outline of the new release's manifest if the set is small enough to be applied before the
/// manifest is known.
fn outline(releases: &Releases, patches: &[SetPatch]) -> Option<Vec<u8>> {
    let bytes: usize = patches.iter().map(SetPatch::target_bytes).sum();
    if bytes > OUTLINE_TARGETS_MAX {
        return None;
    }
    let rebuilt: BTreeSet<ChunkId> =
        patches.iter().flat_map(|patch| patch.target_chunks()).filter_map(|(id, _)| id.chunk()).collect();
    let (old, new) = releases.entries();
    Outline::new(&old, &new, |id| rebuilt.contains(&id)).encode()
}
