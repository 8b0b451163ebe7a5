//! The order of a pull.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use distd_core::manifest::{Kind, Manifest};
use distd_core::names::Wanted;
use distd_core::planner::{self, HeldAt, HeldIndex, Plan};
use distd_core::swarm::FetchConfig;
use distd_core::{ArtifactHash, ManifestId};
use distd_peer::driver::{Driver, FetchError};
use distd_peer::table::ChunkTable;
use serde::Serialize;

use super::check::hash_medium;
use super::copy::{copy_held, held_in_place};
use super::entries::{Entries, ZeroChunk};
use super::journal::Journal;
use super::kept::{is_block_device, keep_manifest, kept_manifest_path, read_kept_manifest, with_suffix};
use super::seeds::Seeds;
use super::sink::TargetSink;
use super::target::{self, Target};
use super::wanted::Realm;
use crate::exit::{Code, Failure};
use crate::progress::Progress;

/// How often progress is made durable.
const JOURNAL_EVERY: Duration = Duration::from_millis(900);

/// What to pull, and with what.
pub(crate) struct PullRequest {
    /// The release or channel.
    pub(crate) wanted: Wanted,
    /// Where to.
    pub(crate) out: PathBuf,
    /// Earlier artifacts.
    pub(crate) seeds: Vec<PathBuf>,
    /// Parents, nearest first.
    pub(crate) parents: Vec<String>,
    /// The device's state.
    pub(crate) data: PathBuf,
}

/// Bytes received, by who sent them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct BySource {
    origin: u64,
    relay: u64,
    peer: u64,
    http: u64,
}

/// What a pull did; the one object that `--json` ends with.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    product: String,
    version: String,
    artifact_bytes: u64,
    held_bytes: u64,
    fetched_bytes: u64,
    wire_bytes: u64,
    wire_bytes_by_source: BySource,
    chunk_bytes: u64,
    metadata_bytes: u64,
    node_bytes: u64,
    refetched_verified_bytes: u64,
    requests: u64,
    round_trips: u64,
    seconds: f64,
    manifest: ManifestId,
    blake3: ArtifactHash,
    resumed: bool,
    already_there: bool,
}

/// What a pull would do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanReport {
    product: String,
    version: String,
    manifest: ManifestId,
    artifact_bytes: u64,
    held_bytes: u64,
    /// Uncompressed: what the link carries is less.
    fetch_raw_bytes: u64,
    fetch_chunks: u64,
    fetch_ranges: usize,
    batches: u64,
    /// What planning itself received: metadata and manifest nodes.
    wire_bytes: u64,
}

impl Outcome {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        let state = if self.already_there { "already there" } else { "in place" };
        let by = &self.wire_bytes_by_source;
        format!(
            "{} {} {state}: {} bytes, {} held, {} received (relay {}, origin {}) in {:.1} s\nblake3 {}",
            self.product,
            self.version,
            self.artifact_bytes,
            self.held_bytes,
            self.wire_bytes,
            by.relay,
            by.origin,
            self.seconds,
            self.blake3
        )
    }
}

impl PlanReport {
    /// For people.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} {}: {} bytes, {} held; to fetch: {} chunks in {} ranges, {} bytes before compression, {} requests",
            self.product,
            self.version,
            self.artifact_bytes,
            self.held_bytes,
            self.fetch_chunks,
            self.fetch_ranges,
            self.fetch_raw_bytes,
            self.batches
        )
    }
}

struct Prepared {
    realm: Realm,
    product: String,
    version: String,
    manifest: Manifest,
    seeds: Seeds,
    index: HeldIndex,
    metadata_bytes: u64,
    node_bytes: u64,
}

fn received(realm: &Realm) -> u64 {
    let (relay, origin) = realm.parents.readings();
    relay.bytes_in + origin.bytes_in
}

async fn prepare(request: &PullRequest, extra_seed: Option<&Path>) -> anyhow::Result<Prepared> {
    let realm = Realm::open(&request.data, request.parents.clone()).await?;
    let resolved = realm.resolve(&request.wanted).await?;
    let metadata_bytes = received(&realm);
    let mut paths = request.seeds.clone();
    paths.extend(extra_seed.map(Path::to_owned));
    let data = request.data.clone();
    let seeds = tokio::task::spawn_blocking(move || Seeds::open(&paths, &data)).await??;
    // Old nodes of the manifest itself may be there from a pull that was interrupted.
    let part = read_part_manifest(request);
    let mut held = seeds.held_manifests();
    held.extend(part.as_ref());
    let manifest = realm.manifest(&resolved, &held).await?;
    let node_bytes = received(&realm) - metadata_bytes;
    let cut = manifest.root().cut;
    let (seeds, index) = tokio::task::spawn_blocking(move || {
        let index = seeds.index(cut)?;
        anyhow::Ok((seeds, index))
    })
    .await??;
    Ok(Prepared {
        realm,
        product: resolved.product.to_string(),
        version: resolved.version.to_string(),
        manifest,
        seeds,
        index,
        metadata_bytes,
        node_bytes,
    })
}

