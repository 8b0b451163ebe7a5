//! Makes the patches between two releases: pairing first, then jobs on threads, with results in
//! order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::ChunkHash;
use distd_core::bounds::PATCHES_MAX;
use distd_core::cut::ReadAt;
use distd_core::manifest::Entry;
use distd_core::patch::pair::{
    ChunkSpan, Need, Of, PairOptions, Patch, PatchJob, Side, Span, build, large_memory, pair,
};
use distd_core::patch::{
    Cost, Effort, LargePayload, Method, PatchChunkId, PatchMethod, SetPatch, TargetRun, ViewChunkId, decode,
    encode, large_cost, rebuild_large, view,
};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::{RwLock, Semaphore};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::artifact::StoredArtifact;
use super::packs::PayloadPacks;
use super::trees::TreePatch;
use super::views::{Pair, View, Viewed};
use super::{MakeError, PatchOptions};

/// Memory that a job takes for each byte of its bases and targets, as zstd does at its highest
/// levels.
const MEMORY_FACTOR: u64 = 10;

/// Jobs that are started for each thread, so that others continue while the first one takes long.
/// Bounds the finished payloads that wait to be written in order.
const JOBS_PER_THREAD: usize = 4;

/// Most raw bytes that a patch rebuilds. The format allows more, but a device holds the base, the
/// target and a zstd window of the same length, and all of it must stay below 64 MB.
const TARGET_BYTES: usize = 3 << 19;
/// Most bytes of a patch's base, for the same reason.
const BASE_BYTES: usize = 4 << 20;

/// Raw bytes of view chunks without a patch that are sent together. Packed they fit into one chunk.
const REST_BYTES: u64 = 512 << 10;

/// Raw bytes up to which a set is made with at least [`SMALL_LEVEL`]; it takes about ten seconds.
const SMALL_BYTES: u64 = 32 << 20;
/// zstd level for small sets.
const SMALL_LEVEL: i32 = 19;

/// Effort for pieces of large payloads, which do not pack.
const PIECE_EFFORT: Effort = Effort { level: 1 };

/// Time between two progress lines in the log.
const PROGRESS: Duration = Duration::from_secs(10);

/// Two releases that many threads can read at once.
#[derive(Debug)]
pub(super) struct Releases {
    pair: Pair,
    /// Number of patches that did not rebuild their targets.
    wrong: AtomicU64,
}

/// Patch with its payload, in the terms of the set's index.
struct Made {
    patch: SetPatch,
    payload: Bytes,
    /// Indices of the chunks of the new release that the patch rebuilds.
    indices: Vec<u32>,
    /// Pieces of a large payload, and the payloads of the patches that make them. Their ids are
    /// given when all patches before are known.
    pieces: Vec<(u32, Bytes)>,
}

impl Releases {
    /// Unpacks the packed files of both releases, each in at most `memory` bytes. Blocks.
    pub(super) fn new(
        old: StoredArtifact,
        new: StoredArtifact,
        spool: &Path,
        memory: u64,
    ) -> std::io::Result<Self> {
        Ok(Self { pair: Pair::new(old, new, spool, memory)?, wrong: AtomicU64::new(0) })
    }

