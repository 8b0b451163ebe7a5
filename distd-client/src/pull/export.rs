//! Export: fetches what a pull would fetch, and writes it into a bundle in place of an artifact.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::NodeHash;
use distd_core::api::BundleMetadata;
use distd_core::fleet::rollout::RolloutState;
use distd_core::manifest::{Entry, Kind, Manifest};
use distd_core::names::{Name, Wanted, patches_target, release_target};
use distd_core::packing::{PackedChunk, Unpacker};
use distd_core::planner::{self, HeldIndex};
use distd_core::proto::frame::{Data, Node, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_peer::bundle::{Bundle, BundleWriter, Head, MAGIC, Release};
use distd_peer::clock::unix_now;
use distd_peer::driver::{ChunkSink, FetchError, SinkError};
use distd_peer::filesystem;
use distd_peer::serve::answer_nodes;
use distd_peer::table::ChunkTable;
use distd_peer::trust::tuf::wire::{Answer, Query, ROOTS_PER_ANSWER, role_file, target_of};
use distd_peer::trust::tuf::{ChannelDoc, Choice, Chosen, Resolved};
use serde::Serialize;

use super::bundles::timestamp_ends;
use super::entries::ZeroChunk;
use super::job::not_fetched;
use super::patches::{Aim, LinkRate, Offers, Set};
use super::request::PullRequest;
use super::run::{SMALL_SET, received};
use super::wanted::Session;
use crate::failure::{Code, Failure};
use crate::progress::Progress;

/// Suffix of a bundle that is being written, and of what an interrupted export left.
const PART: &str = ".distd-bundle-part";
const PART_BEFORE: &str = ".distd-bundle-part-before";

/// Rounds of questions for root metadata: [`ROOTS_PER_ANSWER`] roots each.
const ROOT_ROUNDS: usize = 16;

/// A request to export a release.
pub struct ExportRequest {
    /// The release or channel, the parents and the settings. Target and seeds are not used.
    pub pull: PullRequest,
    /// Version whose bytes the readers of the bundle have.
    pub since: Option<Name>,
    /// Path of the bundle; `None`: standard output.
    pub out: Option<PathBuf>,
    /// Whether a file at the path is replaced.
    pub replace: bool,
    /// Whoever has metadata signed that is valid for longer than that which devices poll.
    pub longer: Option<Arc<dyn SignForBundle>>,
}

/// Asks the origin for metadata that is valid for longer.
#[async_trait]
pub trait SignForBundle: Send + Sync {
    /// Returns it for a bundle with this release.
    ///
    /// # Errors
    /// The origin's refusal, or that of the way there.
    async fn sign(&self, product: &Name, version: &Name) -> anyhow::Result<BundleMetadata>;
}

/// Result of an export.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// Product.
    pub product: Name,
    /// Version.
    pub version: Name,
    /// Version whose bytes the readers must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Name>,
    /// Length of the bundle, bytes.
    pub bundle_bytes: u64,
    /// Chunks of the release in the bundle.
    pub chunks: u64,
    /// Patches in the bundle.
    pub patches: u64,
    /// Chunks and patches that an interrupted export had left.
    pub kept: u64,
    /// Bytes received.
    pub wire_bytes: u64,
    /// Time from which the metadata in the bundle is refused, unix seconds.
    pub valid_until: u64,
    /// Seconds that the export took.
    pub seconds: f64,
}

/// Place that a bundle is written to.
type Out = BufWriter<Box<dyn Write + Send>>;

/// Exports a release into a bundle.
///
/// # Errors
/// A [`Failure`] with its exit code. What was fetched into a file stays, and the same command
/// continues from there.
pub async fn export(request: &ExportRequest, progress: Arc<dyn Progress>) -> anyhow::Result<Exported> {
    let start = Instant::now();
    if let Some(out) = &request.out {
        check_target(out, request.replace)?;
    }
    let session = super::run::open(&request.pull).await?;
    let exported = export_by(&session, request, &*progress).await;
    session.close().await;
    let mut exported = exported?;
    exported.wire_bytes = received(&session);
    exported.seconds = start.elapsed().as_secs_f64();
    progress.end();
    Ok(exported)
}

