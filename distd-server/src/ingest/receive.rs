//! Chunks coming in: verified on all cores, in order, collected into packs.

use std::collections::{HashSet, VecDeque};

use distd_core::ChunkHash;
use distd_core::bounds::CHUNK_BYTES_MAX;
use distd_core::names::Name;
use distd_core::packing::{HashedChunk, Unpacker};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, spawn_blocking};

use super::visible::Seen;
use super::{Ingest, IngestError, UPLOAD_SECONDS};
use crate::db::{UnixSeconds, UploadId, UploadRow};
use crate::store::pack::{PackWriter, object_name};
use distd_peer::random;

/// Raw bytes verified in one go: some milliseconds of work, so that handing it to another thread
/// costs nothing.
const BATCH_BYTES: usize = 4 << 20;

/// Batches being verified at once: one per core of a small machine, and one that is waited for.
const BATCHES_MAX: usize = 3;

type Verified = Result<Vec<HashedChunk>, IngestError>;

/// Takes the chunks of one upload, in any number, within bounded memory.
///
/// There are only a few sinks at once, so a caller that reads from the network must have a time
/// limit on that. If the sink is dropped before [`finish`](Self::finish), chunks that are not in a
/// full pack are forgotten.
#[derive(Debug)]
pub struct PackingSink {
    ingest: Ingest,
    upload: UploadId,
    product: Name,
    token: String,
    seen: Seen,
    now: UnixSeconds,
    _slot: OwnedSemaphorePermit,
    pushed: u64,
    batch: Vec<HashedChunk>,
    batch_bytes: usize,
    under_way: VecDeque<JoinHandle<Verified>>,
    pack: PackWriter,
    in_pack: HashSet<ChunkHash>,
    new: u64,
}

impl Ingest {
    /// Returns a sink for the chunks of an open upload; waits while other sinks are at work. If the
    /// upload is over by then, the first pack of the sink is refused.
    ///
    /// # Errors
    /// [`IngestError::Db`], [`IngestError::Store`].
    pub async fn sink(&self, upload: &UploadRow, now: UnixSeconds) -> Result<PackingSink, IngestError> {
        let slot = self.sinks.clone().acquire_owned().await.expect("the semaphore is never closed");
        let seen = self.seen_by(&upload.products).await?;
        self.indexes.lock(&self.db, &upload.id).await?.refresh(&self.db, &upload.id).await?;
        Ok(PackingSink {
            ingest: self.clone(),
            upload: upload.id.clone(),
            product: upload.product.clone(),
            token: upload.token.clone(),
            seen,
            now,
            _slot: slot,
            pushed: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            under_way: VecDeque::new(),
            pack: PackWriter::default(),
            in_pack: HashSet::new(),
            new: 0,
        })
    }
}

impl PackingSink {
    /// Takes one chunk, with the hash that the publisher says. An error may be about an earlier
    /// chunk: chunks are verified later, beside others.
    ///
    /// # Errors
    /// [`IngestError::ChunkBounds`], [`IngestError::BadChunk`], and what storing a pack may fail
    /// with.
    pub async fn push(&mut self, chunk: HashedChunk) -> Result<(), IngestError> {
        let (raw_len, stored_len) = (chunk.packed.raw_len as usize, chunk.packed.bytes.len());
        if raw_len == 0 || raw_len > CHUNK_BYTES_MAX || stored_len == 0 || stored_len > raw_len {
            return Err(IngestError::ChunkBounds { index: self.pushed });
        }
        self.pushed += 1;
        self.batch_bytes += raw_len;
        self.batch.push(chunk);
        if self.batch_bytes >= BATCH_BYTES {
            self.start_batch();
        }
        while self.under_way.len() >= BATCHES_MAX {
            self.take_batch().await?;
        }
        Ok(())
    }

    /// Ends the batch: makes every pushed chunk durable, and returns the number of new ones.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn finish(mut self) -> Result<u64, IngestError> {
        if !self.batch.is_empty() {
            self.start_batch();
        }
        while !self.under_way.is_empty() {
            self.take_batch().await?;
        }
        self.store_pack().await?;
        Ok(self.new)
    }

    /// Hashes whose chunks must be sent: they are neither durable nor in the pack being filled.
    pub(super) async fn wanted(&self, hashes: &[ChunkHash]) -> Result<Vec<bool>, IngestError> {
        let released = self.ingest.released_to(&self.seen, hashes).await?;
        let index = self.ingest.indexes.lock(&self.ingest.db, &self.upload).await?;
        let wanted = |hash: &ChunkHash| !index.has(hash) && !self.in_pack.contains(hash);
        Ok(hashes.iter().zip(released).map(|(hash, at)| at.is_none() && wanted(hash)).collect())
    }

    fn start_batch(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let first = self.pushed - batch.len() as u64;
        self.under_way.push_back(spawn_blocking(move || verify(batch, first)));
    }

    async fn take_batch(&mut self) -> Result<(), IngestError> {
        let Some(batch) = self.under_way.pop_front() else { return Ok(()) };
        let chunks = batch.await.expect("verifying does not panic")?;
        self.append(chunks).await
    }

    /// Appends verified chunks, except those the origin has.
    pub(super) async fn append(&mut self, chunks: Vec<HashedChunk>) -> Result<(), IngestError> {
        let hashes: Vec<ChunkHash> = chunks.iter().map(|chunk| chunk.hash).collect();
        let wanted = self.wanted(&hashes).await?;
        for (chunk, wanted) in chunks.into_iter().zip(wanted) {
            // `in_pack` is asked again: the same chunk may be twice in the batch.
            if wanted && self.in_pack.insert(chunk.hash) {
                self.pack.push(chunk);
                self.new += 1;
            }
            if self.pack.is_full() {
                self.store_pack().await?;
            }
        }
        Ok(())
    }

    /// Makes the pack durable, and then its rows.
    async fn store_pack(&mut self) -> Result<(), IngestError> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let pack = std::mem::take(&mut self.pack);
        let sealed = spawn_blocking(move || pack.seal()).await.expect("sealing does not panic");
        self.ingest.check_quota(&self.token, sealed.bytes).await?;
        self.ingest.check_quotas(&self.product, &self.token, sealed.bytes, 0).await?;
        self.ingest.check_room(sealed.bytes)?;
        let object = object_name(random::bytes());
        let Ingest { store, db, .. } = &self.ingest;
        store.put(&object, sealed.payload).await?;
        let expires = self.now + UPLOAD_SECONDS;
        let recorded =
            db.record_pack(&self.upload, &object, sealed.bytes, &sealed.index, self.now, expires).await?;
        let Some(pack) = recorded else {
            store.delete(&object).await?;
            return Err(IngestError::UploadOver(self.upload.clone()));
        };
        // Chunks of this pack are found in the index from here on.
        self.ingest.indexes.lock(&self.ingest.db, &self.upload).await?.add(pack, sealed.entries);
        self.in_pack.clear();
        Ok(())
    }
}

fn verify(batch: Vec<HashedChunk>, first: u64) -> Verified {
    let mut unpacker = Unpacker::default();
    let check = |(index, chunk): (u64, HashedChunk)| match chunk.verify(&mut unpacker) {
        Ok(()) => Ok(chunk),
        Err(cause) => Err(IngestError::BadChunk { index, cause }),
    };
    (first..).zip(batch).map(check).collect()
}
