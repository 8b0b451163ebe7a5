//! A fetch: gets the artifact of a ticket, without a realm (docs/tickets.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bytes::Bytes;
use distd_core::cut::ReadAt as _;
use distd_core::error::Chain;
use distd_core::manifest::{Kind, Manifest};
use distd_core::ticket::SignedTicket;
use distd_core::{ArtifactHash, ManifestId};
use distd_peer::tickets::COMPLETED;
use serde::Serialize;

use super::access::{TicketAccess, check_manifest, check_ticket, failed, join, shut_out, withdrawn};
use super::job::Job;
use super::left_out::Count;
use super::network::Network;
use super::patches::{LinkRate, Offers};
use super::request::Place;
use super::run::fill_and_check;
use super::seeds::Seeds;
use super::{kept, ours, target};
use crate::cutting::Source;
use crate::disk::path::{ArtifactPath, Standing};
use crate::failure::{Code, Failure};
use crate::local::hash_reader;
use crate::progress::Progress;

/// Time for which the sharer may take the word that the artifact is complete.
const SAY_COMPLETED: Duration = Duration::from_secs(2);

/// A request to fetch the artifact of a ticket.
pub struct FetchRequest {
    /// The ticket, and the way to its sharer.
    pub access: TicketAccess,
    /// Where the artifact goes.
    pub target: ArtifactPath,
    /// Whether an existing file is replaced.
    pub force: bool,
    /// Paths of earlier artifacts.
    pub seeds: Vec<PathBuf>,
}

/// Result of a fetch; the one object that `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Fetched {
    path: PathBuf,
    artifact_bytes: u64,
    held_bytes: u64,
    fetched_bytes: u64,
    wire_bytes: u64,
    sharer_bytes: u64,
    peer_bytes: u64,
    served_bytes: u64,
    refetched_verified_bytes: u64,
    duplicate_bytes: u64,
    seconds: f64,
    manifest: ManifestId,
    blake3: ArtifactHash,
    resumed: bool,
    already_there: bool,
    left_out: BTreeMap<String, Count>,
}

impl Fetched {
    /// Returns the result as text for people.
    pub fn summary(&self) -> String {
        let state = if self.already_there { "already there" } else { "in place" };
        format!(
            "{} {state}: {} bytes, {} held, {} received (sharer {}, others {}), {} served in {:.1} s\nblake3 {}",
            self.path.display(),
            self.artifact_bytes,
            self.held_bytes,
            self.wire_bytes,
            self.sharer_bytes,
            self.peer_bytes,
            self.served_bytes,
            self.seconds,
            self.blake3
        )
    }
}

/// Whether the target already is the artifact, byte for byte.
fn is_there(target: &ArtifactPath, manifest: &Manifest, progress: &dyn Progress) -> bool {
    if target.standing() == Standing::Nothing {
        return false;
    }
    let Ok(source) = Source::open_any(target.path()) else { return false };
    let listing_bytes = match manifest.root().kind {
        Kind::Tree { listing_bytes } => Some(listing_bytes),
        _ => None,
    };
    let same_shape = source.len() == manifest.root().bytes && source.listing_bytes() == listing_bytes;
    progress.phase("checking what is in place");
    same_shape && hash_reader(&source, &|_| {}).is_ok_and(|hash| hash == manifest.root().blake3)
}

/// Fetches the artifact of a ticket.
///
/// # Errors
/// A [`Failure`] with its exit code. Verified chunks stay, and the same command continues from
/// there.
pub async fn fetch(request: &FetchRequest, progress: Arc<dyn Progress>) -> anyhow::Result<Fetched> {
    let start = Instant::now();
    let identity = check_ticket(&request.access)?;
    let place = Place { out: request.target.path(), data: &request.access.data };
    ours::check_directory_of(&request.target)?;
    let network = join(&request.access, identity.as_ref()).await?;
    let fetched = tokio::select! {
        fetched = fetch_over(&network, request, place, &progress, start) => fetched,
        () = shut_out(&network) => Err(withdrawn().into()),
    };
    if fetched.is_err() {
        network.close().await;
    }
    fetched.map_err(failed)
}