fn check_target(out: &Path, replace: bool) -> anyhow::Result<()> {
    if fs::symlink_metadata(out).is_ok_and(|meta| !replace || !meta.is_file()) {
        let error = anyhow!("{} exists", out.display());
        let next = "choose another path, or replace a file with --force";
        return Err(Failure::new(Code::Usage, error).next(next).into());
    }
    Ok(())
}

async fn export_by(
    session: &Session,
    request: &ExportRequest,
    progress: &dyn Progress,
) -> anyhow::Result<Exported> {
    let ExportRequest { pull, since, .. } = request;
    let product = pull.wanted.product().clone();
    let since_wanted = since.clone().map(|version| Wanted::Release { product: product.clone(), version });
    let targets: Vec<String> =
        [&pull.wanted].into_iter().chain(&since_wanted).map(Wanted::target_name).collect();
    session.parents.ask_capabilities(Vec::new(), targets.clone()).await;
    // The channel's release after its rollout, if one is under way: devices obey the rollout.
    let choose = |doc: &ChannelDoc| match &doc.rollout {
        Some(rollout) if rollout.state == RolloutState::Open => {
            Choice { release: Chosen::OfRollout, held: None }
        }
        _ => Choice::default(),
    };
    let resolved = session.resolve_signed(&pull.wanted, &targets[1..], &choose).await?;
    let before = match &since_wanted {
        Some(wanted) => Some(session.resolve_signed(wanted, &[], &choose).await?),
        None => None,
    };
    let before_manifest = match &before {
        Some(resolved) => Some(session.manifest(resolved, &[]).await?),
        None => None,
    };
    let held: Vec<&Manifest> = before_manifest.iter().collect();
    let manifest = session.manifest(&resolved, &held).await?;
    let plan = Plan::make(session, pull, &resolved, manifest, before_manifest).await?;
    let (metadata, longer) = all_metadata(session, request, &resolved).await?;
    check_metadata(&metadata, &pull.wanted, &resolved, &choose)?;
    let head = Head {
        product: product.clone(),
        channel: match &pull.wanted {
            Wanted::Channel { channel, .. } => Some(channel.clone()),
            Wanted::Release { .. } => None,
        },
        release: Release { version: resolved.version.clone(), manifest: resolved.manifest },
        bytes: plan.manifest.root().bytes,
        since: before.map(|resolved| Release { version: resolved.version, manifest: resolved.manifest }),
        view_memory: pull.view_memory,
        made: unix_now(),
    };
    let valid_until =
        timestamp_ends(&metadata).context("the metadata has no timestamp").map_err(Failure::refused)?;
    let swarms = plan.swarms().await;
    progress.begin(swarms.iter().map(SwarmPlan::raw_bytes).sum(), &format!("{product} {}", resolved.version));
    let out = request.out.clone();
    let left = match out.clone() {
        Some(out) => tokio::task::spawn_blocking(move || set_aside(&out)).await?.map_err(local)?,
        None => None,
    };
    let writer = open_out(out.as_deref()).and_then(|to| BundleWriter::new(to, &head)).map_err(local)?;
    let sink = Arc::new(BundleSink::new(writer));
    sink.with(|writer| writer.metadata(&metadata)).map_err(local)?;
    let ids: Vec<ManifestId> = swarms.iter().map(|swarm| swarm.manifest.id()).collect();
    // The longer one first: a reader without a choice takes the first.
    for capability in longer.into_iter().chain(session.parents.capabilities().of_any(&ids)) {
        sink.with(|writer| writer.capability(&capability)).map_err(local)?;
    }
    let mut exported = Exported {
        product,
        version: resolved.version,
        since: since.clone(),
        bundle_bytes: 0,
        chunks: plan.chunks.len(),
        patches: plan.patches,
        kept: 0,
        wire_bytes: 0,
        valid_until,
        seconds: 0.0,
    };
    for swarm in swarms {
        exported.kept += write_swarm(session, &sink, swarm, left.as_deref(), progress).await?;
    }
    exported.bundle_bytes = finish(sink, out).await.map_err(local)?;
    Ok(exported)
}

