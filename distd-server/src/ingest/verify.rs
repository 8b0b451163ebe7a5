//! Reading a whole artifact back from its packs before it becomes a release.

use distd_core::packing::{UnpackError, Unpacker};
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
    ///
    /// The hash of the whole is all that is compared. Each chunk's own was when it came; only when the whole is wrong
    /// are they all looked at again, to say whether the store or the publisher is.
    pub(super) async fn verify(
        &self,
        upload: &UploadId,
        runs: &[Run],
        expected: ArtifactHash,
    ) -> Result<(), IngestError> {
        let _turn = self.verifiers.acquire().await.expect("the semaphore is never closed");
        let actual = self.read_back(upload, runs, Checks::Whole).await?;
        if actual == expected {
            return Ok(());
        }
        self.read_back(upload, runs, Checks::Chunks).await?;
        Err(IngestError::WrongArtifact { expected, actual })
    }

    /// The hash of the artifact that the chunks make.
    async fn read_back(
        &self,
        upload: &UploadId,
        runs: &[Run],
        checks: Checks,
    ) -> Result<ArtifactHash, IngestError> {
        // Futures that own what they need, and no closure over borrowed runs: so that this one can be spawned.
        let mut batches = batches(runs);
        // Tasks, not bare futures: they go on while the hash is waited for.
        let mut reads = FuturesOrdered::new();
        let mut hasher = blake3::Hasher::new();
        loop {
            while reads.len() < BATCHES_AHEAD
                && let Some(batch) = batches.next()
            {
                reads.push_back(tokio::spawn(self.clone().read_batch(
                    upload.clone(),
                    batch.to_vec(),
                    checks,
                )));
            }
            let Some(batch) = reads.next().await else { break };
            let batch = batch.expect("reading back does not panic")?;
            let hash = spawn_blocking(move || {
                batch.hash(&mut hasher);
                hasher
            });
            hasher = hash.await.expect("hashing does not panic");
        }
        Ok(hasher.finalize().into())
    }

    /// The raw bytes of consecutive runs, each once.
    async fn read_batch(
        self,
        upload: UploadId,
        runs: Vec<Run>,
        checks: Checks,
    ) -> Result<RawBatch, IngestError> {
        let hashes: Vec<ChunkHash> = runs.iter().map(|run| run.hash).collect();
        let found = self.locate(&upload, &hashes).await?;
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
            let mut raw = vec![0; runs.iter().map(|run| run.len as usize).sum()];
            let mut rest = &mut raw[..];
            for ((run, at), bytes) in runs.iter().zip(&locations).zip(stored) {
                let (chunk, behind) = rest.split_at_mut(run.len as usize);
                unpacker
                    .unpack_unverified_into(at.codec, &bytes, chunk, &run.hash)
                    .map_err(IngestError::StoredChunk)?;
                if checks == Checks::Chunks {
                    check(chunk, run.hash).map_err(IngestError::StoredChunk)?;
                }
                rest = behind;
            }
            Ok(RawBatch { raw, runs })
        });
        unpack.await.expect("unpacking does not panic")
    }
}

/// What is compared while reading back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checks {
    /// Nothing but the hash of the whole.
    Whole,
    /// Each chunk's hash too.
    Chunks,
}

fn check(raw: &[u8], expected: ChunkHash) -> Result<(), UnpackError> {
    let actual = ChunkHash::of(raw);
    if actual == expected { Ok(()) } else { Err(UnpackError::HashMismatch { expected, actual }) }
}

/// Consecutive runs and their bytes, repeats left out.
struct RawBatch {
    raw: Vec<u8>,
    runs: Vec<Run>,
}

impl RawBatch {
    /// Hashes the bytes with their repeats, in pieces as long as can be: BLAKE3 fed chunk by chunk hashes the borders
    /// of each by themselves, which took a third of the time.
    fn hash(&self, hasher: &mut blake3::Hasher) {
        let (mut from, mut to) = (0, 0);
        for run in &self.runs {
            let start = to;
            to += run.len as usize;
            if run.repeat > 1 {
                hasher.update(&self.raw[from..to]);
                for _ in 1..run.repeat {
                    hasher.update(&self.raw[start..to]);
                }
                from = to;
            }
        }
        hasher.update(&self.raw[from..]);
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
