//! The sequence of the steps of a pull.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use distd_core::error::Chain;
use distd_core::fleet::NodeStatement;
use distd_core::fleet::rollout::{Held, RolloutDoc, RolloutId, TurnAnswer};
use distd_core::manifest::{Kind, Manifest, Root};
use distd_core::names::Name;
use distd_core::planner::HeldIndex;
use distd_core::{ManifestId, Position};
use distd_peer::metrics::DurationsBy;
use distd_peer::request;
use distd_peer::trust::files;
use distd_peer::trust::tuf::{ChannelFiles, Chosen, Resolved};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::arriving::Arriving;
use super::downgrade::{self, PendingRelease, Refused, Step, When};
use super::job::Job;
use super::network::Network;
use super::patches::{Files, LinkRate, Offers, Rebuilt, rebuild};
use super::report::{BySource, Outcome};
use super::request::{BundleSource, Installed, PATCH_FILES, PullRequest, REBUILT_FILE};
use super::seeds::Seeds;
use super::wanted::{About, Session};
use super::{kept, ours, target, there};
use crate::failure::{Code, Failure, cause_of};
use crate::follow::failures;
use crate::progress::Progress;
use crate::share::installed;

pub(super) struct Prepared {
    pub(super) session: Session,
    pub(super) product: String,
    pub(super) version: String,
    pub(super) step: Step,
    pub(super) manifest: Manifest,
    pub(super) seeds: Arc<Seeds>,
    pub(super) index: Arc<HeldIndex>,
    pub(super) offers: Arc<Offers>,
    pub(super) link: LinkRate,
    rebuilt: RebuiltCounts,
    metadata_bytes: u64,
    node_bytes: u64,
}

/// Totals of the chunks that were rebuilt before the manifest was known.
#[derive(Clone, Copy, Debug, Default)]
struct RebuiltCounts {
    patches: u64,
    patch_bytes: u64,
    bytes: u64,
}

pub(super) fn received(network: &Network) -> u64 {
    let (relay, origin) = network.parents.readings();
    relay.bytes_in + origin.bytes_in + network.neighbour_reading().bytes_in
}

/// Largest size of patch sets that may also provide the manifest, in bytes. With larger changes,
/// manifest nodes are a small part of the transfer. A guess.
pub(super) const SMALL_SET: u64 = 4 << 20;

/// The realm, and the release that was resolved.
pub(super) struct Asked {
    session: Session,
    resolved: Resolved,
    step: Step,
    metadata_bytes: u64,
}

impl Asked {
    /// Returns the record of the release for the target of `request`.
    fn pending(&self, request: &PullRequest) -> PendingRelease {
        PendingRelease::new(&request.data, &request.out, &self.resolved, request.downgrade, self.step.clone())
    }
}

/// Checks the target and resolves the wanted release, and asks for this device's capabilities at
/// the same time; receives nothing else.
pub(super) async fn ask(request: &PullRequest) -> anyhow::Result<Asked> {
    let session = open(request).await?;
    let statement = session.statement(request).await;
    let asking = session.ask_capabilities(&request.wanted, statement.as_ref());
    let (resolved, ()) = tokio::join!(resolve(&session, request, statement.as_ref()), asking);
    let resolved = resolved?;
    let step = check(request, &resolved)?;
    let metadata_bytes = received(&session);
    Ok(Asked { session, resolved, step, metadata_bytes })
}

/// Checks the target and opens the connections to the realm.
pub(super) async fn open(request: &PullRequest) -> anyhow::Result<Session> {
    if let Some(target) = request.target.clone() {
        let data = request.data.clone();
        tokio::task::spawn_blocking(move || ours::check(&target, &data)).await??;
    }
    let (parents, outbound) = (request.parents.clone(), request.outbound.clone());
    match &request.bundle {
        Some(BundleSource { bundle, root: Some(root) }) => {
            Ok(Session::of_root(&request.data, parents, root, outbound)?.of_bundle(bundle.clone()))
        }
        from => {
            let (sharing, news) = (&request.sharing, request.news.clone());
            let session = Session::open(&request.data, parents, sharing, outbound, news).await?;
            Ok(match from {
                Some(source) => session.of_bundle(source.bundle.clone()),
                None => session,
            })
        }
    }
}