fn local(error: io::Error) -> anyhow::Error {
    let error = anyhow::Error::new(error).context("could not write the bundle");
    let next = "free some space or check the medium, then run the same command again: it resumes";
    Failure::new(Code::Local, error).next(next).into()
}

/// Chunks and patches that go into a bundle.
struct Plan {
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    before: Option<Arc<Manifest>>,
    offers: Offers,
    /// Chunks of the release.
    chunks: ChunkRanges,
    /// Chunks of each patch set, without those of its index.
    payloads: Vec<ChunkRanges>,
    /// Patches that were chosen.
    patches: u64,
}

/// A manifest, and the part of its swarm that goes into a bundle.
struct SwarmPlan {
    manifest: Arc<Manifest>,
    table: Arc<ChunkTable>,
    nodes: Vec<Node>,
    chunks: ChunkRanges,
}

impl SwarmPlan {
    /// Bytes of the chunks, unpacked.
    fn raw_bytes(&self) -> u64 {
        raw_bytes(&self.table, &self.chunks)
    }
}

fn raw_bytes(table: &ChunkTable, chunks: &ChunkRanges) -> u64 {
    chunks.ids().filter_map(|id| table.get(id)).map(|entry| u64::from(entry.len)).sum()
}

impl Plan {
    async fn make(
        session: &Session,
        pull: &PullRequest,
        resolved: &Resolved,
        manifest: Manifest,
        before: Option<Manifest>,
    ) -> anyhow::Result<Self> {
        let zero = ZeroChunk::new(manifest.root().cut.max());
        let mut index = HeldIndex::new();
        let mut offers = Offers::default();
        if let Some(before) = &before {
            index.insert_manifest(0, before);
            // A set from nothing would be no help to a device that has the earlier release.
            let known: Vec<_> =
                resolved.patches.iter().filter(|set| set.from != ManifestId::NOTHING).copied().collect();
            let route = Offers::route(&known, &[before.id()], manifest.id());
            offers = Offers::fetch(session, &route, (Aim::Bytes, pull.view_memory), None).await;
        }
        index.finish();
        let plan = planner::plan(&manifest, FetchConfig::default().batch_chunks, |at| {
            zero.is(at) || index.find(&at.entry.hash, at.entry.len).is_some()
        });
        let mut this = Self {
            table: Arc::new(ChunkTable::of(&manifest)),
            manifest: Arc::new(manifest),
            before: before.map(Arc::new),
            chunks: plan.fetch,
            payloads: Vec::new(),
            patches: 0,
            offers,
        };
        if !this.offers.sets.is_empty() {
            let before: Vec<&Manifest> = this.before.as_deref().into_iter().collect();
            let missing = (&this.table, &this.chunks);
            let choice = this.offers.choose_before(missing, (&before, &index), LinkRate::unknown());
            // A device makes the manifest from a small set, and needs all of it.
            let small =
                this.offers.sets.iter().map(|set| set.manifest.root().bytes).sum::<u64>() <= SMALL_SET;
            let all = |set: &Set| set.manifest.entries().map(|at| at.entry.id).collect();
            this.payloads = match small {
                true => this.offers.sets.iter().map(all).collect(),
                false => vec![ChunkRanges::default(); this.offers.sets.len()],
            };
            for at in &choice.patches {
                this.payloads[at.set].insert(this.offers.sets[at.set].payloads[at.patch].id);
            }
            this.patches = choice.patches.len() as u64;
            this.chunks = choice.chunks.iter().copied().collect();
            if choice.patches.is_empty() {
                this.payloads.clear();
            }
        }
        Ok(this)
    }