/// Files of a pull in progress, beside the target or in the state directory for a block device.
fn state_path(request: &PullRequest, suffix: &str) -> PathBuf {
    let base = if is_block_device(&request.out) {
        kept_manifest_path(&request.out, &request.data)
    } else {
        request.out.clone()
    };
    with_suffix(&base, suffix)
}

fn read_part_manifest(request: &PullRequest) -> Option<Manifest> {
    let bytes = std::fs::read(state_path(request, ".distd-part-manifest")).ok()?;
    Manifest::from_file_bytes(bytes.into()).ok()
}

/// Says what a pull would do; nothing is written.
///
/// # Errors
/// As [`pull`].
pub(crate) async fn plan(request: &PullRequest) -> anyhow::Result<PlanReport> {
    let out = Some(request.out.as_path()).filter(|out| out.exists());
    let prepared = prepare(request, out).await?;
    let zero = ZeroChunk::new(prepared.manifest.root().cut.max());
    let plan: Plan = planner::plan(&prepared.manifest, FetchConfig::default().batch_chunks, |at| {
        zero.is(at) || prepared.index.find(&at.entry.hash, at.entry.len).is_some()
    });
    Ok(PlanReport {
        product: prepared.product,
        version: prepared.version,
        manifest: prepared.manifest.id(),
        artifact_bytes: plan.artifact_bytes,
        held_bytes: plan.held_bytes,
        fetch_raw_bytes: plan.fetch_raw_bytes,
        fetch_chunks: plan.fetch.len(),
        fetch_ranges: plan.fetch.range_count(),
        batches: plan.batches,
        wire_bytes: received(&prepared.realm),
    })
}

/// Pulls an artifact.
///
/// # Errors
/// A [`Failure`] with its exit code. What was verified stays and the same command goes on from there.
pub(crate) async fn pull(request: &PullRequest, progress: Arc<Progress>) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let device = is_block_device(&request.out);
    let out_seed = Some(request.out.as_path()).filter(|out| !device && out.exists());
    let Prepared { realm, product, version, manifest, seeds, index, metadata_bytes, node_bytes } =
        prepare(request, out_seed).await?;
    let manifest = Arc::new(manifest);
    let mut job = Job::open(request, &manifest, seeds, index)?;
    let already_there = !device
        && request.out.exists()
        && read_kept_manifest(&request.out, &request.data).is_some_and(|m| m.id() == manifest.id());
    progress.begin(manifest.root().bytes, &format!("{product} {version}"));
    job.progress = progress.clone();
    let result = job.fill(&realm).await;
    job.write_journal_now()?;
    result?;
    progress.phase("checking");
    let job = Arc::new(job);
    let checking = job.clone();
    let mut wrong = tokio::task::spawn_blocking(move || checking.check()).await??;
    if wrong {
        // The medium did not keep what was written, or a journal spoke of another life: find what is wrong, once.
        tracing::warn!("the artifact does not match as a whole; every chunk is checked again");
        let again = job.clone();
        tokio::task::spawn_blocking(move || again.forget_wrong()).await?;
        job.fill(&realm).await?;
        let checking = job.clone();
        wrong = tokio::task::spawn_blocking(move || checking.check()).await??;
    }
    if wrong {
        let error = anyhow!("{} does not hold the artifact after it was written", request.out.display());
        let next = "the medium may be failing: check it, then pull to another one";
        return Err(Failure::new(Code::Integrity, error).next(next).into());
    }
    job.target.finish()?;
    keep_manifest(&request.out, &request.data, &manifest)
        .context("could not keep the manifest beside the artifact")
        .map_err(|e| Failure::new(Code::Local, e))?;
    job.clean_up();
    progress.end();
    let (relay, origin) = realm.parents.readings();
    let counts = *job.counts.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Outcome {
        product,
        version,
        artifact_bytes: manifest.root().bytes,
        held_bytes: manifest.root().bytes - counts.placed_bytes,
        fetched_bytes: counts.fetched_bytes,
        wire_bytes: relay.bytes_in + origin.bytes_in,
        wire_bytes_by_source: BySource { origin: origin.bytes_in, relay: relay.bytes_in, peer: 0, http: 0 },
        chunk_bytes: counts.chunk_bytes,
        metadata_bytes,
        node_bytes,
        refetched_verified_bytes: counts.repeated,
        requests: relay.requests + origin.requests,
        round_trips: relay.round_trips + origin.round_trips,
        seconds: start.elapsed().as_secs_f64(),
        manifest: manifest.id(),
        blake3: manifest.root().blake3,
        resumed: job.resumed,
        already_there,
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Of distinct chunks.
    fetched_bytes: u64,
    /// Of the places they belong: more where a chunk repeats.
    placed_bytes: u64,
    chunk_bytes: u64,
    repeated: u64,
}

