//! From two releases to patches: pairing, then jobs on threads, their results in order.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::cut::Regions;
use distd_core::limits::PATCHES_MAX;
use distd_core::patch::pair::{Of, PairOptions, Patch, PatchJob, Side, build, needs, pair};
use distd_core::patch::{Effort, SetPatch, TargetRun, decode};
use distd_core::{ChunkHash, ChunkId};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::artifact::StoredArtifact;
use super::packs::PayloadPacks;
use super::{MakeError, PatchOptions};

/// Memory of a job for each byte of its base and target: what zstd takes at the highest levels.
const MEMORY_FACTOR: u64 = 10;

/// Jobs begun for each thread: while the first one takes long, others go on behind it. Bounds the finished payloads
/// that wait for their turn.
const JOBS_PER_THREAD: usize = 4;

/// Time between lines of progress in the log.
const PROGRESS: Duration = Duration::from_secs(10);

/// Two releases, to be read by many threads at once.
#[derive(Debug)]
pub(super) struct Releases {
    old: StoredArtifact,
    new: StoredArtifact,
    old_regions: Regions,
    new_regions: Regions,
    /// Patches that did not rebuild their targets.
    wrong: AtomicU64,
}

/// A patch that saves bytes, in the words of the index.
struct Made {
    patch: SetPatch,
    payload: Bytes,
}

impl Releases {
    /// Finds the regions of both. Blocks.
    pub(super) fn new(old: StoredArtifact, new: StoredArtifact) -> Self {
        let (old_regions, new_regions) = (old.regions(), new.regions());
        Self { old, new, old_regions, new_regions, wrong: AtomicU64::new(0) }
    }

    fn old(&self) -> Side<'_, StoredArtifact> {
        Side { bytes: &self.old, regions: &self.old_regions, chunks: self.old.spans() }
    }

    fn new_side(&self) -> Side<'_, StoredArtifact> {
        Side { bytes: &self.new, regions: &self.new_regions, chunks: self.new.spans() }
    }

    /// What is to be built. Blocks: reads the old release and what is new.
    fn jobs(&self) -> std::io::Result<Vec<PatchJob>> {
        let needs = needs(self.old.spans(), self.new.spans());
        pair(self.old(), self.new_side(), &needs, PairOptions::default())
    }

    /// How many patches were wrong so far.
    pub(super) fn wrong(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    fn side(&self, of: Of) -> &StoredArtifact {
        match of {
            Of::Old => &self.old,
            Of::New => &self.new,
        }
    }

    /// Memory that building a job takes, bytes.
    fn memory(&self, job: &PatchJob) -> u64 {
        let bytes = |of, chunks: &std::ops::Range<u32>| -> u64 {
            let spans = &self.side(of).spans()[chunks.start as usize..chunks.end as usize];
            spans.iter().map(|span| u64::from(span.len)).sum()
        };
        let targets: u64 = job.targets.iter().map(|chunks| bytes(Of::New, chunks)).sum();
        let bases: u64 = job.bases.iter().map(|span| bytes(span.of, &span.chunks)).sum();
        MEMORY_FACTOR * (targets + bases)
    }

    /// Builds a job and keeps what is right and saves bytes. Blocks.
    fn build(&self, job: &PatchJob, effort: Effort) -> std::io::Result<Vec<Made>> {
        let mut kept = Vec::new();
        for patch in build(job, self.old(), self.new_side(), effort)? {
            let indices = || patch.targets.iter().cloned().flatten();
            let packed: u64 = indices().map(|index| self.new.stored_len(index)).sum();
            if patch.payload.len() as u64 >= packed {
                continue;
            }
            if !self.rebuilds(&patch)? {
                self.wrong.fetch_add(1, Ordering::Relaxed);
                tracing::error!(codec = ?patch.codec, "a patch does not rebuild its target and is not used");
                continue;
            }
            let patch_of = SetPatch {
                codec: patch.codec.number(),
                packed,
                bases: self.base_ids(&patch),
                targets: self.target_runs(&patch),
            };
            kept.push(Made { patch: patch_of, payload: patch.payload.into() });
        }
        Ok(kept)
    }

    /// Whether the very code a device runs makes the target's chunks of the base's.
    fn rebuilds(&self, patch: &Patch) -> std::io::Result<bool> {
        use distd_core::cut::ReadAt;
        let mut base = Vec::new();
        for span in &patch.bases {
            let side = self.side(span.of);
            let spans = &side.spans()[span.chunks.start as usize..span.chunks.end as usize];
            let Some(first) = spans.first() else { continue };
            let from = base.len();
            base.resize(from + spans.iter().map(|span| span.len as usize).sum::<usize>(), 0);
            side.read_exact_at(&mut base[from..], first.offset)?;
        }
        let spans = || {
            let ranges = patch.targets.iter();
            ranges.flat_map(|chunks| &self.new.spans()[chunks.start as usize..chunks.end as usize])
        };
        let len = spans().map(|span| span.len as usize).sum();
        let Ok(target) = decode(patch.codec, &base, &patch.payload, len) else { return Ok(false) };
        let mut rest = &target[..];
        Ok(spans().all(|span| {
            let Some((chunk, behind)) = rest.split_at_checked(span.len as usize) else { return false };
            rest = behind;
            ChunkHash::of(chunk) == span.hash
        }))
    }

    fn base_ids(&self, patch: &Patch) -> Vec<RangeInclusive<ChunkId>> {
        let mut ranges: Vec<RangeInclusive<ChunkId>> = Vec::new();
        for span in &patch.bases {
            for id in span.chunks.clone().map(|index| self.side(span.of).id(index)) {
                match ranges.last_mut() {
                    Some(last) if last.end().0 + 1 == id.0 => *last = *last.start()..=id,
                    _ => ranges.push(id..=id),
                }
            }
        }
        ranges
    }

    fn target_runs(&self, patch: &Patch) -> Vec<TargetRun> {
        let mut runs: Vec<TargetRun> = Vec::new();
        for index in patch.targets.iter().cloned().flatten() {
            let (id, len) = (self.new.id(index), self.new.spans()[index as usize].len);
            match runs.last_mut() {
                Some(run) if run.first.0 + run.lens.len() as u64 == id.0 => run.lens.push(len),
                _ => runs.push(TargetRun { first: id, lens: vec![len] }),
            }
        }
        runs
    }
}

