//! Chunks of lost packs, looked for in the packs that the store still has.
//!
//! A chunk can lie in more than one pack: a compaction that was cut off has copied it, an emptied
//! pack waits for its deletion, a publisher has sent it twice, or a backup of the store brought a
//! pack back that no row names.

use std::collections::HashSet;

use distd_core::packing::Unpacker;
use futures::TryStreamExt;
use tokio::task::spawn_blocking;

use super::{Ingest, IngestError};
use crate::db::{FOUND_MAX, PackId, UnixSeconds};
use crate::store::pack::{
    PACK_OBJECT_BYTES_MAX, PackEntry, TRAILER_BYTES, index_range, parse_index, read_index,
};
use crate::store::{ObjectInfo, StoreError};

impl Ingest {
    /// Looks for the chunks of lost packs in all other packs of the store, and moves the rows of
    /// those it finds to where they lie. Packs that nothing needs then are forgotten. Returns the
    /// number of chunks found again.
    ///
    /// A chunk counts as found when its pack is undamaged as a whole and the chunk, unpacked, has
    /// its hash. Reads the index of each pack, and the rest of those that have a chunk to be found;
    /// holds one pack in memory. Each transaction moves at most [`FOUND_MAX`] chunks, so a call
    /// that is cut off leaves the rest for the next one. No other process may write meanwhile.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn find_lost_chunks(&self, now: UnixSeconds) -> Result<u64, IngestError> {
        let losses = self.look_for_losses().await?;
        if losses.packs.is_empty() {
            return Ok(0);
        }
        let lost_objects: HashSet<String> = losses.packs.into_iter().collect();
        let mut lost = self.losses.packs();
        self.keep_used(&mut lost).await?;
        let mut found = 0;
        let mut objects = self.store.list("packs");
        while !lost.is_empty()
            && let Some(object) = objects.try_next().await?
        {
            if lost_objects.contains(&object.name) {
                continue;
            }
            let here = self.find_in(&object, &lost, now).await?;
            if here > 0 {
                tracing::info!(pack = object.name, chunks = here, "chunks of lost packs were found");
                self.keep_used(&mut lost).await?;
            }
            found += here;
        }
        drop(objects);
        self.look_again().await?;
        Ok(found)
    }

    /// Leaves only the packs that chunks need.
    async fn keep_used(&self, packs: &mut HashSet<PackId>) -> Result<(), IngestError> {
        for pack in packs.clone() {
            if !self.db.pack_has_chunks(pack).await? {
                packs.remove(&pack);
            }
        }
        Ok(())
    }

    /// Moves those chunks of the packs `lost` that lie in `object` to it; returns how many.
    async fn find_in(
        &self,
        object: &ObjectInfo,
        lost: &HashSet<PackId>,
        now: UnixSeconds,
    ) -> Result<u64, IngestError> {
        let Some(entries) = self.index_of(object).await? else { return Ok(0) };
        let hashes: Vec<_> = entries.iter().map(|entry| entry.hash).collect();
        let places = self.db.places(&hashes).await?;
        let wanted =
            |place: &Option<(_, crate::db::Location)>| place.is_some_and(|(_, at)| lost.contains(&at.pack));
        let wanted: Vec<usize> =
            places.iter().enumerate().filter(|(_, place)| wanted(place)).map(|(n, _)| n).collect();
        drop((hashes, places));
        if wanted.is_empty() {
            return Ok(0);
        }
        let Some(bytes) = self.store.get(&object.name).await? else { return Ok(0) };
        if bytes.len() as u64 != object.bytes {
            return Ok(0);
        }
        let name = object.name.clone();
        let verified = spawn_blocking(move || verify(&name, &bytes, &entries, &wanted));
        let verified = verified.await.expect("reading a pack does not panic");
        let mut moved = 0;
        for entries in verified.chunks(FOUND_MAX) {
            let is_lost = |pack: PackId| lost.contains(&pack);
            moved += self.db.relocate_found(&object.name, object.bytes, entries, &is_lost, now).await?;
        }
        Ok(moved)
    }

    /// The index that an object ends with; `None` when the object is no pack or is gone.
    async fn index_of(&self, object: &ObjectInfo) -> Result<Option<Vec<PackEntry>>, IngestError> {
        let trailer_at = object.bytes.checked_sub(TRAILER_BYTES as u64);
        let Some(trailer_at) = trailer_at.filter(|_| object.bytes <= PACK_OBJECT_BYTES_MAX) else {
            return Ok(None);
        };
        let trailer = match self.store.get_range(&object.name, trailer_at..object.bytes).await {
            Err(StoreError::Missing(_)) => return Ok(None),
            trailer => trailer?,
        };
        let Ok(range) = index_range(&trailer, object.bytes) else { return Ok(None) };
        if range.is_empty() {
            return Ok(None);
        }
        let index = match self.store.get_range(&object.name, range).await {
            Err(StoreError::Missing(_)) => return Ok(None),
            index => index?,
        };
        Ok(parse_index(&index).ok())
    }
}

/// Returns those entries numbered `wanted` whose chunks unpack to their hash. Returns none of a
/// damaged pack: the next check would take the pack away, and the chunk with it.
fn verify(name: &str, pack: &[u8], entries: &[PackEntry], wanted: &[usize]) -> Vec<PackEntry> {
    if read_index(pack).as_deref() != Ok(entries) {
        tracing::warn!(pack = name, "a pack with chunks of a lost pack is damaged and of no use");
        return Vec::new();
    }
    let mut unpacker = Unpacker::default();
    let mut verified = Vec::with_capacity(wanted.len());
    for entry in wanted.iter().map(|n| entries[*n]) {
        let at = entry.offset as usize;
        let stored = pack.get(at..at + entry.stored_len as usize);
        let unpacks = |stored| unpacker.unpack(entry.codec, stored, entry.raw_len, &entry.hash).is_ok();
        if stored.is_some_and(unpacks) {
            verified.push(entry);
        } else {
            tracing::warn!(pack = name, chunk = %entry.hash, "a pack holds other bytes than its index says");
        }
    }
    verified
}
