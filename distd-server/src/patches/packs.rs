//! Storage of a set's chunks in packs.

use bytes::Bytes;
use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::error::Chain;
use distd_core::packing::{Codec, HashedChunk, PackedChunk};
use distd_core::{ArtifactHash, ChunkHash};
use distd_peer::clock::unix_now;
use distd_peer::random;
use tokio::task::spawn_blocking;

use super::MakeError;
use crate::db::Db;
use crate::ingest::Ingest;
use crate::origin::signed;
use crate::store::Store;
use crate::store::pack::{self, PackWriter, object_name};

/// Chunk of a set and its place in the set's packs. It is durable once its pack is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedChunk {
    pub(super) hash: ChunkHash,
    /// Length, bytes. The chunk is stored raw, because payloads do not compress.
    pub(super) len: u32,
    /// Index of its pack in the set's list of packs.
    pub(super) pack: usize,
    /// First byte in the pack.
    pub(super) offset: u32,
}

/// Pack in the object store that no row names yet.
#[derive(Clone, Debug)]
pub(super) struct StoredPack {
    pub(super) object: String,
    pub(super) bytes: u64,
}

/// Writer of a set's packs: the payloads in order, then the index and the outline. Holds one pack
/// in memory.
#[derive(Debug)]
pub(super) struct PayloadPacks {
    ingest: Ingest,
    writer: PackWriter,
    payloads: Vec<PlacedChunk>,
    payload_bytes: u64,
    packs: Vec<StoredPack>,
}

/// Content of a set, all of it durable.
#[derive(Debug)]
pub(super) struct PackedSet {
    /// Chunks in the order of the artifact: index, payloads, outline.
    pub(super) chunks: Vec<PlacedChunk>,
    pub(super) patches: u64,
    pub(super) packs: Vec<StoredPack>,
    /// BLAKE3 of the artifact.
    pub(super) blake3: ArtifactHash,
    /// Length of the artifact, bytes.
    pub(super) bytes: u64,
}

impl PayloadPacks {
    pub(super) fn new(ingest: Ingest) -> Self {
        Self {
            ingest,
            writer: PackWriter::default(),
            payloads: Vec::new(),
            payload_bytes: 0,
            packs: Vec::new(),
        }
    }

    /// Number of payload bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Appends the payload of the next patch.
    pub(super) async fn push(&mut self, payload: Bytes) -> Result<(), MakeError> {
        self.payload_bytes += payload.len() as u64;
        let placed = self.append(payload).await?;
        self.payloads.push(placed);
        Ok(())
    }

    async fn append(&mut self, bytes: Bytes) -> Result<PlacedChunk, MakeError> {
        let (hash, len) = (ChunkHash::of(&bytes), bytes.len() as u32);
        if self.writer.is_full() {
            self.store_pack().await?;
        }
        let (pack, offset) = (self.packs.len(), self.writer.bytes());
        let packed = PackedChunk { codec: Codec::Raw, raw_len: len, bytes };
        self.writer.push(HashedChunk { hash, packed });
        Ok(PlacedChunk { hash, len, pack, offset })
    }

    async fn store_pack(&mut self) -> Result<(), MakeError> {
        let writer = std::mem::take(&mut self.writer);
        let sealed = spawn_blocking(move || writer.seal()).await.expect("sealing does not panic");
        // Patches must not use up the disk's reserve.
        self.ingest.check_room(sealed.bytes)?;
        let object = object_name(random::bytes());
        // The object is listed as doomed before it is written, so that it is deleted after a
        // failure here and after a crash.
        self.ingest.db().doom(&object, signed(unix_now())).await?;
        self.packs.push(StoredPack { object: object.clone(), bytes: sealed.bytes });
        Ok(self.ingest.store().put(&object, sealed.payload).await?)
    }

    /// Appends bytes that are not a payload, cut into chunks of the largest size.
    async fn append_all(&mut self, mut rest: Bytes) -> Result<Vec<PlacedChunk>, MakeError> {
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
            chunks.push(self.append(piece).await?);
        }
        Ok(chunks)
    }

    /// Appends the index and the outline, and makes everything durable. Reads all payloads back for
    /// the hash of the artifact.
    pub(super) async fn finish(
        &mut self,
        index: Vec<u8>,
        outline: Option<Vec<u8>>,
    ) -> Result<PackedSet, MakeError> {
        let (index, outline) = (Bytes::from(index), Bytes::from(outline.unwrap_or_default()));
        let mut chunks = self.append_all(index.clone()).await?;
        let mut behind = self.append_all(outline.clone()).await?;
        self.store_pack().await?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&index);
        let mut left = self.payload_bytes;
        for pack in &self.packs {
            if left == 0 {
                break;
            }
            // The payloads fill the packs in order; the index comes after the last of them.
            let found = self.ingest.store().get(&pack.object).await?;
            let damaged = || MakeError::Damaged(pack.object.clone());
            let object = found.ok_or_else(damaged)?;
            let hash = spawn_blocking(move || {
                let entries = pack::read_index(&object).ok()?;
                let end =
                    entries.last().map_or(0, |entry| u64::from(entry.offset) + u64::from(entry.stored_len));
                let len = end.min(left);
                hasher.update(&object[..len as usize]);
                Some((hasher, len))
            });
            let (updated, len) = hash.await.expect("hashing does not panic").ok_or_else(damaged)?;
            hasher = updated;
            left -= len;
        }
        hasher.update(&outline);
        let patches = self.payloads.len() as u64;
        chunks.append(&mut self.payloads);
        chunks.append(&mut behind);
        Ok(PackedSet {
            chunks,
            patches,
            packs: self.packs.clone(),
            blake3: hasher.finalize().into(),
            bytes: index.len() as u64 + self.payload_bytes + outline.len() as u64,
        })
    }

    /// Deletes the stored packs as far as possible; the sweep deletes the rest.
    pub(super) async fn discard(self) {
        delete(self.ingest.db(), self.ingest.store(), &self.packs).await;
    }
}

/// Deletes packs that no row names.
pub(super) async fn delete(db: &Db, store: &Store, packs: &[StoredPack]) {
    for pack in packs {
        let deleted = async {
            store.delete(&pack.object).await?;
            Ok::<_, MakeError>(db.forget_doomed(std::slice::from_ref(&pack.object)).await?)
        };
        if let Err(error) = deleted.await {
            tracing::warn!(
                error = %Chain(&error),
                "could not delete an unused pack; the sweep tries again"
            );
        }
    }
}