/// One pull from opening the target to the last check.
struct Job {
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    entries: Arc<Entries>,
    zero: ZeroChunk,
    seeds: Arc<Seeds>,
    index: HeldIndex,
    target: Arc<dyn Target>,
    journal: Arc<Mutex<Journal>>,
    /// Held while the journal's file is written or removed: a writer that is cut off runs on in its thread.
    writing: Arc<Mutex<()>>,
    part_manifest: PathBuf,
    progress: Arc<Progress>,
    counts: Mutex<Counts>,
    resumed: bool,
}

impl Job {
    fn open(
        request: &PullRequest,
        manifest: &Arc<Manifest>,
        seeds: Seeds,
        index: HeldIndex,
    ) -> anyhow::Result<Self> {
        let target: Arc<dyn Target> = target::open(&request.out, manifest)?.into();
        let part_manifest = state_path(request, ".distd-part-manifest");
        let resumed = part_manifest.exists();
        let keep = || -> io::Result<()> {
            if let Some(dir) = part_manifest.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(dir)?;
            }
            super::kept::write_atomic(&part_manifest, &manifest.to_file_bytes())
        };
        keep()
            .with_context(|| format!("could not write {}", part_manifest.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        let journal =
            Journal::open(state_path(request, ".distd-part-journal"), manifest.id(), manifest.root().chunks);
        Ok(Self {
            manifest: manifest.clone(),
            table: Arc::new(ChunkTable::of(manifest)),
            entries: Arc::new(Entries::of(manifest)),
            zero: ZeroChunk::new(manifest.root().cut.max()),
            seeds: Arc::new(seeds),
            index,
            target,
            journal: Arc::new(Mutex::new(journal)),
            writing: Arc::default(),
            part_manifest,
            progress: Arc::new(Progress::none()),
            counts: Mutex::default(),
            resumed,
        })
    }

    fn is_done(&self, position: usize) -> bool {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).contains(position)
    }

    /// Fills whatever the journal does not list: a tree's listing first, for it says where the rest belongs.
    async fn fill(&self, realm: &Realm) -> anyhow::Result<()> {
        if let Kind::Tree { listing_bytes } = self.manifest.root().kind {
            self.fill_range(realm, 0..listing_bytes).await?;
        }
        self.fill_range(realm, 0..u64::MAX).await
    }

    async fn fill_range(&self, realm: &Realm, range: std::ops::Range<u64>) -> anyhow::Result<()> {
        let mut open: Vec<usize> = self
            .entries
            .iter()
            .filter(|(position, at)| range.contains(&at.offset) && !self.is_done(*position))
            .map(|(position, _)| position)
            .collect();
        if self.target.may_hold_bytes() {
            let (entries, target, check) = (self.entries.clone(), self.target.clone(), open.clone());
            let there =
                tokio::task::spawn_blocking(move || held_in_place(&entries, &check, &*target)).await?;
            for position in &there {
                self.mark(*position);
            }
            open.retain(|position| there.binary_search(position).is_err());
        }
        let mut held: Vec<(usize, HeldAt)> = Vec::new();
        let mut missing = Vec::new();
        let zeros = vec![0; self.manifest.root().cut.max() as usize];
        for position in open {
            let at = self.entries.get(position);
            if self.zero.is(at) {
                if !self.target.is_zeroed() {
                    self.target.write_at(at.offset, &zeros).map_err(write_failed)?;
                }
                self.mark(position);
            } else if let Some(from) = self.index.find(&at.entry.hash, at.entry.len) {
                held.push((position, from));
            } else {
                missing.push(position);
            }
        }
        let copying = {
            let (entries, seeds, target) = (self.entries.clone(), self.seeds.clone(), self.target.clone());
            let (journal, progress) = (self.journal.clone(), self.progress.clone());
            tokio::task::spawn_blocking(move || {
                copy_held(&entries, &held, &seeds.seeds, &*target, &journal, &|bytes| progress.add(bytes))
            })
        };
        let journalling = self.journal_regularly();
        let fetching = async {
            self.fetch(realm, &missing).await?;
            let copied = copying.await?.map_err(write_failed)?;
            if !copied.failed.is_empty() {
                tracing::warn!(
                    chunks = copied.failed.len(),
                    "seeds held other bytes than expected; fetching these"
                );
                self.fetch(realm, &copied.failed).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            result = fetching => result,
            failed = journalling => Err(failed),
        }
    }

    fn mark(&self, position: usize) {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).add(position);
        self.progress.add(u64::from(self.entries.get(position).entry.len));
    }

