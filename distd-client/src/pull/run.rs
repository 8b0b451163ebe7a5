//! The order of a pull.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use distd_core::ManifestId;
use distd_core::manifest::{Manifest, Root};
use distd_core::names::Wanted;
use distd_core::planner::HeldIndex;
use distd_peer::net::Outbound;

use super::job::{Job, PATCH_FILES, REBUILT_FILE};
use super::kept::{is_block_device, keep_manifest, kept_manifest_path, read_kept_manifest, with_suffix};
use super::patches::{Aim, Files, Link, Offers, Rebuilt, rebuild};
use super::report::{BySource, Outcome};
use super::seeds::Seeds;
use super::wanted::Realm;
use crate::exit::{Code, Failure};
use crate::progress::Progress;
use crate::share::{Sharing, installed};

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
    /// What to save.
    pub(crate) aim: Aim,
    /// How to exchange with neighbours.
    pub(crate) sharing: Sharing,
    /// How to reach parents.
    pub(crate) outbound: Arc<Outbound>,
}

impl PullRequest {
    /// The same without an exchange: nothing is fetched that neighbours could have.
    pub(crate) fn unshared(mut self) -> Self {
        self.sharing = self.sharing.off();
        self
    }
}

pub(super) struct Prepared {
    pub(super) realm: Realm,
    pub(super) product: String,
    pub(super) version: String,
    pub(super) manifest: Manifest,
    pub(super) seeds: Arc<Seeds>,
    pub(super) index: Arc<HeldIndex>,
    pub(super) offers: Arc<Offers>,
    pub(super) link: Link,
    rebuilt: RebuiltCounts,
    metadata_bytes: u64,
    node_bytes: u64,
}

/// What was rebuilt before the manifest was known.
#[derive(Clone, Copy, Debug, Default)]
struct RebuiltCounts {
    patches: u64,
    patch_bytes: u64,
    bytes: u64,
}

pub(super) fn received(realm: &Realm) -> u64 {
    let (relay, origin) = realm.parents.readings();
    relay.bytes_in + origin.bytes_in + realm.neighbour_reading().bytes_in
}

/// Sets up to this length may bring their manifest too: where more changes, nodes are a small part of it. A guess.
const SMALL_SET: u64 = 4 << 20;

/// Learns all that is needed before a byte of the artifact moves. With `files`, a small set of patches is applied at once.
pub(super) async fn prepare(
    request: &PullRequest,
    extra_seed: Option<&Path>,
    files: Option<Files>,
) -> anyhow::Result<Prepared> {
    let realm = {
        let (parents, outbound) = (request.parents.clone(), request.outbound.clone());
        Realm::open(&request.data, parents, &request.sharing, outbound).await?
    };
    let resolved = realm.resolve(&request.wanted).await?;
    let metadata_bytes = received(&realm);
    let mut paths = request.seeds.clone();
    paths.extend(extra_seed.map(Path::to_owned));
    let data = request.data.clone();
    let root = Root::decode(&resolved.root_node)?;
    let opened = tokio::task::spawn_blocking(move || {
        let seeds = Seeds::open(&paths, &data)?;
        let index = seeds.index(root.cut)?;
        anyhow::Ok((Arc::new(seeds), Arc::new(index)))
    });
    let (mut seeds, mut index) = opened.await??;
    // Nodes of the manifest itself may be there from a pull that was interrupted.
    let part = read_part_manifest(request);
    let held_ids: Vec<ManifestId> = seeds.held_manifests().iter().map(|m| m.id()).collect();
    let route = Offers::route(&resolved.patches, &held_ids, resolved.manifest);
    let small = route.iter().map(|set| set.bytes).sum::<u64>() <= SMALL_SET && !route.is_empty();
    let known = part.as_ref().is_some_and(|part| part.id() == resolved.manifest);
    let asked = Instant::now();
    let mut rebuilt = None;
    let mut offers = Arc::new(Offers::default());
    if small
        && !known
        && let Some(files) = &files
    {
        offers = Arc::new(Offers::fetch(&realm, &route, request.aim).await);
        match rebuild(&realm, &resolved, &offers, &mut seeds, &mut index, files).await {
            Ok(done) => rebuilt = done,
            Err(error) => tracing::warn!(%error, "the manifest comes node by node"),
        }
    }
    let (manifest, rebuilt) = match rebuilt {
        Some(Rebuilt { manifest, patches, patch_bytes, bytes }) => {
            (manifest, RebuiltCounts { patches, patch_bytes, bytes })
        }
        None => {
            let mut held = seeds.held_manifests();
            held.extend(part.as_ref());
            let manifest = realm.manifest(&resolved, &held);
            let manifest = if offers.sets.is_empty() {
                // Side by side: neither needs the other.
                let (manifest, fetched) = tokio::join!(manifest, Offers::fetch(&realm, &route, request.aim));
                offers = Arc::new(fetched);
                manifest?
            } else {
                manifest.await?
            };
            (manifest, RebuiltCounts::default())
        }
    };
    let node_bytes = (received(&realm) - metadata_bytes).saturating_sub(rebuilt.patch_bytes);
    let link = Link::measured(node_bytes, asked.elapsed());
    Ok(Prepared {
        realm,
        product: resolved.product.to_string(),
        version: resolved.version.to_string(),
        manifest,
        seeds,
        index,
        offers,
        link,
        rebuilt,
        metadata_bytes,
        node_bytes,
    })
}