    fn old(&self) -> Side<'_, Viewed> {
        Self::as_side(&self.pair.old)
    }

    fn new_side(&self) -> Side<'_, Viewed> {
        Self::as_side(&self.pair.new)
    }

    fn as_side(viewed: &Viewed) -> Side<'_, Viewed> {
        Side { bytes: viewed, regions: viewed.regions(), chunks: viewed.spans() }
    }

    /// Jobs to build, each in at most `memory` bytes. Blocks: reads the old release and the new
    /// chunks of the new one.
    fn jobs(&self, memory: u64) -> std::io::Result<Vec<PatchJob>> {
        let options = PairOptions {
            target_bytes_max: TARGET_BYTES,
            base_bytes_max: BASE_BYTES,
            large_memory_max: memory,
            ..PairOptions::default()
        };
        pair(self.old(), self.new_side(), &self.pair.needs, options)
    }

    /// Number of wrong patches so far.
    pub(super) fn wrong(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    fn side(&self, of: Of) -> &Viewed {
        match of {
            Of::Old => &self.pair.old,
            Of::New => &self.pair.new,
        }
    }

    /// Estimate of the memory that a job takes, bytes.
    fn memory(&self, job: &PatchJob) -> u64 {
        let bytes = |of, chunks: &std::ops::Range<u32>| -> u64 {
            let spans = &self.side(of).spans()[chunks.start as usize..chunks.end as usize];
            spans.iter().map(|span| u64::from(span.len)).sum()
        };
        let targets = self.target_bytes(job);
        let bases: u64 = job.bases.iter().map(|span| bytes(span.of, &span.chunks)).sum();
        if job.large {
            return large_memory(bases, targets);
        }
        MEMORY_FACTOR * (targets + bases)
    }

    /// Raw bytes that a job rebuilds.
    fn target_bytes(&self, job: &PatchJob) -> u64 {
        let spans = self.pair.new.spans();
        let bytes = |chunks: &std::ops::Range<u32>| -> u64 {
            spans[chunks.start as usize..chunks.end as usize].iter().map(|span| u64::from(span.len)).sum()
        };
        job.targets.iter().map(bytes).sum()
    }

    /// Builds a job and keeps the patches that are right and save bytes. Blocks.
    fn build(&self, job: &PatchJob, effort: Effort) -> std::io::Result<Vec<Made>> {
        let mut kept = Vec::new();
        for patch in build(job, self.old(), self.new_side(), effort)? {
            let indices = || patch.targets.iter().cloned().flatten();
            // A chunk of a view cannot be fetched without the patch, so it counts with its full
            // length.
            let new = &self.pair.new;
            let cost =
                |index| new.stored_len(index).unwrap_or_else(|| u64::from(new.spans()[index as usize].len));
            let packed: u64 = indices().map(cost).sum();
            if patch.payload.len() as u64 >= packed {
                continue;
            }
            if !self.rebuilds(&patch)? {
                self.wrong.fetch_add(1, Ordering::Relaxed);
                tracing::error!(codec = ?patch.codec, "a patch does not rebuild its target and is not used");
                continue;
            }
            let mut made = Made {
                indices: indices().collect(),
                patch: SetPatch {
                    codec: patch.codec.number(),
                    packed,
                    bases: self.base_ids(&patch),
                    targets: self.target_runs(&patch),
                },
                payload: Bytes::new(),
                pieces: Vec::new(),
            };
            if patch.large {
                let Some(divided) = self.divide(&patch, &mut made) else { continue };
                made.payload = divided;
            } else {
                made.payload = patch.payload.into();
            }
            kept.push(made);
        }
        Ok(kept)
    }

    /// Divides the payload of a large patch into pieces, which go into `made`, and the payload that
    /// is returned. `None` if no device has the memory.
    fn divide(&self, patch: &Patch, made: &mut Made) -> Option<Bytes> {
        let payload = LargePayload::new(&patch.payload);
        made.patch.codec = Method::Large(self.cost_of_large(patch)?).number();
        for piece in &payload.pieces {
            let packed = encode(PatchMethod::Zstd, &[], piece, PIECE_EFFORT)?;
            made.pieces.push((piece.len() as u32, packed.into()));
            // A device weighs the patch's own payload against its targets.
            made.patch.packed = made.patch.packed.saturating_sub(piece.len() as u64);
        }
        Some(payload.own.into())
    }

    fn cost_of_large(&self, patch: &Patch) -> Option<Cost> {
        let bytes = |of: Of, chunks: &std::ops::Range<u32>| -> u64 {
            let spans = &self.side(of).spans()[chunks.start as usize..chunks.end as usize];
            spans.iter().map(|span| u64::from(span.len)).sum()
        };
        let bases = patch.bases.iter().map(|span| bytes(span.of, &span.chunks)).sum();
        let targets = patch.targets.iter().map(|chunks| bytes(Of::New, chunks)).sum();
        large_cost(bases, patch.payload.len() as u64, targets)
    }

    /// Whether the patch rebuilds its targets from its bases, tried with the code that devices run.
    fn rebuilds(&self, patch: &Patch) -> std::io::Result<bool> {
        let mut base = Vec::new();
        for span in &patch.bases {
            let side = self.side(span.of);
            let spans = &side.spans()[span.chunks.start as usize..span.chunks.end as usize];
            let Some(first) = spans.first() else { continue };
            let from = base.len();
            base.resize(from + spans.iter().map(|span| span.len as usize).sum::<usize>(), 0);
            side.read_exact_at(&mut base[from..], first.offset)?;
        }
        let new = &self.pair.new;
        let spans = || {
            let ranges = patch.targets.iter();
            ranges.flat_map(|chunks| &new.spans()[chunks.start as usize..chunks.end as usize])
        };
        let len = spans().map(|span| span.len as usize).sum();
        let target = if patch.large {
            let Some(cost) = self.cost_of_large(patch) else { return Ok(false) };
            let payload = LargePayload::new(&patch.payload);
            payload.pieces.iter().for_each(|piece| base.extend_from_slice(piece));
            let mut target = Vec::with_capacity(len);
            let mut sink = |bytes: &[u8]| {
                target.extend_from_slice(bytes);
                Ok(())
            };
            rebuild_large(&base, &payload.own, len as u64, cost.memory(), &mut sink)?.map(|()| target)
        } else {
            decode(patch.codec, &base, &patch.payload, len)
        };
        let Ok(target) = target else { return Ok(false) };
        let mut rest = &target[..];
        Ok(spans().all(|span| {
            let Some((chunk, behind)) = rest.split_at_checked(span.len as usize) else { return false };
            rest = behind;
            ChunkHash::of(chunk) == span.hash
        }))
    }

    fn base_ids(&self, patch: &Patch) -> Vec<RangeInclusive<PatchChunkId>> {
        let spans = patch.bases.iter();
        ranges_of(spans.flat_map(|Span { of, chunks }| {
            let side = self.side(*of);
            chunks.clone().map(|index| side.id(index))
        }))
    }

    fn target_runs(&self, patch: &Patch) -> Vec<TargetRun> {
        runs_of(&self.pair.new, patch.targets.iter().cloned().flatten())
    }

    /// Patches that unpack packed files of the old release.
    fn inflates(&self) -> Vec<Made> {
        let old = &self.pair.old;
        let inflate = |view: &View| Made {
            patch: SetPatch {
                codec: Method::Inflate(view::unpack_cost(&view.recipe).unwrap_or(Cost::UNSTATED)).number(),
                packed: 0,
                bases: ranges_of(old.packed_chunks(view).into_iter().map(|index| old.id(index))),
                targets: runs_of(old, old.view_chunks(view)),
            },
            payload: view.recipe.clone().into(),
            indices: Vec::new(),
            pieces: Vec::new(),
        };
        old.views.iter().map(inflate).collect()
    }

    /// Jobs for chunks of new views that no patch rebuilds. A patch saved nothing there, but
    /// devices still need the chunks.
    fn rest_of_views(&self, covered: &BTreeSet<u32>) -> Vec<PatchJob> {
        let new = &self.pair.new;
        let wanted =
            |index: &u32| self.pair.needs[*index as usize] == Need::Wanted && !covered.contains(index);
        let mut jobs: Vec<PatchJob> = Vec::new();
        let mut room = 0;
        for index in (new.own_chunks()..new.spans().len() as u32).filter(wanted) {
            let len = u64::from(new.spans()[index as usize].len);
            if len > room {
                jobs.push(PatchJob::default());
                room = REST_BYTES;
            }
            room = room.saturating_sub(len);
            if let Some(job) = jobs.last_mut() {
                job.targets.push(index..index + 1);
            }
        }
        jobs
    }

    /// Builds a patch without a base for the job's chunks, whether or not it saves bytes. Blocks.
    fn build_rest(&self, job: &PatchJob, effort: Effort) -> std::io::Result<Option<Made>> {
        let new = &self.pair.new;
        let indices: Vec<u32> = job.targets.iter().cloned().flatten().collect();
        let mut target = Vec::new();
        for index in &indices {
            let span = &new.spans()[*index as usize];
            let from = target.len();
            target.resize(from + span.len as usize, 0);
            new.read_exact_at(&mut target[from..], span.offset)?;
        }
        let Some(payload) = encode(PatchMethod::Zstd, &[], &target, effort) else { return Ok(None) };
        let patch = SetPatch {
            codec: PatchMethod::Zstd.number(),
            packed: target.len() as u64,
            bases: Vec::new(),
            targets: runs_of(new, indices.iter().copied()),
        };
        Ok(Some(Made { patch, payload: payload.into(), indices, pieces: Vec::new() }))
    }

    /// Patches that pack new views again, if that saves bytes. `spent` is the cost of each chunk of
    /// the new release in patch bytes.
    fn repacks(&self, spent: &BTreeMap<u32, f64>) -> Vec<Made> {
        let new = &self.pair.new;
        let mut made = Vec::new();
        // Cost of the inner views so far, by the first chunk that each makes.
        let mut inner_costs: BTreeMap<u32, f64> = BTreeMap::new();
        // Seconds that packing them takes, likewise.
        let mut inner_seconds: BTreeMap<u32, f64> = BTreeMap::new();
        // A view may be made from a part of another view, such as gzip files in clusters. The
        // later, inner view has to be packed first.
        for view in new.views.iter().rev() {
            let packed_chunks = new.packed_chunks(view);
            let inner = new.is_inner(view);
            let cost = |index: &u32| {
                new.stored_len(*index).unwrap_or_else(|| u64::from(new.spans()[*index as usize].len))
            };
            let packed: u64 = packed_chunks.iter().map(cost).sum();
            let own = view::cost(&view.recipe).unwrap_or(Cost::UNSTATED);
            let bytes: u64 =
                new.view_chunks(view).map(|index| u64::from(new.spans()[index as usize].len)).sum();
            let seconds_within: f64 = inner_seconds.range(new.view_chunks(view)).map(|(_, s)| s).sum();
            let seconds = bytes as f64 / own.rate() as f64 + seconds_within;
            let wanted =
                new.view_chunks(view).filter(|index| self.pair.needs[*index as usize] == Need::Wanted);
            let within: f64 = inner_costs.range(new.view_chunks(view)).map(|(_, cost)| cost).sum();
            let cost = within + wanted.filter_map(|index| spent.get(&index)).sum::<f64>();
            if !inner && cost + view.recipe.len() as f64 >= packed as f64 {
                tracing::debug!(packed, cost, "a view saves nothing");
                continue;
            }
            if inner && let Some(first) = packed_chunks.first() {
                inner_costs.insert(*first, cost + view.recipe.len() as f64);
                inner_seconds.insert(*first, seconds);
            }
            // A device decides about the outer view alone, and packs what lies within it too.
            let rate = (bytes as f64 / seconds.max(f64::MIN_POSITIVE)) as u64;
            let stated =
                if seconds_within > 0.0 { Cost::new(own.memory(), rate).unwrap_or(own) } else { own };
            made.push(Made {
                patch: SetPatch {
                    codec: Method::Repack(stated).number(),
                    packed,
                    bases: ranges_of(new.view_chunks(view).map(|index| new.id(index))),
                    targets: runs_of(new, packed_chunks.iter().copied()),
                },
                payload: view.recipe.clone().into(),
                indices: packed_chunks,
                pieces: Vec::new(),
            });
        }
        made
    }

    /// Patches that compute hash trees.
    fn trees(&self) -> Vec<Made> {
        let new = &self.pair.new;
        let made = |tree: &TreePatch| Made {
            patch: SetPatch {
                codec: Method::HashTree.number(),
                packed: tree.targets.clone().filter_map(|index| new.stored_len(index)).sum(),
                bases: ranges_of(tree.bases.clone().map(|index| new.id(index))),
                targets: runs_of(new, tree.targets.clone()),
            },
            payload: tree.recipe.clone().into(),
            indices: tree.targets.clone().collect(),
            pieces: Vec::new(),
        };
        self.pair.trees.iter().map(made).collect()
    }

    /// Chunks of the old release in artifact order, and those of the new one.
    pub(super) fn entries(&self) -> (Vec<Entry>, Vec<Entry>) {
        let entries = |viewed: &Viewed| {
            let stored = viewed.stored();
            let entry = |(span, index): (&ChunkSpan, u32)| Entry {
                id: stored.id(index),
                hash: span.hash,
                len: span.len,
            };
            stored.spans().iter().zip(0..).map(entry).collect()
        };
        (entries(&self.pair.old), entries(&self.pair.new))
    }
}

