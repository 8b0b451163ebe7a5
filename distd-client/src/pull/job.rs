//! The state of one pull, from opening the target to the final check.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::patch::Choice;
use distd_core::planner::{HeldAt, HeldIndex};
use distd_core::ranges::ChunkRanges;
use distd_core::{ChunkId, ManifestId, Position};
use distd_peer::driver::FetchError;
use distd_peer::share::Holdings;
use distd_peer::table::ChunkTable;
use tokio::sync::mpsc;

use super::arriving::{Arriving, URGENT_MAX};
use super::check::hash_medium;
use super::copy::{copy_held, held_in_place};
use super::entries::{Entries, ZeroChunk};
use super::journal::Journal;
use super::network::{Network, PATIENCE, Silent};
use super::patches::{
    Applied, Arrivals, LinkRate, Offers, PayloadSink, Payloads, TransientChunks, Work, apply_all, held,
};
use super::place::{Placed, Placer};
use super::request::{PATCH_FILES, Place, TRANSIENT_FILE};
use super::seeds::Seeds;
use super::sink::TargetSink;
use super::target::{self, Target};
use crate::disk::side;
use crate::failure::{Code, Failure, cause_of};
use crate::progress::{self, Progress};
use crate::share::Published;

/// Pause after chunks that a reader waits for could not be fetched: the pull itself goes on.
const URGENT_AGAIN: Duration = Duration::from_secs(1);

/// Which patches a round of a pull uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patches {
    /// Those that cost less than they save.
    WorthIt,
    /// All that make a wanted chunk.
    All,
}

/// Terms of one fetch of chunks.
#[derive(Clone, Copy, Default)]
struct FetchTerms<'a> {
    /// Patches that wait for a chunk as their base.
    arrivals: Option<&'a Arc<Arrivals>>,
    /// Time for which nothing at all may come, if there is another way to the chunks.
    patience: Option<Duration>,
}

/// Whether chunks did not come because nobody has them, or nobody sends them.
fn is_unavailable(error: &anyhow::Error) -> bool {
    let unavailable = cause_of::<FetchError>(error)
        .is_some_and(|error| matches!(error, FetchError::Unavailable { is_shut_out: false, .. }));
    unavailable || cause_of::<Silent>(error).is_some()
}

/// Interval at which progress is made durable.
const JOURNAL_EVERY: Duration = Duration::from_millis(900);

/// Positions whose chunk a seed has, with its place there.
type Held = Vec<(Position, HeldAt)>;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Raw bytes of distinct chunks fetched.
    pub(super) fetched_bytes: u64,
    /// Raw bytes at all positions of the placed chunks: more than `fetched_bytes` if a chunk
    /// repeats.
    pub(super) placed_bytes: u64,
    pub(super) chunk_bytes: u64,
    pub(super) repeated_bytes: u64,
    /// Packed bytes of chunks and payloads that arrived twice in one fetch.
    pub(super) duplicate_bytes: u64,
    pub(super) patches_applied: u64,
    pub(super) patches_failed: u64,
    /// Raw bytes at all positions of chunks that patches rebuilt.
    pub(super) rebuilt_bytes: u64,
}

/// One pull, from opening the target to the final check.
pub(super) struct Job {
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    entries: Arc<Entries>,
    zero: ZeroChunk,
    /// Chunks of the seeds by id; empty when there are no patches.
    seed_table: Arc<ChunkTable>,
    seeds: Arc<Seeds>,
    index: Arc<HeldIndex>,
    offers: Arc<Offers>,
    link: LinkRate,
    payloads: Vec<Arc<Payloads>>,
    transient: PathBuf,
    /// Patch files that this pull or an earlier one may have left.
    patch_files: Vec<PathBuf>,
    holdings: Arc<Holdings>,
    /// Swarms of the artifact and of the payloads that are served to neighbours; `None` when the
    /// exchange is off.
    published: Vec<Option<Published>>,
    pub(super) target: Arc<dyn Target>,
    journal: Arc<Mutex<Journal>>,
    /// Held while the journal's file is written or removed. A writer whose task is cancelled
    /// continues in its thread.
    writing: Arc<Mutex<()>>,
    part_manifest: PathBuf,
    pub(super) progress: Arc<dyn Progress>,
    pub(super) counts: Mutex<Counts>,
    pub(super) resumed: bool,
}