/// Files of a pull in progress, beside the target or in the state directory for a block device.
pub(super) fn state_path(request: &PullRequest, suffix: &str) -> PathBuf {
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

/// Pulls an artifact.
///
/// # Errors
/// A [`Failure`] with its exit code. What was verified stays and the same command goes on from there.
pub(crate) async fn pull(request: &PullRequest, progress: Arc<Progress>) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let device = is_block_device(&request.out);
    let out_seed = Some(request.out.as_path()).filter(|out| !device && out.exists());
    let files =
        Files { payloads: state_path(request, PATCH_FILES[0]), rebuilt: state_path(request, REBUILT_FILE) };
    let prepared = prepare(request, out_seed, Some(files)).await?;
    let Prepared { realm, product, version, manifest, seeds, index, offers, link, .. } = prepared;
    let Prepared { rebuilt, metadata_bytes, node_bytes, .. } = prepared;
    let manifest = Arc::new(manifest);
    let mut job = Job::open(request, &manifest, seeds, index, offers, link)?;
    let already_there = !device
        && request.out.exists()
        && read_kept_manifest(&request.out, &request.data).is_some_and(|m| m.id() == manifest.id());
    progress.begin(manifest.root().bytes, &format!("{product} {version}"));
    job.progress = progress.clone();
    job.share(&realm);
    let result = job.fill(&realm).await;
    job.write_journal_now()?;
    if result.is_err() {
        // So that neighbours do not wait for what will not come.
        realm.leave(&manifest.id(), Duration::ZERO).await;
    }
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
    if let Err(error) = installed::remember(&request.data, &request.out, manifest.id()) {
        tracing::warn!(%error, "the artifact will not be served to neighbours by an agent");
    }
    progress.end();
    let seconds = start.elapsed().as_secs_f64();
    realm.leave(&manifest.id(), request.sharing.linger).await;
    let transport = realm.parents.carriers();
    let (relay, origin) = realm.parents.readings();
    let peer = realm.neighbour_reading();
    let counts = *job.counts.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Outcome {
        product,
        version,
        artifact_bytes: manifest.root().bytes,
        held_bytes: manifest.root().bytes.saturating_sub(counts.placed_bytes + rebuilt.bytes),
        fetched_bytes: counts.fetched_bytes,
        wire_bytes: relay.bytes_in + origin.bytes_in + peer.bytes_in,
        wire_bytes_by_source: BySource {
            origin: origin.bytes_in,
            relay: relay.bytes_in,
            peer: peer.bytes_in,
            http: 0,
        },
        served_bytes: realm.served_bytes(),
        chunk_bytes: counts.chunk_bytes,
        patch_bytes: rebuilt.patch_bytes + job.patch_bytes(),
        patches_applied: rebuilt.patches + counts.patches_applied,
        patches_failed: counts.patches_failed,
        rebuilt_bytes: rebuilt.bytes + counts.rebuilt_bytes,
        metadata_bytes,
        node_bytes,
        refetched_verified_bytes: counts.repeated_bytes,
        duplicate_bytes: counts.duplicate_bytes,
        requests: relay.requests + origin.requests + peer.requests,
        round_trips: relay.round_trips + origin.round_trips,
        seconds,
        manifest: manifest.id(),
        blake3: manifest.root().blake3,
        resumed: job.resumed,
        already_there,
        transport,
    })
}
