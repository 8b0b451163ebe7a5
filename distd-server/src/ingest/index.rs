//! Chunks of open uploads: the pack of each chunk, in memory, rebuilt from the packs' indexes when
//! needed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::ChunkHash;
use distd_core::lru::Lru;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::IngestError;
use super::losses::Losses;
use crate::db::{Db, Location, PackId, PackIndexes, UploadId};
use crate::store::pack::{PackEntry, parse_index};

/// Uploads remembered. Others are read again from the database when they continue, some
/// milliseconds for each GB.
const UPLOADS_MAX: usize = 4;

/// Entries kept whole. A chunk is looked for where the one before it was found, so a few packs'
/// worth do.
const ENTRIES_MAX: u64 = 32_768;

/// Bytes of a hash that a chunk is found by. A publisher can make a collision of 128 bits with 2^64
/// work, but only against its own upload: the commit then misses a chunk and fails.
const KEY_BYTES: usize = 16;

/// Indexes of the uploads that were used last.
#[derive(Debug, Default)]
pub(super) struct UploadIndexes {
    // The index used last is at the end.
    recent: Mutex<Vec<(UploadId, Arc<AsyncMutex<UploadIndex>>)>>,
    losses: Arc<Losses>,
}

/// An index in use.
///
/// Lock it before taking a connection, never while holding one: the holder of an index may wait for
/// a connection.
pub(super) type LockedIndex = OwnedMutexGuard<UploadIndex>;

impl UploadIndexes {
    /// Creates an empty set of indexes. They will leave out the packs among `losses`.
    pub(super) fn new(losses: Arc<Losses>) -> Self {
        Self { losses, ..Self::default() }
    }

    /// The index of an upload, with every pack that was recorded before it was last
    /// [refreshed](UploadIndex::refresh).
    ///
    /// # Errors
    /// As [`UploadIndex::refresh`].
    pub(super) async fn lock(&self, db: &Db, upload: &UploadId) -> Result<LockedIndex, IngestError> {
        let mut index = self.of(upload).lock_owned().await;
        if !index.loaded {
            index.refresh(db, upload).await?;
        }
        Ok(index)
    }

    fn of(&self, upload: &UploadId) -> Arc<AsyncMutex<UploadIndex>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = recent.iter().position(|(id, _)| id == upload).map(|at| recent.remove(at));
        let (id, index) = found.unwrap_or_else(|| {
            let index = UploadIndex::new(self.losses.clone());
            (upload.clone(), Arc::new(AsyncMutex::new(index)))
        });
        recent.push((id, index.clone()));
        if recent.len() > UPLOADS_MAX {
            recent.remove(0);
        }
        index
    }

    /// Frees the memory of an upload that is over.
    pub(super) fn forget(&self, upload: &UploadId) {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| id != upload);
    }
}

/// The chunks of one open upload. About 40 bytes each.
#[derive(Debug)]
pub(super) struct UploadIndex {
    loaded: bool,
    known: BTreeSet<PackId>,
    packs: Vec<PackId>,
    /// Pack, by its place in `packs`, and entry within it.
    chunks: HashMap<[u8; KEY_BYTES], (u32, u32)>,
    /// Entries of the packs that were needed last.
    open: Lru<u32, Arc<Vec<PackEntry>>>,
    losses: Arc<Losses>,
}

fn key(hash: &ChunkHash) -> [u8; KEY_BYTES] {
    *hash.as_bytes().first_chunk().expect("a hash is longer than a key")
}

impl UploadIndex {
    fn new(losses: Arc<Losses>) -> Self {
        Self {
            loaded: false,
            known: BTreeSet::new(),
            packs: Vec::new(),
            chunks: HashMap::new(),
            open: Lru::new(ENTRIES_MAX),
            losses,
        }
    }

    /// Learns of packs that were recorded elsewhere: before a restart, or by another replica. Lost
    /// ones are left out.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::DamagedIndex`].
    pub(super) async fn refresh(&mut self, db: &Db, upload: &UploadId) -> Result<(), IngestError> {
        for pack in db.upload_packs(upload).await? {
            if !self.known.contains(&pack) && !self.losses.has_pack(pack) {
                let entries = read(&mut db.clone(), upload, pack).await?;
                self.add(pack, entries);
            }
        }
        self.loaded = true;
        Ok(())
    }