    /// Swarms of the bundle, that of the release first.
    async fn swarms(&self) -> Vec<SwarmPlan> {
        let before = self.before.clone();
        let find = |id: ManifestId| std::future::ready(before.clone().filter(|before| before.id() == id));
        let request = NodeRequest {
            held: self.before.iter().map(|before| before.id()).collect(),
            hashes: vec![NodeHash(self.manifest.id().0)],
        };
        let nodes = answer_nodes(&self.manifest, &request, find).await.nodes;
        let (manifest, table) = (self.manifest.clone(), self.table.clone());
        let mut swarms = vec![SwarmPlan { manifest, table, nodes, chunks: self.chunks.clone() }];
        for (set, payloads) in self.offers.sets.iter().zip(&self.payloads) {
            if payloads.is_empty() {
                continue;
            }
            let request = NodeRequest { held: Vec::new(), hashes: vec![NodeHash(set.manifest.id().0)] };
            let nodes = answer_nodes(&set.manifest, &request, |_| std::future::ready(None)).await.nodes;
            let mut chunks = index_chunks(set);
            chunks.extend(payloads);
            let table = Arc::new(ChunkTable::of(&set.manifest));
            swarms.push(SwarmPlan { manifest: set.manifest.clone(), table, nodes, chunks });
        }
        swarms
    }
}

/// Chunks of a set's index.
fn index_chunks(set: &Set) -> ChunkRanges {
    let Kind::PatchSet { index_bytes } = set.manifest.root().kind else { return ChunkRanges::default() };
    set.manifest.entries().take_while(|at| at.offset < index_bytes).map(|at| at.entry.id).collect()
}

/// Signed metadata: files by their names in the repository.
type MetadataFiles = Vec<(String, Bytes)>;

/// Fetches all signed metadata that a device without any needs for the release: the roots after the
/// first one, and what leads to the targets.
async fn fetch_metadata(
    session: &Session,
    wanted: &Wanted,
    resolved: &Resolved,
) -> anyhow::Result<MetadataFiles> {
    let product = wanted.product();
    let release = Wanted::Release { product: product.clone(), version: resolved.version.clone() };
    let mut targets = vec![wanted.target_name(), release.target_name(), patches_target(product)];
    targets.dedup();
    let mut question = Query { root: 1, latest: true, on_path: true, targets, ..Query::default() };
    let mut files = Vec::new();
    for _ in 0..ROOT_ROUNDS {
        let link = session.parents.any_link().await;
        let asking = async { Ok::<_, anyhow::Error>(link?.metadata(question.encode().into()).await?) };
        let answer = asking.await.map_err(|error| Failure::new(Code::Network, error))?;
        let answer = Answer::decode(&answer).map_err(|error| Failure::refused(error.into()))?;
        files.extend(answer.files);
        let roles = files.iter().filter_map(|(name, _)| role_file(name));
        match roles.filter(|(role, _)| *role == "root").map(|(_, version)| version).max() {
            Some(newest) if newest >= question.root + ROOTS_PER_ANSWER => {
                question = Query { root: newest, ..Query::default() };
            }
            _ => break,
        }
    }
    Ok(files)
}

/// Times that longer metadata is signed again because something was published meanwhile.
const LONGER_TRIES: u32 = 3;

/// Fetches the metadata for a bundle, and has a part of it signed for longer, if that is wanted.
/// Returns also the longer capability.
async fn all_metadata(
    session: &Session,
    request: &ExportRequest,
    resolved: &Resolved,
) -> anyhow::Result<(MetadataFiles, Option<Bytes>)> {
    let wanted = &request.pull.wanted;
    let Some(longer) = &request.longer else {
        return Ok((fetch_metadata(session, wanted, resolved).await?, None));
    };
    for _ in 0..LONGER_TRIES {
        let signed = longer.sign(wanted.product(), &resolved.version).await?;
        let files = fetch_metadata(session, wanted, resolved).await?;
        let (dated, mut files): (Vec<_>, Vec<_>) = files.into_iter().partition(|(name, _)| is_dated(name));
        let fetched = dated.iter().find(|(name, _)| name.ends_with(".snapshot.json"));
        // The roles that were fetched have whatever was published in between.
        if fetched.is_none_or(|(_, bytes)| listed(bytes) != listed(signed.snapshot.as_bytes())) {
            continue;
        }
        files.push((signed.snapshot_name, signed.snapshot.into()));
        files.push(("timestamp.json".to_owned(), signed.timestamp.into()));
        let capability = hex::decode(&signed.capability).map_err(|error| Failure::refused(error.into()))?;
        return Ok((files, Some(capability.into())));
    }
    let error = anyhow!("something was published each time that metadata was signed");
    Err(Failure::new(Code::Conflict, error).next("run the same command again").into())
}