/// Ids as ranges, in the given order.
fn ranges_of(ids: impl Iterator<Item = PatchChunkId>) -> Vec<RangeInclusive<PatchChunkId>> {
    let mut ranges: Vec<RangeInclusive<PatchChunkId>> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(last) if last.end().plus(1) == id => *last = *last.start()..=id,
            _ => ranges.push(id..=id),
        }
    }
    ranges
}

/// Chunks at the given indices as runs of ids.
fn runs_of(viewed: &Viewed, indices: impl Iterator<Item = u32>) -> Vec<TargetRun> {
    let mut runs: Vec<TargetRun> = Vec::new();
    for index in indices {
        let (id, len) = (viewed.id(index), viewed.spans()[index as usize].len);
        match runs.last_mut() {
            Some(run) if run.first.plus(run.lens.len() as u64) == id => run.lens.push(len),
            _ => runs.push(TargetRun { first: id, lens: vec![len] }),
        }
    }
    runs
}

/// Makes all patches between two releases. Their payloads go into `packs`, in the order of the
/// returned patches. With a `turn`, each job waits while another set holds the turn exclusively.
pub(super) async fn make(
    releases: &Arc<Releases>,
    options: &PatchOptions,
    turn: Option<&RwLock<()>>,
    packs: &mut PayloadPacks,
    stop: &CancellationToken,
) -> Result<Vec<SetPatch>, MakeError> {
    let at = releases.clone();
    let job_memory = options.memory_bytes;
    let jobs = spawn_blocking(move || at.jobs(job_memory));
    let jobs = tokio::select! {
        jobs = jobs => jobs.map_err(MakeError::Panicked)?.map_err(MakeError::Content)?,
        () = stop.cancelled() => return Err(MakeError::Stopped),
    };
    let total = jobs.len();
    tracing::info!(jobs = total, "patches are being made");
    let mebibytes = u32::try_from(options.memory_bytes >> 20).unwrap_or(u32::MAX).max(1);
    let memory = Arc::new(Semaphore::new(mebibytes as usize));
    let threads = Arc::new(Semaphore::new(options.threads.get()));
    let bytes: u64 = jobs.iter().map(|job| releases.target_bytes(job)).sum();
    // A small set takes little time at any level, so it is made as small as possible.
    let level = if bytes <= SMALL_BYTES { options.level.max(SMALL_LEVEL) } else { options.level };
    let effort = Effort { level };
    let mut next = jobs.into_iter();
    let mut under_way = FuturesOrdered::new();
    let mut made_so_far = MadePatches { view_chunks: releases.pair.view_chunks, ..MadePatches::default() };
    for made in releases.inflates() {
        made_so_far.take(made, packs).await?;
    }
    let (mut done, mut logged) = (0, Instant::now());
    loop {
        while under_way.len() < JOBS_PER_THREAD * options.threads.get()
            && let Some(job) = next.next()
        {
            let (at, memory, threads) = (releases.clone(), memory.clone(), threads.clone());
            // A job that needs more memory than there is takes all of it and so runs alone.
            let cost =
                u32::try_from(at.memory(&job).div_ceil(1 << 20)).unwrap_or(u32::MAX).clamp(1, mebibytes);
            under_way.push_back(async move {
                let room = memory.acquire_many_owned(cost).await.expect("the semaphore is never closed");
                let thread = threads.acquire_owned().await.expect("the semaphore is never closed");
                // The turn comes last, so that a set that wants it exclusively waits for running
                // jobs and not for those that wait for a thread.
                let _turn = match turn {
                    Some(turn) => Some(turn.read().await),
                    None => None,
                };
                let work = spawn_blocking(move || {
                    let _bounds = (room, thread);
                    at.build(&job, effort)
                });
                work.await.map_err(MakeError::Panicked)?.map_err(MakeError::Content)
            });
        }
        let made = tokio::select! {
            made = under_way.next() => made,
            () = stop.cancelled() => return Err(MakeError::Stopped),
        };
        let Some(made) = made else { break };
        for made in made? {
            made_so_far.take(made, packs).await?;
        }
        done += 1;
        if logged.elapsed() >= PROGRESS {
            logged = Instant::now();
            tracing::info!(
                jobs = total,
                done,
                patches = made_so_far.patches.len(),
                bytes = packs.bytes(),
                "making patches"
            );
        }
    }
    let covered: BTreeSet<u32> = made_so_far.spent.keys().copied().collect();
    for job in releases.rest_of_views(&covered) {
        let at = releases.clone();
        let made = spawn_blocking(move || at.build_rest(&job, effort)).await;
        if let Some(made) = made.map_err(MakeError::Panicked)?.map_err(MakeError::Content)? {
            made_so_far.take(made, packs).await?;
        }
    }
    for made in releases.repacks(&made_so_far.spent) {
        made_so_far.take(made, packs).await?;
    }
    // The data of a hash tree may come from any patch before.
    for made in releases.trees() {
        made_so_far.take(made, packs).await?;
    }
    Ok(made_so_far.patches)
}