    async fn fetch(&self, realm: &Realm, missing: &[usize]) -> anyhow::Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        let progress = self.progress.clone();
        let sink = Arc::new(TargetSink::new(
            self.target.clone(),
            self.journal.clone(),
            &self.entries,
            missing.iter().copied(),
            Arc::new(move |bytes| progress.add(bytes)),
        ));
        let wanted = sink.wanted();
        let distinct: u64 = wanted.ids().filter_map(|id| self.table.get(id)).map(|e| u64::from(e.len)).sum();
        let placed: u64 = missing.iter().map(|p| u64::from(self.entries.get(*p).entry.len)).sum();
        let config = FetchConfig::default();
        let (driver, handle) =
            Driver::new(realm.parents.clone(), self.manifest.id(), self.table.clone(), sink.clone(), config);
        let result = driver.fetch_all(wanted).await;
        drop(handle);
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.fetched_bytes += distinct;
            counts.placed_bytes += placed;
            counts.chunk_bytes += sink.chunk_bytes.load(Ordering::Relaxed);
            counts.repeated += sink.repeated.load(Ordering::Relaxed);
        }
        result.map_err(|error| match error {
            FetchError::Sink(_) => write_failed(io::Error::other(error)),
            FetchError::Unavailable { .. } => {
                let next = "check that a parent runs and reaches the origin, then run the same command again: it resumes";
                Failure::new(Code::Network, error.into()).next(next).into()
            }
        })
    }

    /// Makes progress durable again and again; returns only with an error.
    async fn journal_regularly(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(JOURNAL_EVERY).await;
            let (target, journal, writing) =
                (self.target.clone(), self.journal.clone(), self.writing.clone());
            let written =
                tokio::task::spawn_blocking(move || write_journal(&*target, &journal, &writing)).await;
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return write_failed(error),
                Err(error) => return error.into(),
            }
        }
    }

    fn write_journal_now(&self) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| write_journal(&*self.target, &self.journal, &self.writing))
            .map_err(write_failed)
    }

    /// Reads the whole artifact off the target; true when it is not what it should be.
    fn check(&self) -> anyhow::Result<bool> {
        let root = self.manifest.root();
        let hash = hash_medium(&*self.target, root.bytes).map_err(write_failed)?;
        Ok(hash != Some(root.blake3))
    }

    /// Takes every chunk that is not in place out of the journal.
    fn forget_wrong(&self) {
        let all: Vec<usize> = (0..self.entries.len()).collect();
        let there = held_in_place(&self.entries, &all, &*self.target);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.replace(there.into_iter());
    }

    fn clean_up(&self) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = journal.remove().and_then(|()| std::fs::remove_file(&self.part_manifest));
        if let Err(error) = removed {
            tracing::warn!(%error, "state of the finished pull left behind");
        }
    }
}

/// Data first, then the journal that speaks of it.
fn write_journal(target: &dyn Target, journal: &Mutex<Journal>, writing: &Mutex<()>) -> io::Result<()> {
    let _turn = writing.lock().unwrap_or_else(PoisonError::into_inner);
    let (path, bytes) = {
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        if !journal.is_dirty() {
            return Ok(());
        }
        journal.snapshot()
    };
    target.sync()?;
    Journal::write(&path, &bytes)
}

fn write_failed(error: io::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error).context("could not write the artifact");
    let next = "free some space or check the medium, then run the same command again: it resumes";
    Failure::new(Code::Local, error).next(next).into()
}