/// Checks that the metadata still leads to the release that was planned: a channel may have moved
/// meanwhile.
fn check_metadata(
    files: &[(String, Bytes)],
    wanted: &Wanted,
    resolved: &Resolved,
    choose: &(dyn Fn(&ChannelDoc) -> Choice + Send + Sync),
) -> anyhow::Result<()> {
    let target = |name: &str| {
        files.iter().find(|(path, _)| target_of(path).as_deref() == Some(name)).map(|(_, bytes)| bytes)
    };
    let leads_there = match wanted {
        Wanted::Release { .. } => true,
        Wanted::Channel { .. } => target(&wanted.target_name())
            .and_then(|bytes| serde_json::from_slice::<ChannelDoc>(bytes).ok())
            .is_some_and(|doc| {
                let of_rollout = doc.rollout.as_ref().map(|rollout| &rollout.version);
                let version = match choose(&doc).release {
                    Chosen::OfRollout => of_rollout.unwrap_or(&doc.version),
                    _ => &doc.version,
                };
                *version == resolved.version
            }),
    };
    let release = release_target(wanted.product(), &resolved.version);
    if leads_there && target(&release).is_some_and(|root| *root == resolved.root_node) {
        return Ok(());
    }
    let error = anyhow!("the channel or the release changed meanwhile");
    Err(Failure::new(Code::Conflict, error).next("run the same command again").into())
}

/// Whether the file is one of those that are signed again often.
fn is_dated(name: &str) -> bool {
    name == "timestamp.json" || name.ends_with(".snapshot.json")
}

/// Roles that a snapshot lists; `None` if it is none.
fn listed(snapshot: &[u8]) -> Option<serde_json::Value> {
    let mut json: serde_json::Value = serde_json::from_slice(snapshot).ok()?;
    Some(json.get_mut("signed")?.get_mut("meta")?.take())
}

fn with_suffix(out: &Path, suffix: &str) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Moves what an interrupted export left out of the way. Returns the file that may hold chunks.
fn set_aside(out: &Path) -> io::Result<Option<PathBuf>> {
    let (part, before) = (with_suffix(out, PART), with_suffix(out, PART_BEFORE));
    for path in [&part, &before] {
        check_ours(path)?;
    }
    let len = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
    // When both are there, an export was interrupted while it copied from the older one, which
    // holds more until it is copied.
    if len(&part) > len(&before) {
        fs::rename(&part, &before)?;
    }
    Ok(len(&before).map(|_| before))
}

/// Checks that a file which an export replaces is one that an export left, and that no other one
/// writes it now.
fn check_ours(path: &Path) -> io::Result<()> {
    let foreign = || io::Error::other(format!("{} is no part of a bundle: move it away", path.display()));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(foreign()),
        Err(error) => return Err(error),
    }
    let file = File::open(path)?;
    if file.try_lock().is_err() {
        return Err(io::Error::other(format!("another export writes {}", path.display())));
    }
    let mut begins = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut begins)?;
    if MAGIC.starts_with(&begins) { Ok(()) } else { Err(foreign()) }
}