impl Job {
    pub(super) fn open(
        place: Place<'_>,
        manifest: &Arc<Manifest>,
        mut seeds: Arc<Seeds>,
        index: Arc<HeldIndex>,
        offers: Arc<Offers>,
        link: LinkRate,
    ) -> anyhow::Result<Self> {
        let table = Arc::new(ChunkTable::of(manifest));
        let entries = Arc::new(Entries::of(manifest, table.clone()));
        let zero = ZeroChunk::new(manifest.root().cut.max());
        let manifest_bytes = manifest.to_file_bytes();
        let data = entries.iter().filter(|(_, at)| !zero.is(at)).map(|(_, at)| u64::from(at.entry.len)).sum();
        let kept = manifest_bytes.len() as u64;
        let target: Arc<dyn Target> = target::open(place.out, place.data, manifest, data, kept)?.into();
        let part_manifest = place.state_path(".distd-part-manifest");
        let resumed = part_manifest.exists();
        side::write_atomic(&part_manifest, &manifest_bytes).map_err(Failure::from)?;
        drop(manifest_bytes);
        let mut journal =
            Journal::open(place.state_path(".distd-part-journal"), manifest.id(), manifest.root().chunks);
        if !target.may_hold_bytes() {
            // The target is new: an earlier target failed before it could be continued, or was
            // removed. The journal describes that earlier target.
            journal.replace(std::iter::empty());
        }
        let patch_files: Vec<PathBuf> = PATCH_FILES.iter().map(|suffix| place.state_path(suffix)).collect();
        let mut payloads = Vec::new();
        for (number, set) in offers.sets.iter().enumerate() {
            let opened = Payloads::open(&patch_files[number], number, set)
                .context("could not make a file for patches");
            payloads.push(Arc::new(opened.map_err(|e| Failure::new(Code::Local, e))?));
        }
        let bases = offers.bases();
        // Chunks that are in both tables are found in the first one.
        let only_base = |id| bases.contains(id) && table.get(id).is_none();
        let seed_table = ChunkTable::of_those(&seeds.held_manifests(), only_base);
        if let Some(seeds) = Arc::get_mut(&mut seeds) {
            // The manifests take some 5 MB for an image of 800 MB and are not needed any more.
            seeds.forget_manifests();
        }
        Ok(Self {
            manifest: manifest.clone(),
            entries,
            table,
            zero,
            seed_table: Arc::new(seed_table),
            seeds,
            index,
            offers,
            link,
            payloads,
            transient: place.state_path(TRANSIENT_FILE),
            patch_files,
            holdings: Arc::default(),
            published: Vec::new(),
            target,
            journal: Arc::new(Mutex::new(journal)),
            writing: Arc::default(),
            part_manifest,
            progress: Arc::new(progress::Ignored),
            counts: Mutex::default(),
            resumed,
        })
    }

