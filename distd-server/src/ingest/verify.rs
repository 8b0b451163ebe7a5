//! Reading a whole artifact back from its packs before it becomes a release.

use bytes::Bytes;
use distd_core::packing::Unpacker;
use distd_core::{ArtifactHash, ChunkHash};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::task::spawn_blocking;

use super::{Ingest, IngestError, Run};
use crate::db::{Location, UploadId};

/// Raw bytes read and unpacked in one go.
const BATCH_BYTES: u64 = 4 << 20;

/// Runs in one go: bounds the rows asked for where chunks are tiny.
const BATCH_RUNS: usize = 4096;

/// Batches read ahead of the hasher: with stored and raw bytes some 16 MiB.
const BATCHES_AHEAD: usize = 2;

impl Ingest {
    /// Checks that the chunks of `runs`, all of them uploaded, make an artifact with this hash, reading every
    /// stored byte: what is released can be served.
    pub(super) async fn verify(
        &self,
        upload: &UploadId,
        runs: &[Run],
        expected: ArtifactHash,
    ) -> Result<(), IngestError> {
        let _turn = self.verifiers.acquire().await.expect("the semaphore is never closed");
        // Futures that own what they need, and no closure over borrowed runs: so that this one can be spawned.
        let mut batches = batches(runs);
        // Tasks, not bare futures: they go on while the hash is waited for.
        let mut reads = FuturesOrdered::new();
        let mut hasher = blake3::Hasher::new();
        loop {
            while reads.len() < BATCHES_AHEAD
                && let Some(batch) = batches.next()
            {
                reads.push_back(tokio::spawn(self.clone().read_batch(upload.clone(), batch.to_vec())));
            }
            let Some(batch) = reads.next().await else { break };
            let batch = batch.expect("reading back does not panic")?;
            let hash = spawn_blocking(move || {
                for (raw, repeat) in batch {
                    for _ in 0..repeat {
                        hasher.update(&raw);
                    }
                }
                hasher
            });
            hasher = hash.await.expect("hashing does not panic");
        }
        let actual = ArtifactHash::from(hasher.finalize());
        if actual == expected { Ok(()) } else { Err(IngestError::WrongArtifact { expected, actual }) }
    }

    /// The raw bytes of consecutive runs, each with its repeats.
    async fn read_batch(self, upload: UploadId, runs: Vec<Run>) -> Result<Vec<(Bytes, u32)>, IngestError> {
        let hashes: Vec<ChunkHash> = runs.iter().map(|run| run.hash).collect();
        let found = self.db.locate(&upload, &hashes).await?;
        let mut locations: Vec<Location> = Vec::with_capacity(runs.len());
        for (run, location) in runs.iter().zip(found) {
            let location = location.ok_or(IngestError::MissingChunk(run.hash))?;
            if location.raw_len != run.len {
                return Err(IngestError::BadList("a chunk has another length than its hash says"));
            }
            locations.push(location);
        }
        let stored = self.packs.read_many(&locations).await?;
        let unpack = spawn_blocking(move || {
            let mut unpacker = Unpacker::default();
            // One allocation for all, of known size: see `pack_wanted`.
            let mut raw = Vec::with_capacity(runs.iter().map(|run| run.len as usize).sum());
            for ((run, at), bytes) in runs.iter().zip(&locations).zip(stored) {
                let chunk = unpacker.unpack(at.codec, &bytes, at.raw_len, &run.hash);
                raw.extend_from_slice(chunk.map_err(IngestError::StoredChunk)?);
            }
            let mut raw = Bytes::from(raw);
            Ok(runs.iter().map(|run| (raw.split_to(run.len as usize), run.repeat)).collect())
        });
        unpack.await.expect("unpacking does not panic")
    }
}

/// Consecutive parts of `runs` with about [`BATCH_BYTES`] each, repeats not counted.
fn batches(mut runs: &[Run]) -> impl Iterator<Item = &[Run]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fit = runs.iter().take(BATCH_RUNS).take_while(|run| {
            let before = bytes;
            bytes += u64::from(run.len);
            before < BATCH_BYTES
        });
        let (batch, rest) = runs.split_at(fit.count());
        runs = rest;
        (!batch.is_empty()).then_some(batch)
    })
}