async fn fetch_over(
    network: &Network,
    request: &FetchRequest,
    place: Place<'_>,
    progress: &Arc<dyn Progress>,
    start: Instant,
) -> anyhow::Result<Fetched> {
    let id = request.access.ticket.ticket.manifest;
    // An interrupted fetch may have left the manifest.
    let part = kept::read_part_manifest(place.out, place.data).filter(|part| part.id() == id);
    let manifest = match part {
        Some(part) => part,
        None => network.manifest_of(id, None, &[]).await?,
    };
    check_manifest(&request.access, &manifest)?;
    let manifest = Arc::new(manifest);
    let (target, shape, shown) = (request.target.clone(), manifest.clone(), progress.clone());
    if tokio::task::spawn_blocking(move || is_there(&target, &shape, &*shown)).await? {
        progress.end();
        say_completed(network).await;
        network.leave(&id, Duration::ZERO).await;
        return Ok(outcome(network, request, &manifest, start));
    }
    refuse_other(request)?;
    let (target, data) = (request.target.clone(), request.access.data.clone());
    tokio::task::spawn_blocking(move || ours::check(&target, &data)).await??;
    target::check_kind(place.out, place.data, manifest.root().kind)?;
    let (paths, data, cut) = (request.seeds.clone(), request.access.data.clone(), manifest.root().cut);
    let opened = tokio::task::spawn_blocking(move || {
        let seeds = Seeds::open(&paths, None, &data)?;
        let index = seeds.index(cut)?;
        anyhow::Ok((Arc::new(seeds), Arc::new(index)))
    });
    let (seeds, index) = opened.await??;
    let link = LinkRate::measured(0, Duration::ZERO);
    let mut job = Job::open(place, &manifest, seeds, index, Arc::new(Offers::default()), link)?;
    progress.begin(manifest.root().bytes, request.access.ticket.ticket.name.as_str());
    job.progress = progress.clone();
    job.share(network);
    let (_arriving, urgent) = job.arriving();
    let job = fill_and_check(job, network, urgent, place.out).await?;
    let finishing = job.clone();
    let in_place = tokio::task::spawn_blocking(move || finishing.target.finish()).await??;
    job.clean_up();
    remove_kept(place);
    progress.end();
    say_completed(network).await;
    let resumed = job.resumed;
    network.leave(&id, request.access.sharing.linger).await;
    let counts = *job.counts.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Fetched {
        held_bytes: manifest.root().bytes.saturating_sub(counts.placed_bytes),
        fetched_bytes: counts.fetched_bytes,
        refetched_verified_bytes: counts.repeated_bytes,
        duplicate_bytes: counts.duplicate_bytes,
        resumed,
        already_there: false,
        left_out: in_place.left_out.counts().clone(),
        ..outcome(network, request, &manifest, start)
    })
}

/// Refuses to replace a file or directory that is not the artifact.
fn refuse_other(request: &FetchRequest) -> anyhow::Result<()> {
    let path = request.target.path();
    let is_empty_dir = || {
        request.target.standing() == Standing::Dir
            && std::fs::read_dir(path).is_ok_and(|mut list| list.next().is_none())
    };
    match request.target.standing() {
        Standing::Nothing => Ok(()),
        _ if request.force || is_empty_dir() => Ok(()),
        _ => {
            let error = anyhow!("{} exists with other bytes", path.display());
            let next = "name another path with --out, or replace it with --force";
            Err(Failure::new(Code::Conflict, error).next(next).into())
        }
    }
}

/// Removes the files that a pull keeps beside an artifact for the next one: nobody updates a
/// fetched file.
fn remove_kept(place: Place<'_>) {
    if let Err(error) = kept::remove_side_files(place.out, place.data) {
        let path = place.out.display();
        tracing::warn!(%path, error = %Chain(&error), "could not remove the files kept beside the artifact");
    }
}

/// Tells the sharer that the artifact is complete, which ends a share that is for one fetch.
async fn say_completed(network: &Network) {
    let said = async {
        let link = network.parents.link(0).await?;
        anyhow::Ok(link.metadata(Bytes::from_static(COMPLETED)).await?)
    };
    // The artifact is in place, whether the sharer learns of it or not.
    let _ = tokio::time::timeout(SAY_COMPLETED, said).await;
}

/// Returns the outcome of a fetch for which everything was in place, with the current counters.
fn outcome(network: &Network, request: &FetchRequest, manifest: &Manifest, start: Instant) -> Fetched {
    let (_, sharer) = network.parents.readings();
    let peers = network.neighbour_reading();
    Fetched {
        path: request.target.path().to_owned(),
        artifact_bytes: manifest.root().bytes,
        held_bytes: manifest.root().bytes,
        fetched_bytes: 0,
        wire_bytes: sharer.bytes_in + peers.bytes_in,
        sharer_bytes: sharer.bytes_in,
        peer_bytes: peers.bytes_in,
        served_bytes: network.served_bytes(),
        refetched_verified_bytes: 0,
        duplicate_bytes: 0,
        seconds: start.elapsed().as_secs_f64(),
        manifest: manifest.id(),
        blake3: manifest.root().blake3,
        resumed: false,
        already_there: true,
        left_out: BTreeMap::new(),
    }
}

/// Returns the path that a fetch without `--out` writes: the ticket's name in this directory.
///
/// # Errors
/// Failures with [`Code::Usage`] when the name has a meaning to a shell, to other programs or to
/// distd: whoever made the ticket chose it.
pub fn default_target(ticket: &SignedTicket) -> anyhow::Result<&Path> {
    let name = ticket.ticket.name.as_str();
    if name.starts_with(['.', '-', '~']) || name.contains(".distd") {
        let error = anyhow!("the ticket names its artifact {name:?}");
        return Err(Failure::new(Code::Usage, error).next("choose a name yourself: --out PATH").into());
    }
    Ok(Path::new(name))
}