/// Resolves the wanted release.
async fn resolve(
    session: &Session,
    request: &PullRequest,
    statement: Option<&NodeStatement>,
) -> anyhow::Result<Resolved> {
    let installed = match &request.installed {
        Installed::Remembered => downgrade::installed(request),
        Installed::Is(version) => version.clone(),
    };
    let failed = failures::load(&request.data);
    let failures = |rollout: &RolloutDoc| {
        let passing = request.passing_failures.get(&rollout.id).copied().unwrap_or(0);
        failed.of(request.wanted.product(), &rollout.version).saturating_add(passing)
    };
    let about = About { statement, installed: installed.as_ref(), asks_for_turns: request.asks_for_turns };
    let resolved = session.resolve(&request.wanted, about, &failures).await?;
    if let Some(expected) = request.expected.as_ref().filter(|expected| **expected != resolved.version) {
        let error = anyhow!("{} is {} by now, not {expected}", request.wanted, resolved.version);
        return Err(Failure::new(Code::Conflict, error).next("run the same command again").into());
    }
    Ok(resolved)
}

/// Checks that the device may go on or back to a release.
fn check(request: &PullRequest, resolved: &Resolved) -> anyhow::Result<Step> {
    let out = request.target.as_ref().map(|target| target.path());
    let step = downgrade::check(&request.data, out, resolved, request.downgrade)?;
    if request.target.is_some() {
        target::check_kind(&request.out, &request.data, Root::decode(&resolved.root_node)?.kind)?;
    }
    Ok(step)
}

/// A release that a request leads to.
#[derive(Clone, Debug)]
pub struct Look {
    /// Version.
    pub version: Name,
    /// Manifest.
    pub manifest: ManifestId,
    /// Document of the channel's rollout, if the release is the one that it leads to.
    pub rollout: Option<RolloutDoc>,
    /// Document of the channel's rollout, if the release is the one that it leads to, or one that
    /// it requires before.
    pub led_by: Option<RolloutDoc>,
    /// Wave of this device in that rollout, from 0.
    pub wave: Option<usize>,
    /// Rollout of the channel, and the counter of the channel in that document.
    pub document: Option<(RolloutId, u64)>,
    /// Why the release is not that of the channel's rollout.
    pub held: Option<Held>,
    /// Version of the channel's rollout.
    pub rollout_version: Option<Name>,
    /// Whether the device has a later release and may not go back to this one.
    pub ahead: bool,
    /// Root node of the manifest.
    pub root: Root,
    /// Names and sums of the channel's files for other updaters, if a channel was asked for and it
    /// has some.
    pub files: Option<ChannelFiles>,
}

/// Resolves the release that `request` leads to, and fetches and writes nothing else.
///
/// # Errors
/// As [`pull`].
pub async fn look(request: &PullRequest) -> anyhow::Result<Look> {
    let session = open(request).await?;
    let statement = session.statement(request).await;
    let resolved = resolve(&session, request, statement.as_ref()).await;
    session.close().await;
    let resolved = resolved?;
    let ahead = match check(request, &resolved) {
        Ok(_) => false,
        Err(error) if cause_of::<Refused>(&error).is_some() => true,
        Err(error) => return Err(error),
    };
    let files = resolved.channel.as_ref().and_then(|doc| doc.files.clone());
    let document = resolved.channel.as_ref().and_then(|doc| Some((doc.rollout.as_ref()?.id, doc.counter)));
    let of_channel = resolved.channel.and_then(|doc| doc.rollout);
    let rollout_version = of_channel.as_ref().map(|doc| doc.version.clone());
    let led_by =
        of_channel.filter(|_| resolved.choice.held.is_none() && resolved.choice.release != Chosen::OfChannel);
    let labels = statement.as_ref().map(NodeStatement::for_selectors);
    let wave = led_by.as_ref().and_then(|doc| doc.wave(&session.node(), labels.as_ref()));
    Ok(Look {
        root: Root::decode(&resolved.root_node)?,
        files,
        document,
        wave,
        version: resolved.version,
        manifest: resolved.manifest,
        rollout: led_by.clone().filter(|_| resolved.choice.release == Chosen::OfRollout),
        led_by,
        held: resolved.choice.held,
        rollout_version,
        ahead,
    })
}

