//! Reading a whole artifact back from its packs before it becomes a release.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use distd_core::manifest::Kind;
use distd_core::packing::{UnpackError, Unpacker};
use distd_core::tree::Listing;
use distd_core::{ArtifactHash, ChunkHash};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::task::spawn_blocking;

use super::visible::Seen;
use super::{CommitRequest, Ingest, IngestError, Run};
use crate::db::{Location, UploadId, UploadRow};

/// Raw bytes read and unpacked in one go.
const BATCH_BYTES: u64 = 4 << 20;

/// Runs in one go: bounds the rows asked for where chunks are tiny.
const BATCH_RUNS: usize = 4096;

/// Batches read ahead of the hasher: with stored and raw bytes some 16 MiB.
const BATCHES_AHEAD: usize = 2;

/// Bytes hashed between two looks at whether the upload is still open: a tenth of a second.
const STEP_BYTES: u64 = 256 << 20;

/// Longest artifact that is verified beside larger ones, bytes: some seconds of work.
const SMALL_BYTES: u64 = 1 << 30;

impl Ingest {
    /// Checks that the chunks of a commit, all of them uploaded or known to the publisher, make an
    /// artifact with its hash, reading every stored byte: what is released can be served. A tree's
    /// listing must be one that devices take.
    ///
    /// Only the hash of the whole is compared, because the hash of each chunk was compared when the
    /// chunk came. If the whole is wrong, all chunks are hashed again, to tell whether the store or
    /// the publisher is at fault. The check ends when it is dropped, or when the upload is aborted.
    pub(super) async fn verify(
        &self,
        upload: &UploadRow,
        request: &CommitRequest,
    ) -> Result<(), IngestError> {
        let small = request.bytes <= SMALL_BYTES;
        let turns = if small { &self.small_verifiers } else { &self.verifiers };
        let _turn = turns.acquire().await.expect("the semaphore is never closed");
        let listing_bytes = match request.kind {
            Kind::Tree { listing_bytes } => listing_bytes,
            _ => 0,
        };
        let from = From { upload: upload.id.clone(), seen: self.seen_by(&upload.products).await? };
        let (actual, head) = self.read_back(&from, &request.runs, Checks::Whole, listing_bytes).await?;
        let expected = request.blake3;
        if actual == expected {
            return match request.kind {
                Kind::Tree { .. } => check_tree(head, request.bytes).await,
                _ => Ok(()),
            };
        }
        let mut seen = HashSet::new();
        let once = request.runs.iter().filter(|run| seen.insert(run.hash));
        let once: Vec<Run> = once.map(|run| Run { repeat: 1, ..*run }).collect();
        self.read_back(&from, &once, Checks::Chunks, 0).await?;
        Err(IngestError::WrongArtifact { expected, actual })
    }

    /// The hash of the artifact that the chunks make, and its first `head_bytes` bytes.
    async fn read_back(
        &self,
        from: &From,
        runs: &[Run],
        checks: Checks,
        head_bytes: u64,
    ) -> Result<(ArtifactHash, Vec<u8>), IngestError> {
        // The futures own their data, and no closure borrows runs, so that this future can be
        // spawned.
        let mut batches = batches(runs);
        // Tasks, not bare futures: they continue while the hash is computed.
        let mut reads = FuturesOrdered::new();
        let mut hasher = blake3::Hasher::new();
        let mut head = Vec::new();
        let mut unlooked = 0;
        loop {
            while reads.len() < BATCHES_AHEAD
                && let Some(batch) = batches.next()
            {
                reads.push_back(tokio::spawn(self.clone().read_batch(from.clone(), batch.to_vec(), checks)));
            }
            let Some(batch) = reads.next().await else { break };
            let batch = Arc::new(batch.expect("reading back does not panic")?);
            batch.take_head(&mut head, head_bytes);
            let mut rest = match checks {
                Checks::Whole => batch.segments(),
                Checks::Chunks => VecDeque::new(),
            };
            while !rest.is_empty() {
                let (raw, mut segments) = (batch.clone(), rest);
                let hashed = spawn_blocking(move || {
                    let bytes = hash_some(&mut hasher, &raw.raw, &mut segments);
                    (hasher, segments, bytes)
                });
                let bytes;
                (hasher, rest, bytes) = hashed.await.expect("hashing does not panic");
                unlooked += bytes;
                if unlooked >= STEP_BYTES {
                    unlooked = 0;
                    self.open_upload(&from.upload).await?;
                }
            }
        }
        Ok((hasher.finalize().into(), head))
    }

    /// The raw bytes of consecutive runs, each once.
    async fn read_batch(self, from: From, runs: Vec<Run>, checks: Checks) -> Result<RawBatch, IngestError> {
        let hashes: Vec<ChunkHash> = runs.iter().map(|run| run.hash).collect();
        let found = self.locate(&from.upload, &from.seen, &hashes).await?;
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

/// Source of chunks that are read back: an upload, and the chunks that its publisher may know of.
#[derive(Clone)]
struct From {
    upload: UploadId,
    seen: Seen,
}

/// Hashes that are compared while reading back.
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
    /// Ranges of the bytes and how often each follows itself, in pieces as long as can be: BLAKE3
    /// fed chunk by chunk hashes the borders of each by themselves, which took a third of the time.
    fn segments(&self) -> VecDeque<(Range<usize>, u32)> {
        let mut out = VecDeque::new();
        let (mut from, mut to) = (0, 0);
        for run in &self.runs {
            let start = to;
            to += run.len as usize;
            if run.repeat > 1 {
                out.push_back((from..to, 1));
                out.push_back((start..to, run.repeat - 1));
                from = to;
            }
        }
        out.push_back((from..to, 1));
        out.retain(|(range, _)| !range.is_empty());
        out
    }

    /// Appends to the artifact's head what it lacks of its first `bytes` bytes.
    fn take_head(&self, head: &mut Vec<u8>, bytes: u64) {
        // Mostly the head is whole, and there is no need to look at every run of every batch.
        if head.len() as u64 >= bytes {
            return;
        }
        for (range, times) in self.segments() {
            for _ in 0..times {
                let missing = bytes.saturating_sub(head.len() as u64);
                if missing == 0 {
                    return;
                }
                let part = &self.raw[range.clone()];
                head.extend_from_slice(&part[..part.len().min(missing as usize)]);
            }
        }
    }
}

/// Hashes the next [`STEP_BYTES`] of the rest; returns the number of bytes hashed.
fn hash_some(hasher: &mut blake3::Hasher, raw: &[u8], left: &mut VecDeque<(Range<usize>, u32)>) -> u64 {
    let mut hashed = 0;
    while let Some((range, times)) = left.front_mut() {
        hasher.update(&raw[range.clone()]);
        hashed += range.len() as u64;
        *times -= 1;
        if *times == 0 {
            left.pop_front();
        }
        if hashed >= STEP_BYTES {
            break;
        }
    }
    hashed
}

/// Refuses a tree that a device would refuse: after the release is signed it is too late.
async fn check_tree(listing: Vec<u8>, bytes: u64) -> Result<(), IngestError> {
    let listing_bytes = listing.len() as u64;
    let decoded = spawn_blocking(move || Listing::decode(&listing).map(|listing| listing.file_bytes()));
    let file_bytes = decoded.await.expect("decoding does not panic").map_err(IngestError::BadTree)?;
    if listing_bytes.checked_add(file_bytes) != Some(bytes) {
        return Err(IngestError::BadList("the tree's listing and its files do not add up to the artifact"));
    }
    Ok(())
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