    /// Adds a pack that was recorded.
    pub(super) fn add(&mut self, pack: PackId, entries: Vec<PackEntry>) {
        if !self.known.insert(pack) {
            return;
        }
        let number = self.packs.len() as u32;
        self.packs.push(pack);
        for (entry, n) in entries.iter().zip(0u32..) {
            // The first pack that brought a chunk keeps it.
            self.chunks.entry(key(&entry.hash)).or_insert((number, n));
        }
        self.keep(number, Arc::new(entries));
    }

    fn keep(&mut self, number: u32, entries: Arc<Vec<PackEntry>>) {
        // The pack that is being read stays, however many entries it has.
        let weight = (entries.len() as u64).min(ENTRIES_MAX);
        self.open.put(number, entries, weight);
    }

    /// Whether the upload has the chunk.
    pub(super) fn has(&self, hash: &ChunkHash) -> bool {
        self.chunks.contains_key(&key(hash))
    }

    /// Place of the chunk; `None` when the upload does not have it.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::DamagedIndex`], [`IngestError::UploadOver`].
    pub(super) async fn locate(
        &mut self,
        from: &mut impl PackIndexes,
        upload: &UploadId,
        hash: &ChunkHash,
    ) -> Result<Option<Location>, IngestError> {
        let Some(&(number, entry)) = self.chunks.get(&key(hash)) else { return Ok(None) };
        let pack = self.packs[number as usize];
        let entries = match self.open.get(&number) {
            Some(entries) => entries.clone(),
            None => {
                let entries = Arc::new(read(from, upload, pack).await?);
                self.keep(number, entries.clone());
                entries
            }
        };
        let entry = entries.get(entry as usize).filter(|entry| entry.hash == *hash);
        Ok(entry.map(|entry| Location {
            pack,
            offset: u64::from(entry.offset),
            stored_len: entry.stored_len,
            raw_len: entry.raw_len,
            codec: entry.codec,
        }))
    }
}

async fn read(
    from: &mut impl PackIndexes,
    upload: &UploadId,
    pack: PackId,
) -> Result<Vec<PackEntry>, IngestError> {
    let index = from.pack_index(pack).await?.ok_or_else(|| IngestError::UploadOver(upload.clone()))?;
    parse_index(&index).map_err(|cause| IngestError::DamagedIndex { pack, cause })
}

#[cfg(test)]
mod tests {
    use distd_core::packing::Codec;

    use super::*;

    fn entries(of: std::ops::Range<u32>) -> Vec<PackEntry> {
        let entry = |n: u32| PackEntry {
            hash: ChunkHash::of(&n.to_be_bytes()),
            offset: n,
            stored_len: 1,
            raw_len: 1,
            codec: Codec::Raw,
        };
        of.map(entry).collect()
    }

    #[test]
    fn the_first_pack_keeps_a_chunk_and_a_pack_is_added_once() {
        let mut index = UploadIndex::new(Arc::default());
        index.add(PackId(7), entries(0..10));
        index.add(PackId(9), entries(5..15));
        index.add(PackId(7), entries(90..95));
        let hash = |n: u32| ChunkHash::of(&n.to_be_bytes());
        assert_eq!(index.chunks[&key(&hash(7))], (0, 7));
        assert_eq!(index.chunks[&key(&hash(12))], (1, 7));
        assert!(index.has(&hash(14)) && !index.has(&hash(15)) && !index.has(&hash(91)));
    }

    #[test]
    fn whole_entries_are_kept_for_the_last_packs_only() {
        let mut index = UploadIndex::new(Arc::default());
        for pack in 0..10 {
            index.add(PackId(u64::from(pack)), entries(pack * 10_000..(pack + 1) * 10_000));
        }
        let kept: Vec<u32> = (0..10).filter(|number| index.open.get(number).is_some()).collect();
        assert_eq!(kept, [7, 8, 9]);
        assert_eq!(index.chunks.len(), 100_000);
    }

    #[test]
    fn the_uploads_used_last_are_remembered() {
        let indexes = UploadIndexes::default();
        let id = |n: u8| UploadId::from_random([n; 16]);
        let first = indexes.of(&id(0));
        for n in 1..UPLOADS_MAX as u8 {
            indexes.of(&id(n));
            assert!(Arc::ptr_eq(&first, &indexes.of(&id(0))));
        }
        for n in 10..10 + UPLOADS_MAX as u8 {
            indexes.of(&id(n));
        }
        assert!(!Arc::ptr_eq(&first, &indexes.of(&id(0))));
        let again = indexes.of(&id(0));
        indexes.forget(&id(0));
        assert!(!Arc::ptr_eq(&again, &indexes.of(&id(0))));
    }
}