    /// Serves the chunks in place to neighbours, from now until the job is dropped.
    pub(super) fn share(&mut self, network: &Network) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.tell(self.entries.clone(), self.holdings.clone());
        drop(journal);
        let bytes = Arc::new(Placed::new(self.entries.clone(), self.target.clone()));
        self.published = vec![network.publish(&self.manifest, &self.table, &self.holdings, bytes)];
        for (set, payloads) in self.offers.sets.iter().zip(&self.payloads) {
            let table = Arc::new(ChunkTable::of(&set.manifest));
            let set = network.publish(&set.manifest, &table, &payloads.holdings, payloads.clone());
            self.published.push(set);
        }
    }

    /// Manifest of the artifact.
    pub(super) fn id(&self) -> ManifestId {
        self.manifest.id()
    }

    /// The artifact as a reader sees it while it arrives, and the positions that readers wait for.
    pub(super) fn arriving(&self) -> (Arriving, mpsc::Receiver<Position>) {
        let id = self.manifest.id();
        let (entries, target, journal) = (self.entries.clone(), self.target.clone(), self.journal.clone());
        Arriving::new(id, entries, target, journal)
    }

    /// Brings chunks that readers wait for, beside [`fill`](Self::fill) and before it gets to them.
    /// Never ends.
    pub(super) async fn bring_urgent(
        &self,
        network: &Network,
        mut wanted: mpsc::Receiver<Position>,
    ) -> std::convert::Infallible {
        loop {
            let Some(first) = wanted.recv().await else { return std::future::pending().await };
            let mut open = vec![first];
            while open.len() < URGENT_MAX
                && let Ok(position) = wanted.try_recv()
            {
                open.push(position);
            }
            open.sort_unstable();
            open.dedup();
            open.retain(|position| !self.is_done(*position));
            if open.is_empty() {
                continue;
            }
            if let Err(error) = self.bring_these(network, open).await {
                tracing::debug!(error = %Chain(error.as_ref()), "chunks that a reader waits for did not come");
                tokio::time::sleep(URGENT_AGAIN).await;
            }
        }
    }

    /// Copies or fetches chunks. No patch makes them: its payload would have to come first.
    async fn bring_these(&self, network: &Network, open: Vec<Position>) -> anyhow::Result<()> {
        let (held, mut missing) = self.divide(open)?;
        if !held.is_empty() {
            let (entries, seeds, target) = (self.entries.clone(), self.seeds.clone(), self.target.clone());
            let (journal, progress) = (self.journal.clone(), self.progress.clone());
            let copying = tokio::task::spawn_blocking(move || {
                copy_held(&entries, &held, &seeds.seeds, &*target, &journal, &|bytes| progress.add(bytes))
            });
            missing.extend(copying.await?.map_err(write_failed)?.failed);
        }
        let placer = self.placer(&missing);
        self.fetch(network, &placer, &placer.ids(), FetchTerms::default()).await
    }

    fn is_done(&self, position: Position) -> bool {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).contains(position)
    }

    /// Fills all positions that the journal does not list. A tree's listing comes first because it
    /// says where the other bytes belong, and so does the partition table of an image whose
    /// partitions lie in places of their own.
    pub(super) async fn fill(&self, network: &Network) -> anyhow::Result<()> {
        let head = self.target.head_bytes();
        if head > 0 {
            self.fill_range(network, 0..head).await?;
            let (target, entries) = (self.target.clone(), self.entries.clone());
            let lay_out = move || {
                let in_head = entries.iter().map(|(_, at)| at).take_while(|at| at.offset < head);
                let end = in_head.last().map_or(0, |at| at.offset + u64::from(at.entry.len));
                target.lay_out(end)
            };
            tokio::task::spawn_blocking(lay_out).await??;
        }
        self.fill_range(network, 0..u64::MAX).await
    }

    async fn fill_range(&self, network: &Network, range: std::ops::Range<u64>) -> anyhow::Result<()> {
        let mut open: Vec<Position> = self
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
        let (held, missing) = self.divide(open)?;
        let copying = {
            let (entries, seeds, target) = (self.entries.clone(), self.seeds.clone(), self.target.clone());
            let (journal, progress) = (self.journal.clone(), self.progress.clone());
            tokio::task::spawn_blocking(move || {
                copy_held(&entries, &held, &seeds.seeds, &*target, &journal, &|bytes| progress.add(bytes))
            })
        };
        let journalling = self.journal_regularly();
        let fetching = async {
            self.bring(network, &missing).await?;
            let copied = copying.await?.map_err(write_failed)?;
            if !copied.failed.is_empty() {
                tracing::warn!(
                    chunks = copied.failed.len(),
                    "seeds had unexpected bytes; fetching these chunks"
                );
                let placer = self.placer(&copied.failed);
                self.fetch(network, &placer, &placer.ids(), FetchTerms::default()).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            result = fetching => result,
            failed = journalling => Err(failed),
            never = progress::watch_for_silence(&*self.progress) => match never {},
        }
    }

    /// Divides chunks into those that a seed has, with their places, and those that are missing.
    /// Zeros are put in place at once.
    fn divide(&self, open: Vec<Position>) -> anyhow::Result<(Held, Vec<Position>)> {
        let (mut held, mut missing) = (Vec::new(), Vec::new());
        let zeros = vec![0; self.manifest.root().cut.max() as usize];
        for position in open {
            let at = self.entries.get(position);
            if self.zero.is(&at) {
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
        Ok((held, missing))
    }

    fn mark(&self, position: Position) {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).add(position);
        self.progress.add(u64::from(self.entries.get(position).entry.len));
    }

    fn placer(&self, missing: &[Position]) -> Arc<Placer> {
        let progress = self.progress.clone();
        Arc::new(Placer::new(
            self.target.clone(),
            self.journal.clone(),
            self.entries.clone(),
            missing.iter().copied(),
            Arc::new(move |bytes| progress.add(bytes)),
        ))
    }

    /// Gets the chunks that no seed has: by patches as far as these save bytes, the rest by
    /// fetching. Chunks that nobody has are made by patches that were not worth it: a relay without
    /// an uplink may have nothing but patches.
    async fn bring(&self, network: &Network, missing: &[Position]) -> anyhow::Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        if self.offers.sets.is_empty() {
            let placer = self.placer(missing);
            return self.fetch(network, &placer, &placer.ids(), FetchTerms::default()).await;
        }
        match self.bring_by(network, missing, Patches::WorthIt).await {
            Err(error) if is_unavailable(&error) => {
                let left: Vec<Position> =
                    missing.iter().copied().filter(|position| !self.is_done(*position)).collect();
                tracing::info!(chunks = left.len(), "some chunks do not come; making them by patches");
                self.bring_by(network, &left, Patches::All).await
            }
            done => done,
        }
    }

    async fn bring_by(
        &self,
        network: &Network,
        missing: &[Position],
        patches: Patches,
    ) -> anyhow::Result<()> {
        let placer = self.placer(missing);
        let wanted = placer.ids();
        let patience = (patches == Patches::WorthIt).then_some(PATIENCE);
        let tables = [self.table.clone(), self.seed_table.clone()];
        // Chunks of the artifact that are not missing are in place and count as held.
        let held_here = |id| {
            held(&self.index, &tables, id).is_some()
                || (self.table.get(id).is_some() && placer.entry(id).is_none())
        };
        let is_here = |set: usize, patch| self.payloads[set].is_here(patch);
        let choice = match patches {
            Patches::WorthIt => self.offers.choose(&wanted, held_here, is_here, self.link),
            Patches::All => self.offers.choose_at_hand(&wanted, held_here, is_here),
        };
        let arrivals = Arc::new(Arrivals::default());
        for at in choice.patches.iter().filter(|at| self.payloads[at.set].is_here(at.patch)) {
            arrivals.payload(*at);
        }
        let work = Work {
            offers: self.offers.clone(),
            payloads: self.payloads.clone(),
            placer: Some(placer.clone()),
            seeds: self.seeds.clone(),
            index: self.index.clone(),
            tables,
            arrivals: arrivals.clone(),
            transient: TransientChunks::open(self.transient.clone(), !choice.transient.is_empty()),
            choice: choice.clone(),
        };
        let applying = tokio::task::spawn_blocking(move || {
            let applied = apply_all(&work);
            work.transient.remove();
            applied
        });
        let terms = FetchTerms { arrivals: Some(&arrivals), patience };
        let chunks = self.fetch(network, &placer, &choice.chunks, terms);
        let payloads = self.fetch_payloads(network, &choice, &arrivals);
        let (chunks, ()) = tokio::join!(chunks, payloads);
        // Payloads and bases that have not arrived by now will not arrive.
        arrivals.all_fetched();
        let applied = applying.await?.map_err(write_failed)?;
        self.count_patches(&applied);
        chunks?;
        if !applied.missing.is_empty() {
            tracing::warn!(
                patches = applied.failed,
                chunks = applied.missing.len(),
                "patches failed; fetching their chunks"
            );
            self.fetch(network, &placer, &applied.missing, FetchTerms { arrivals: None, patience }).await?;
        }
        Ok(())
    }

    fn count_patches(&self, applied: &Applied) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.patches_applied += applied.patches;
        counts.patches_failed += applied.failed;
        counts.placed_bytes += applied.rebuilt_bytes;
        counts.rebuilt_bytes += applied.rebuilt_bytes;
    }

    /// Fetches payloads; a payload that does not arrive makes its patch fail.
    async fn fetch_payloads(&self, network: &Network, choice: &Choice, arrivals: &Arc<Arrivals>) {
        // The first swarm is that of the artifact itself.
        let published = self.published.iter().skip(1);
        for ((set, payloads), published) in self.offers.sets.iter().zip(&self.payloads).zip(published) {
            let wanted = payloads.wanted(&choice.patches);
            if wanted.is_empty() {
                continue;
            }
            let sink = Arc::new(PayloadSink::new(payloads.clone(), arrivals.clone()));
            let table = Arc::new(ChunkTable::of(&set.manifest));
            let (id, published) = (set.manifest.id(), published.as_ref());
            let fetching = network.fetch(id, table, sink.clone(), wanted, published);
            let fetched = network.unless_silent(Some(PATIENCE), || self.patch_bytes(), fetching).await;
            let fetched = fetched.map_err(anyhow::Error::from).and_then(|fetched| Ok(fetched?));
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.duplicate_bytes += sink.received.duplicate_bytes.load(Ordering::Relaxed);
            if let Err(error) = fetched {
                tracing::warn!(error = %Chain(error.as_ref()), "some patches could not be fetched");
            }
        }
    }

    /// Fetches chunks and puts them in place.
    async fn fetch(
        &self,
        network: &Network,
        placer: &Arc<Placer>,
        ids: &[ChunkId],
        terms: FetchTerms<'_>,
    ) -> anyhow::Result<()> {
        let FetchTerms { arrivals, patience } = terms;
        if ids.is_empty() {
            return Ok(());
        }
        let repeated_before = placer.repeated_bytes();
        let sink = Arc::new(TargetSink::new(placer.clone(), arrivals.cloned()));
        let wanted: ChunkRanges = ids.iter().copied().collect();
        let published = self.published.first().and_then(Option::as_ref);
        let fetching = network.fetch(self.manifest.id(), self.table.clone(), sink.clone(), wanted, published);
        let arrived = || sink.chunk_bytes.load(Ordering::Relaxed) + self.patch_bytes();
        let result = network.unless_silent(patience, arrived, fetching).await;
        {
            // A fetch that was given up counts with the chunks that came.
            let came = sink.received.chunks();
            let raw = came.ids().filter_map(|id| self.table.get(id)).map(|entry| u64::from(entry.len));
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.fetched_bytes += raw.sum::<u64>();
            counts.placed_bytes += placer.placed_bytes(came.ids());
            counts.chunk_bytes += sink.chunk_bytes.load(Ordering::Relaxed);
            counts.repeated_bytes += placer.repeated_bytes() - repeated_before;
            counts.duplicate_bytes += sink.received.duplicate_bytes.load(Ordering::Relaxed);
        }
        result?.map_err(|error| match error {
            FetchError::Sink(_) => write_failed(io::Error::other(error)),
            error => not_fetched(network, error),
        })
    }

    /// Returns the number of payload bytes received.
    pub(super) fn patch_bytes(&self) -> u64 {
        self.payloads.iter().map(|payloads| payloads.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Makes progress durable at intervals; returns only with an error.
    async fn journal_regularly(&self) -> anyhow::Error {
        let mut pause = JOURNAL_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = next_pause(pause, self.target.syncs_others());
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

    pub(super) fn write_journal_now(&self) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| write_journal(&*self.target, &self.journal, &self.writing))
            .map_err(write_failed)
    }

    /// Reads the whole artifact from the target; returns true when its hash is wrong.
    pub(super) fn check(&self) -> anyhow::Result<bool> {
        let root = self.manifest.root();
        let hash = hash_medium(&*self.target, root.bytes).map_err(write_failed)?;
        Ok(hash != Some(root.blake3))
    }

    /// Removes every chunk that is not in place from the journal.
    pub(super) fn forget_wrong(&self) {
        let all: Vec<Position> = (0..self.entries.len() as u64).map(Position).collect();
        let there = held_in_place(&self.entries, &all, &*self.target);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.replace(there.into_iter());
    }

    pub(super) fn clean_up(&self) {
        for path in &self.patch_files {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %Chain(&error), "could not remove a file of patches");
                }
                _ => {}
            }
        }
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = journal.remove().and_then(|()| side::remove(&self.part_manifest)) {
            let error = tracing::field::display(Chain(&error));
            tracing::warn!(error, "could not remove the state of the finished pull");
        }
        self.target.end();
    }
}