/// Asks the parents whether this device may begin the attempt `number` at a rollout now.
///
/// # Errors
/// Failures with [`Code::Network`] when no parent answers, with [`Code::Refused`] when the realm
/// gives no turn.
pub(crate) async fn ask_turn(
    request: &PullRequest,
    rollout: RolloutId,
    number: u32,
) -> anyhow::Result<TurnAnswer> {
    let session = open(request).await?;
    let answer = session.ask_turn(rollout, number).await;
    session.close().await;
    answer
}

/// Gets all that is needed before any byte of the artifact is transferred. With `files`, a small
/// patch set is applied at once.
pub(super) async fn prepare(
    request: &PullRequest,
    asked: Asked,
    files: Option<Files>,
) -> anyhow::Result<Prepared> {
    let Asked { session, resolved, step, metadata_bytes } = asked;
    if let Some(target) = &request.target {
        ours::check_directory_of(target)?;
    }
    let (paths, data) = (request.seeds.clone(), request.data.clone());
    let out = request.target.as_ref().map(|target| target.path().to_owned());
    let root = Root::decode(&resolved.root_node)?;
    let opened = tokio::task::spawn_blocking(move || {
        let seeds = Seeds::open(&paths, out.as_deref(), &data)?;
        let index = seeds.index(root.cut)?;
        anyhow::Ok((Arc::new(seeds), Arc::new(index)))
    });
    let (mut seeds, mut index) = opened.await??;
    // An interrupted pull may have left nodes of the same manifest.
    let part = request.target.as_ref().and_then(|to| kept::read_part_manifest(to.path(), &request.data));
    let held_ids: Vec<ManifestId> = seeds.held_releases().map(Manifest::id).collect();
    let known = seeds.held_manifests().into_iter().chain(part.as_ref());
    let known = known.filter(|manifest| manifest.id() == resolved.manifest).max_by_key(|_| 0).cloned();
    // If all chunks are held, no patches are needed.
    let all_held = known.as_ref().is_some_and(|manifest| {
        manifest.entries().all(|at| index.find(&at.entry.hash, at.entry.len).is_some())
    });
    let route = match all_held {
        true => Vec::new(),
        false => Offers::route(&resolved.patches, &held_ids, resolved.manifest),
    };
    let small = route.iter().map(|set| set.bytes).sum::<u64>() <= SMALL_SET && !route.is_empty();
    let asked = Instant::now();
    let mut rebuilt = None;
    let mut offers = Arc::new(Offers::default());
    // A bundle has the nodes.
    if small
        && known.is_none()
        && request.bundle.is_none()
        && let Some(files) = &files
    {
        offers = Arc::new(
            Offers::fetch(
                &session,
                &route,
                (request.aim, request.view_memory),
                request.bundle.as_ref().map(|source| &*source.bundle),
            )
            .await,
        );
        match rebuild(&session, &resolved, &offers, &mut seeds, &mut index, files).await {
            Ok(done) => rebuilt = done,
            Err(error) => {
                tracing::warn!(error = %Chain(error.as_ref()), "manifest not built from patches; fetching its nodes")
            }
        }
    }
    let (manifest, rebuilt) = match rebuilt {
        Some(Rebuilt { manifest, patches, patch_bytes, bytes }) => {
            (manifest, RebuiltCounts { patches, patch_bytes, bytes })
        }
        None => {
            let mut held = seeds.held_manifests();
            held.extend(part.as_ref());
            let manifest = async {
                match known {
                    Some(known) => Ok(known),
                    None => session.manifest(&resolved, &held).await,
                }
            };
            let manifest = if offers.sets.is_empty() {
                // Fetch both concurrently: neither needs the other.
                let (manifest, fetched) = tokio::join!(
                    manifest,
                    Offers::fetch(
                        &session,
                        &route,
                        (request.aim, request.view_memory),
                        request.bundle.as_ref().map(|source| &*source.bundle)
                    )
                );
                offers = Arc::new(fetched);
                manifest?
            } else {
                manifest.await?
            };
            (manifest, RebuiltCounts::default())
        }
    };
    let node_bytes = (received(&session) - metadata_bytes).saturating_sub(rebuilt.patch_bytes);
    let link = LinkRate::measured(node_bytes, asked.elapsed());
    Ok(Prepared {
        session,
        product: resolved.product.to_string(),
        version: resolved.version.to_string(),
        step,
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

/// Times that the pulls of this process took, by result: `done`, `already_there` or `failed`.
pub static PULL_SECONDS: LazyLock<DurationsBy> = LazyLock::new(DurationsBy::long);

/// Pulls an artifact.
///
/// # Errors
/// A [`Failure`] with its exit code. Verified chunks stay, and the same command continues from
/// there.
pub async fn pull(request: &PullRequest, progress: Arc<dyn Progress>) -> anyhow::Result<Outcome> {
    pull_watched(request, progress, &|_| {}).await
}

/// As [`pull`]; `began` gets the artifact of a file as soon as its bytes begin to arrive.
///
/// # Errors
/// As [`pull`].
pub async fn pull_watched(
    request: &PullRequest,
    progress: Arc<dyn Progress>,
    began: &(dyn Fn(Arc<Arriving>) + Send + Sync),
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let id = request::fresh();
    let span = tracing::info_span!("pull", request = %id);
    let pulled = request::under(id, pull_measured(request, progress, began, start)).instrument(span).await;
    let result = match &pulled {
        Ok(outcome) if outcome.already_there => "already_there",
        Ok(_) => "done",
        Err(_) => "failed",
    };
    PULL_SECONDS.observe(&vec![("result", result.into())], start.elapsed());
    pulled
}

async fn pull_measured(
    request: &PullRequest,
    progress: Arc<dyn Progress>,
    began: &(dyn Fn(Arc<Arriving>) + Send + Sync),
    start: Instant,
) -> anyhow::Result<Outcome> {
    let asked = ask(request).await?;
    progress.phase("checking what is in place");
    if let Some(manifest) = there::find(request, asked.resolved.manifest).await? {
        return already_there(request, asked, &manifest, start).await;
    }
    ours::check_directory_of(request.target.as_ref().context("a pull has a target")?)?;
    let place = request.place();
    let files = Files { payloads: place.state_path(PATCH_FILES[0]), rebuilt: place.state_path(REBUILT_FILE) };
    if let Some(dir) = files.payloads.parent() {
        files::create_private_dir(dir)?;
    }
    let pending = asked.pending(request);
    let prepared = prepare(request, asked, Some(files)).await?;
    let Prepared { session, product, version, step, manifest, seeds, index, offers, link, .. } = prepared;
    let Prepared { rebuilt, metadata_bytes, node_bytes, .. } = prepared;
    let manifest = Arc::new(manifest);
    let mut job = Job::open(place, &manifest, seeds, index, offers, link)?;
    progress.begin(manifest.root().bytes, &format!("{product} {version}"));
    job.progress = progress.clone();
    job.share(&session);
    let (arriving, urgent) = job.arriving();
    if matches!(manifest.root().kind, Kind::File) {
        began(Arc::new(arriving));
    }
    let job = fill_and_check(job, &session, urgent, &request.out).await?;
    let (finishing, placing) = (job.clone(), pending.clone());
    let in_place = tokio::task::spawn_blocking(move || {
        placing.remember(When::Before)?;
        finishing.target.finish()
    });
    let in_place = in_place.await??;
    let again = "run the same command again: the artifact is in place";
    kept::keep_part_manifest(&request.out, &request.data)
        .map_err(|error| Failure::from(error).next(again))?;
    remember_placed(pending).await?;
    job.clean_up();
    remember(request, manifest.id());
    progress.end();
    let seconds = start.elapsed().as_secs_f64();
    session.leave(&manifest.id(), request.sharing.linger).await;
    let counts = *job.counts.lock().unwrap_or_else(PoisonError::into_inner);
    let artifact_bytes = manifest.root().bytes;
    Ok(Outcome {
        held_bytes: artifact_bytes.saturating_sub(counts.placed_bytes + rebuilt.bytes),
        fetched_bytes: counts.fetched_bytes,
        chunk_bytes: counts.chunk_bytes,
        patch_bytes: rebuilt.patch_bytes + job.patch_bytes(),
        patches_applied: rebuilt.patches + counts.patches_applied,
        patches_failed: counts.patches_failed,
        rebuilt_bytes: rebuilt.bytes + counts.rebuilt_bytes,
        node_bytes,
        refetched_verified_bytes: counts.repeated_bytes,
        duplicate_bytes: counts.duplicate_bytes,
        resumed: job.resumed,
        already_there: false,
        left_out: in_place.left_out.counts().clone(),
        found: in_place.found,
        ..nothing_moved(&session, product, version, &step, &manifest, metadata_bytes, seconds)
    })
}

/// Fetches all that the target lacks, and checks the whole artifact on its medium.
///
/// # Errors
/// A [`Failure`] with its exit code. Verified chunks stay.
pub(super) async fn fill_and_check(
    job: Job,
    network: &Network,
    urgent: mpsc::Receiver<Position>,
    out: &Path,
) -> anyhow::Result<Arc<Job>> {
    let result = tokio::select! {
        result = job.fill(network) => result,
        never = job.bring_urgent(network, urgent) => match never {},
    };
    job.write_journal_now()?;
    if result.is_err() {
        // Tell neighbours that this device is gone, so that they do not wait for chunks that will
        // not come.
        network.leave(&job.id(), Duration::ZERO).await;
    }
    result?;
    job.progress.phase("checking");
    let job = Arc::new(job);
    let checking = job.clone();
    let mut wrong = tokio::task::spawn_blocking(move || checking.check()).await??;
    if wrong {
        // Either the medium lost written data, or the journal described an earlier target. Find the
        // wrong chunks and fetch them again, once.
        tracing::warn!("the artifact does not match as a whole; every chunk is checked again");
        let again = job.clone();
        tokio::task::spawn_blocking(move || again.forget_wrong()).await?;
        job.fill(network).await?;
        let checking = job.clone();
        wrong = tokio::task::spawn_blocking(move || checking.check()).await??;
    }
    if wrong {
        let error = anyhow!("{} does not hold the artifact after it was written", out.display());
        let next = "the medium may be failing: check it, then use another one";
        return Err(Failure::new(Code::Integrity, error).next(next).into());
    }
    Ok(job)
}

/// Records a release that is in place.
async fn remember_placed(pending: PendingRelease) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || pending.remember(When::After)).await?
}

/// Registers the artifact for an agent to serve.
fn remember(request: &PullRequest, manifest: ManifestId) {
    let is_known = |known: &installed::Installed| known.path == request.out && known.manifest == manifest;
    if installed::list(&request.data).iter().any(is_known) {
        return;
    }
    if let Err(error) = installed::remember(&request.data, &request.out, manifest) {
        tracing::warn!(error = %Chain(&error), "the artifact will not be served to neighbours by an agent");
    }
}

/// Ends a pull that had nothing to do.
async fn already_there(
    request: &PullRequest,
    asked: Asked,
    manifest: &Manifest,
    start: Instant,
) -> anyhow::Result<Outcome> {
    remember_placed(asked.pending(request)).await?;
    let Asked { session, resolved, step, metadata_bytes } = asked;
    remember(request, manifest.id());
    session.leave(&manifest.id(), Duration::ZERO).await;
    let seconds = start.elapsed().as_secs_f64();
    let (product, version) = (resolved.product.to_string(), resolved.version.to_string());
    Ok(nothing_moved(&session, product, version, &step, manifest, metadata_bytes, seconds))
}

/// Returns the outcome of a pull for which everything was in place, with the current counters of
/// the realm's connections.
fn nothing_moved(
    session: &Session,
    product: String,
    version: String,
    step: &Step,
    manifest: &Manifest,
    metadata_bytes: u64,
    seconds: f64,
) -> Outcome {
    let (relay, origin) = session.parents.readings();
    let peer = session.neighbour_reading();
    Outcome {
        product,
        version,
        downgraded_from: step.back_from(),
        artifact_bytes: manifest.root().bytes,
        held_bytes: manifest.root().bytes,
        fetched_bytes: 0,
        wire_bytes: relay.bytes_in + origin.bytes_in + peer.bytes_in,
        wire_bytes_by_source: BySource {
            origin: origin.bytes_in,
            relay: relay.bytes_in,
            peer: peer.bytes_in,
            http: 0,
        },
        served_bytes: session.served_bytes(),
        chunk_bytes: 0,
        patch_bytes: 0,
        patches_applied: 0,
        patches_failed: 0,
        rebuilt_bytes: 0,
        metadata_bytes,
        node_bytes: 0,
        refetched_verified_bytes: 0,
        duplicate_bytes: 0,
        requests: relay.requests + origin.requests + peer.requests,
        round_trips: relay.round_trips + origin.round_trips,
        seconds,
        manifest: manifest.id(),
        blake3: manifest.root().blake3,
        resumed: false,
        already_there: true,
        left_out: BTreeMap::new(),
        found: None,
        transport: session.parents.carriers(),
    }
}