fn open_out(out: Option<&Path>) -> io::Result<Out> {
    let to: Box<dyn Write + Send> = match out {
        Some(out) => {
            let part = with_suffix(out, PART);
            // Checked to be an export's own.
            match fs::remove_file(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = OpenOptions::new().write(true).create_new(true).open(&part)?;
            // For as long as it is written; a file system without locks has one exporter at a time.
            let _ = file.try_lock();
            Box::new(file)
        }
        None => Box::new(io::stdout()),
    };
    Ok(BufWriter::with_capacity(1 << 20, to))
}

/// Makes the bundle durable and puts it in place. Returns its length in bytes.
async fn finish(sink: Arc<BundleSink>, out: Option<PathBuf>) -> io::Result<u64> {
    let writer = sink.take().ok_or_else(|| io::Error::other("the bundle is still being written"))?;
    let finishing = move || {
        let (to, bytes) = writer.finish()?;
        if let Some(out) = out {
            let part = with_suffix(&out, PART);
            File::open(&part)?.sync_all()?;
            filesystem::rename(&part, &out)?;
            drop(to);
            match fs::remove_file(with_suffix(&out, PART_BEFORE)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(bytes)
    };
    tokio::task::spawn_blocking(finishing).await.map_err(io::Error::other)?
}

/// Writes one swarm: first what an interrupted export left of it, then what is fetched. Returns how
/// many chunks were left.
async fn write_swarm(
    session: &Session,
    sink: &Arc<BundleSink>,
    swarm: SwarmPlan,
    left: Option<&Path>,
    progress: &dyn Progress,
) -> anyhow::Result<u64> {
    let SwarmPlan { manifest, table, nodes, chunks } = swarm;
    let id = manifest.id();
    sink.with(|writer| {
        writer.swarm(id)?;
        nodes.iter().try_for_each(|node| writer.node(node))
    })
    .map_err(local)?;
    sink.begin(chunks);
    let (salvaging, from, known) = (sink.clone(), left.map(Path::to_owned), table.clone());
    let salvage = tokio::task::spawn_blocking(move || {
        let mut unpacker = Unpacker::default();
        let mut kept = 0;
        if let Some(path) = from {
            Bundle::salvage(&path, |manifest, chunk| {
                let entry = known.get(chunk.id).filter(|_| manifest == id);
                let is_right = |entry: &Entry| {
                    unpacker.unpack(chunk.codec, &chunk.bytes, entry.len, &entry.hash).is_ok()
                };
                if entry.as_ref().is_some_and(is_right) && salvaging.add(&chunk)? {
                    kept += 1;
                }
                Ok(())
            })
            .map_err(io::Error::other)?;
        }
        Ok::<u64, io::Error>(kept)
    });
    let kept = salvage.await?.map_err(local)?;
    let wanted = sink.open();
    if !wanted.is_empty() {
        let fetching = session.fetch(id, table.clone(), sink.clone(), wanted.clone(), None);
        fetching.await.map_err(|error| match error {
            FetchError::Sink(_) => local(io::Error::other(error)),
            error => not_fetched(session, error),
        })?;
    }
    if !sink.open().is_empty() {
        return Err(local(io::Error::other("chunks that were fetched are not in the bundle")));
    }
    progress.add(raw_bytes(&table, &wanted));
    Ok(kept)
}

/// Sink of fetched chunks that writes them into a bundle.
struct BundleSink(Mutex<SinkState>);

struct SinkState {
    writer: Option<BundleWriter<Out>>,
    /// Chunks of the current swarm that are not written yet.
    open: ChunkRanges,
}

impl BundleSink {
    fn new(writer: BundleWriter<Out>) -> Self {
        Self(Mutex::new(SinkState { writer: Some(writer), open: ChunkRanges::default() }))
    }

    fn state(&self) -> MutexGuard<'_, SinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, work: impl FnOnce(&mut BundleWriter<Out>) -> io::Result<()>) -> io::Result<()> {
        self.state().writer.as_mut().map_or_else(|| Err(io::Error::other("the bundle has ended")), work)
    }

    fn take(&self) -> Option<BundleWriter<Out>> {
        self.state().writer.take()
    }

    /// Begins a swarm of which these chunks go into the bundle.
    fn begin(&self, chunks: ChunkRanges) {
        self.state().open = chunks;
    }

    fn open(&self) -> ChunkRanges {
        self.state().open.clone()
    }

    /// Writes a chunk, unless it is written or not of the bundle; returns whether it was written.
    fn add(&self, chunk: &Data) -> io::Result<bool> {
        let mut state = self.state();
        if !state.open.contains(chunk.id) {
            return Ok(false);
        }
        state.writer.as_mut().ok_or_else(|| io::Error::other("the bundle has ended"))?.chunk(chunk)?;
        state.open.remove(chunk.id);
        Ok(true)
    }
}

impl ChunkSink for BundleSink {
    fn accept(&self, entry: &Entry, packed: &PackedChunk, _: &[u8]) -> Result<(), SinkError> {
        let chunk = Data { id: entry.id, codec: packed.codec, bytes: packed.bytes.clone() };
        self.add(&chunk).map(drop).map_err(|error| SinkError(error.into()))
    }
}