/// Returns the pause after the next one. If making progress durable also waits for the writes of
/// other programs, the pauses double, so that it happens only a few times however long the pull
/// takes.
fn next_pause(pause: Duration, syncs_others: bool) -> Duration {
    if syncs_others { pause * 2 } else { pause }
}

/// Makes the data durable first, then writes the journal that lists it.
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
    if let Err(error) = Journal::write(&path, &bytes) {
        // The journal only saves work after a kill, so a failure is no reason to end the pull.
        let error = tracing::field::display(Chain(&error));
        tracing::warn!(error, "could not write the journal of the pull");
    }
    Ok(())
}

/// Failure of a fetch whose sink did not fail.
pub(super) fn not_fetched(network: &Network, error: FetchError) -> anyhow::Error {
    // The caller's message has the advice for a device that is shut out.
    if matches!(error, FetchError::Unavailable { is_shut_out: true, .. }) {
        return Failure::new(Code::Refused, error.into()).into();
    }
    Failure::new(Code::Network, error.into()).next(network.advice()).into()
}

fn write_failed(error: io::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error).context("could not write the artifact");
    let next = "free some space or check the medium, then run the same command again: it resumes";
    Failure::new(Code::Local, error).next(next).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_long_pull_of_a_tree_waits_only_a_few_times_for_other_programs_writes() {
        let times = |syncs_others| {
            let (mut pause, mut passed, mut times) = (JOURNAL_EVERY, Duration::ZERO, 0);
            while passed < Duration::from_secs(24 * 3600) {
                passed += pause;
                pause = next_pause(pause, syncs_others);
                times += 1;
            }
            times
        };
        assert!(times(true) < 20, "{}", times(true));
        assert_eq!(times(false), 96_000);
    }
}