/// Makes every patch between two releases; payloads go into `packs`, in the order of the patches that come back.
pub(super) async fn make(
    releases: &Arc<Releases>,
    options: &PatchOptions,
    packs: &mut PayloadPacks,
    stop: &CancellationToken,
) -> Result<Vec<SetPatch>, MakeError> {
    let at = releases.clone();
    let jobs = spawn_blocking(move || at.jobs());
    let jobs = tokio::select! {
        jobs = jobs => jobs.map_err(MakeError::Panicked)?.map_err(MakeError::Content)?,
        () = stop.cancelled() => return Err(MakeError::Stopped),
    };
    let total = jobs.len();
    tracing::info!(jobs = total, "patches are being made");
    let mebibytes = u32::try_from(options.memory_bytes >> 20).unwrap_or(u32::MAX).max(1);
    let memory = Arc::new(Semaphore::new(mebibytes as usize));
    let threads = Arc::new(Semaphore::new(options.threads.get()));
    let effort = Effort { level: options.level };
    let mut next = jobs.into_iter();
    let mut under_way = FuturesOrdered::new();
    let (mut patches, mut done, mut told) = (Vec::new(), 0, Instant::now());
    loop {
        while under_way.len() < JOBS_PER_THREAD * options.threads.get()
            && let Some(job) = next.next()
        {
            let (at, memory, threads) = (releases.clone(), memory.clone(), threads.clone());
            // The largest jobs go alone when they take more than there is.
            let cost =
                u32::try_from(at.memory(&job).div_ceil(1 << 20)).unwrap_or(u32::MAX).clamp(1, mebibytes);
            under_way.push_back(async move {
                let room = memory.acquire_many_owned(cost).await.expect("the semaphore is never closed");
                let turn = threads.acquire_owned().await.expect("the semaphore is never closed");
                let work = spawn_blocking(move || {
                    let _bounds = (room, turn);
                    at.build(&job, effort)
                });
                work.await.map_err(MakeError::Panicked)?.map_err(MakeError::Content)
            });
        }
        let made = tokio::select! {
            made = under_way.next() => made,
            () = stop.cancelled() => return Err(MakeError::Stopped),
        };
        let Some(made) = made else { return Ok(patches) };
        for Made { patch, payload } in made? {
            if patches.len() >= PATCHES_MAX {
                return Err(MakeError::TooLarge);
            }
            patches.push(patch);
            packs.push(payload).await?;
        }
        done += 1;
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tracing::info!(
                jobs = total,
                done,
                patches = patches.len(),
                bytes = packs.bytes(),
                "making patches"
            );
        }
    }
}