/// Patches made so far, in order.
#[derive(Default)]
struct MadePatches {
    patches: Vec<SetPatch>,
    /// Cost of each chunk of the new release, bytes: its share of its patch's payload.
    spent: BTreeMap<u32, f64>,
    /// Number of ids that chunks of views, and pieces, have so far.
    view_chunks: u64,
}

impl MadePatches {
    async fn take(&mut self, mut made: Made, packs: &mut PayloadPacks) -> Result<(), MakeError> {
        if self.patches.len() + made.pieces.len() >= PATCHES_MAX {
            return Err(MakeError::TooLarge);
        }
        let mut bytes = made.payload.len();
        for (len, payload) in std::mem::take(&mut made.pieces) {
            let id = PatchChunkId::from(ViewChunkId(self.view_chunks));
            self.view_chunks += 1;
            made.patch.bases.push(id..=id);
            bytes += payload.len();
            self.patches.push(SetPatch {
                codec: PatchMethod::Zstd.number(),
                packed: u64::from(len),
                bases: Vec::new(),
                targets: vec![TargetRun { first: id, lens: vec![len] }],
            });
            packs.push(payload).await?;
        }
        let lens = made.patch.target_chunks().map(|(_, len)| f64::from(len));
        let each = bytes as f64 / (made.patch.target_bytes() as f64).max(1.0);
        let shares: Vec<(u32, f64)> = made.indices.iter().copied().zip(lens.map(|len| len * each)).collect();
        self.spent.extend(shares);
        self.patches.push(made.patch);
        packs.push(made.payload).await
    }
}
