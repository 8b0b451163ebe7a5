//! The releases that a device's gateway offers: resolved by signed metadata, pulled when they are
//! asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::lru::Lru;
use distd_core::manifest::Kind;
use distd_core::names::{Name, Wanted};
use distd_peer::gateway::{Address, FileBytes, Found, NamedFile, Reference, Refusal, Releases};
use distd_peer::news::Newsroom;
use distd_peer::random;
use distd_peer::trust::tuf::ChannelFiles;
use http::StatusCode;
use tokio::sync::{Notify, Semaphore, watch};

use super::directory::Directory;
use super::entry::{EntryFile, State, WholeFile};
use super::{GatewayRequest, Offer};
use crate::disk::path::ArtifactPath;
use crate::failure::{Code, Failure, advice, code_of};
use crate::progress::Ignored;
use crate::pull::{Aim, Arriving, Installed, LABELS_FRESH, Look, PullRequest, look, pull_watched};

/// Time for which an answer about a channel or a version is used again.
const LOOKED_FRESH: Duration = Duration::from_secs(15);

/// Longest time for which the last answer holds while a question takes long.
const STALE_MAX: Duration = Duration::from_secs(10 * 60);

/// Time that a caller waits for a newer answer where there is one already, and where there is none.
const KNOWN_WAITS: Duration = Duration::from_secs(3);
const UNKNOWN_WAITS: Duration = Duration::from_secs(45);

/// Most channels and versions whose answers are remembered.
const LOOKED_MAX: u64 = 256;

/// Pulls at once.
const PULLS_MAX: usize = 2;

/// Time after which a caller may try again when the realm cannot be reached, seconds.
const AGAIN_SECONDS: u32 = 10;

/// Answer to a question about a channel or a version.
#[derive(Clone)]
struct Looked {
    /// Time of the last question, answered or not.
    asked: Instant,
    /// Time of the last answer.
    answered: Instant,
    found: Found,
}

/// The last answer about one channel or version; one question at a time.
type Memory = Arc<tokio::sync::Mutex<Option<Looked>>>;

/// A release that is being pulled, or was.
struct Entry {
    manifest: ManifestId,
    state: watch::Receiver<State>,
}

/// Releases of a realm, pulled on demand.
pub(super) struct PulledReleases {
    request: GatewayRequest,
    directory: Directory,
    news: Arc<Newsroom>,
    looked: Mutex<Lru<(Name, Name, bool), Memory>>,
    entries: Mutex<BTreeMap<(Name, Name), Entry>>,
    /// Question by which a release was found: its pull asks the same, because a right may be one to
    /// a channel alone.
    asked: Mutex<Lru<(Name, Name), Wanted>>,
    /// Names and sums of a product's files, from the channel that was looked at last.
    files: Mutex<Lru<Name, ChannelFiles>>,
    pulls: Arc<Semaphore>,
}

impl PulledReleases {
    pub(super) fn new(request: GatewayRequest, directory: Directory, news: Arc<Newsroom>) -> Arc<Self> {
        Arc::new(Self {
            request,
            directory,
            news,
            looked: Mutex::new(Lru::new(LOOKED_MAX)),
            entries: Mutex::default(),
            asked: Mutex::new(Lru::new(LOOKED_MAX)),
            files: Mutex::new(Lru::new(LOOKED_MAX)),
            pulls: Arc::new(Semaphore::new(PULLS_MAX)),
        })
    }

    /// Time for which an answer is used again. Not longer than the gateway waits to look by itself.
    fn fresh(&self) -> Duration {
        LOOKED_FRESH.min(self.request.poll / 2)
    }

    /// Pulls the releases of the offered channels as they come, so that updaters find them here.
    pub(super) async fn follow(self: &Arc<Self>, looks: &Notify) -> Infallible {
        let mut fresh = self.fresh();
        loop {
            for channel in self.request.offers.iter().filter_map(Offer::wanted) {
                if let Err(refusal) = self.fetch(&channel, fresh).await {
                    let (message, next) = (refusal.message, refusal.next);
                    tracing::warn!(%channel, %message, %next, "the gateway could not get the channel's release");
                }
            }
            // Jitter keeps a fleet that was switched on at once from asking in step ever after.
            let wait = self.request.poll.mul_f64(0.75 + 0.25 * random::fraction());
            tokio::select! {
                () = tokio::time::sleep(wait) => fresh = self.fresh(),
                // The news are younger than any answer.
                () = looks.notified() => fresh = Duration::ZERO,
            }
        }
    }

    async fn fetch(self: &Arc<Self>, channel: &Wanted, fresh: Duration) -> Result<(), Refusal> {
        let found = self.resolve(channel, fresh).await?;
        let mut state = self.start(&found)?;
        let ended = state.wait_for(|state| matches!(state, State::Whole(_) | State::Failed(_))).await;
        match ended.map(|state| state.clone()) {
            Ok(State::Failed(refusal)) => Err(*refusal),
            _ => Ok(()),
        }
    }

    /// Resolves a channel or a version; an answer that is younger than `fresh` is used again. While
    /// a question takes long, the last answer holds for some minutes. Signed metadata from before
    /// count as an answer until they expire.
    async fn resolve(&self, wanted: &Wanted, fresh: Duration) -> Result<Found, Refusal> {
        let (product, name, is_channel) = match wanted {
            Wanted::Channel { product, channel } => (product, channel, true),
            Wanted::Release { product, version } => (product, version, false),
        };
        let memory = {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            looked.get_or_put((product.clone(), name.clone(), is_channel), 1, Memory::default)
        };
        let Ok(mut last) = tokio::time::timeout(UNKNOWN_WAITS, memory.lock()).await else {
            return Err(no_answer(wanted));
        };
        if let Some(looked) = last.as_ref().filter(|looked| looked.asked.elapsed() < fresh) {
            return Ok(looked.found.clone());
        }
        let request = self.pull_request(wanted.clone(), None).map_err(|error| refusal(&error))?.unshared();
        let known = last.as_mut().filter(|looked| looked.answered.elapsed() < STALE_MAX);
        let patience = if known.is_some() { KNOWN_WAITS } else { UNKNOWN_WAITS };
        let looked = match (tokio::time::timeout(patience, look(&request)).await, known) {
            (Ok(looked), _) => looked,
            (Err(_), Some(known)) => {
                known.asked = Instant::now();
                return Ok(known.found.clone());
            }
            (Err(_), None) => return Err(no_answer(wanted)),
        };
        match looked.and_then(|look| self.found(product, look, is_channel)) {
            Ok(found) => {
                let now = Instant::now();
                *last = Some(Looked { asked: now, answered: now, found: found.clone() });
                let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                let of = (product.clone(), found.version.clone());
                // A right to the channel is the wider one.
                if is_channel || asked.get(&of).is_none() {
                    asked.put(of, wanted.clone(), 1);
                }
                Ok(found)
            }
            Err(error) => {
                *last = None;
                Err(refusal(&error))
            }
        }
    }

    /// Makes the request of a pull; with `out`, of this version into it.
    fn pull_request(&self, wanted: Wanted, out: Option<(PathBuf, &Name)>) -> anyhow::Result<PullRequest> {
        let target =
            out.as_ref().map(|(path, _)| ArtifactPath::target(path)).transpose().map_err(Failure::from)?;
        let seeds = out.as_ref().map(|(_, version)| self.directory.others(wanted.product(), version));
        Ok(PullRequest {
            wanted,
            out: target.as_ref().map(|target| target.path().to_owned()).unwrap_or_default(),
            target,
            seeds: seeds.unwrap_or_default(),
            parents: self.request.parents.clone(),
            data: self.request.data.clone(),
            downgrade: self.request.downgrade,
            installed: Installed::Remembered,
            passing_failures: BTreeMap::new(),
            // The turns of a rollout are for devices that install: the updaters behind a gateway
            // do, and take none.
            asks_for_turns: true,
            labels_fresh: LABELS_FRESH.min(self.request.poll * 2),
            expected: out.map(|(_, version)| version.clone()),
            aim: Aim::default(),
            view_memory: self.request.view_memory,
            sharing: self.request.sharing.clone(),
            outbound: self.request.outbound.clone(),
            news: Some(self.news.clone()),
            bundle: None,
        })
    }

    /// Begins to get a release, unless that was begun before and did not fail.
    fn start(self: &Arc<Self>, found: &Found) -> Result<watch::Receiver<State>, Refusal> {
        let key = (found.product.clone(), found.version.clone());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key).filter(|entry| entry.manifest == found.manifest)
            && !matches!(*entry.state.borrow(), State::Failed(_))
        {
            return Ok(entry.state.clone());
        }
        let (sender, state) = watch::channel(State::Preparing);
        entries.insert(key, Entry { manifest: found.manifest, state: state.clone() });
        drop(entries);
        let (this, found) = (self.clone(), found.clone());
        tokio::spawn(async move {
            let got = this.get(&found, &sender).await;
            let state = match got {
                Ok(whole) => State::Whole(Arc::new(whole)),
                Err(error) => {
                    let error = refusal(&error);
                    let of = format!("{}@{}", found.product, found.version);
                    tracing::warn!(message = %error.message, "the gateway could not get {of}");
                    State::Failed(Box::new(error))
                }
            };
            sender.send_replace(state);
            // Also after a failure: what a pull left behind counts as a release.
            this.clean(&found.product).await;
        });
        Ok(state)
    }

    /// Gets a release whole.
    async fn get(&self, found: &Found, state: &watch::Sender<State>) -> anyhow::Result<WholeFile> {
        let _permit = self.pulls.acquire().await?;
        let Found { product, version, manifest, .. } = found;
        let wanted = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.get(&(product.clone(), version.clone())).cloned()
        };
        let by_version = || Wanted::Release { product: product.clone(), version: version.clone() };
        let out = self.directory.make(product, version)?;
        let began = |arriving: Arc<Arriving>| {
            // A version that was withdrawn and released again may be another one by now.
            if arriving.manifest() == *manifest {
                state.send_replace(State::Arriving(arriving));
            }
        };
        let request = |wanted: Wanted| self.pull_request(wanted, Some((out.clone(), version)));
        let first = request(wanted.clone().unwrap_or_else(by_version))?;
        let outcome = match pull_watched(&first, Arc::new(Ignored), &began).await {
            // The channel has moved since. A right to the product gets the release by its version.
            Err(error) if code_of(&error) == Code::Conflict && wanted.is_some() => {
                pull_watched(&request(by_version())?, Arc::new(Ignored), &began).await?
            }
            other => other?,
        };
        tracing::info!(release = outcome.summary(), "the gateway has a release");
        let kept = crate::pull::read_kept_manifest(&out, &self.request.data);
        let kept = kept.filter(|kept| kept.id() == *manifest);
        let file = File::open(&out).with_context(|| format!("could not open {}", out.display()));
        let file = file.map_err(|error| Failure::new(Code::Local, error))?;
        match kept {
            Some(kept) if file.metadata()?.len() == found.bytes => {
                let lengths = kept.entries().map(|at| at.entry.len).collect();
                Ok(WholeFile { file, lengths })
            }
            _ => {
                let error = anyhow!("{product}@{version} is another release by now");
                Err(Failure::new(Code::Conflict, error).next("ask again").into())
            }
        }
    }

    /// Removes old releases of a product. Those to which the offered channels led last stay.
    async fn clean(self: &Arc<Self>, product: &Name) {
        let mut spare = BTreeSet::new();
        for offer in self.request.offers.iter().filter(|offer| offer.product == *product) {
            let Some(channel) = offer.channel.clone() else { continue };
            let memory = {
                let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
                looked.get(&(product.clone(), channel, true)).cloned()
            };
            if let Some(memory) = memory {
                spare.extend(memory.lock().await.as_ref().map(|looked| looked.found.version.clone()));
            }
        }
        // A pull under way is not removed.
        {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let of_product = entries.iter().filter(|((of, _), _)| of == product);
            let is_under_way =
                |entry: &Entry| matches!(*entry.state.borrow(), State::Preparing | State::Arriving(_));
            let under_way = of_product.filter(|(_, entry)| is_under_way(entry));
            spare.extend(under_way.map(|((_, version), _)| version.clone()));
        }
        let (this, of) = (self.clone(), product.clone());
        let cleaned = tokio::task::spawn_blocking(move || this.directory.clean(&of, &spare)).await;
        if let Ok(Err(error)) = cleaned {
            tracing::warn!(error = %Chain(error.as_ref()), "an old release stays in the gateway");
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(of, version), entry| {
            of != product
                || !matches!(*entry.state.borrow(), State::Whole(_))
                || self.directory.has(of, version)
        });
    }

    /// Whether a version may be asked for by its number: any of a product that is offered whole,
    /// else those that an offered channel leads to or that are here.
    async fn offers_version(&self, reference: &Reference) -> Result<bool, Refusal> {
        let Reference { product, name } = reference;
        let offers = || self.request.offers.iter().filter(|offer| offer.product == *product);
        if offers().any(|offer| offer.channel.is_none()) || self.directory.has(product, name) {
            return Ok(true);
        }
        for channel in offers().filter_map(Offer::wanted) {
            if self.resolve(&channel, self.fresh()).await?.version == *name {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The releases as the gateway asks for them: a pull that it starts outlives the request.
pub(super) struct OnDemand(pub(super) Arc<PulledReleases>);

#[async_trait]
impl Releases for OnDemand {
    async fn find(&self, address: &Address) -> Result<Found, Refusal> {
        let reference = &address.reference;
        let Reference { product, name } = reference;
        let this = &self.0;
        let offers: Vec<&Offer> =
            this.request.offers.iter().filter(|offer| offer.product == *product).collect();
        if offers.is_empty() {
            let message = format!("this gateway does not offer {product}");
            return Err(Refusal::not_found(message, "add it to offer in [gateway] of client.toml"));
        }
        if offers.iter().any(|offer| offer.channel.as_ref().is_none_or(|channel| channel == name)) {
            match this.resolve(&reference.channel(), this.fresh()).await {
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => {}
                other => return other,
            }
        }
        if !this.offers_version(reference).await? {
            let message = format!("this gateway does not offer {product}@{name}");
            return Err(Refusal::not_found(message, "ask for a channel that it offers"));
        }
        this.resolve(&reference.release(), this.fresh()).await
    }

    async fn open(&self, found: &Found) -> Result<Arc<dyn FileBytes>, Refusal> {
        let mut state = self.0.start(found)?;
        let begun = state.wait_for(|state| !matches!(state, State::Preparing)).await;
        match begun.map(|state| state.clone()) {
            Ok(State::Failed(refusal)) => return Err(*refusal),
            Ok(_) => {}
            Err(_) => return Err(Refusal::later("the gateway stops", "ask again", AGAIN_SECONDS)),
        }
        Ok(Arc::new(EntryFile(state)))
    }
}

impl PulledReleases {
    /// A release that was looked up, as a gateway knows it.
    fn found(&self, product: &Name, look: Look, is_channel: bool) -> anyhow::Result<Found> {
        let Look { version, manifest, root, files, ahead, .. } = look;
        check_offered(product, &version, ahead, root.kind)?;
        let files = {
            let mut known = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            match &files {
                Some(files) => drop(known.put(product.clone(), files.clone(), 1)),
                None if is_channel => drop(known.remove(product)),
                None => {}
            }
            // The document of a channel also names the files of a version that is asked for by its
            // number.
            files.or_else(|| known.get(product).cloned())
        };
        let file = files.map(|files| NamedFile {
            name: files.name_of(&version),
            sums: files.listing(&version).map(|text| {
                let signature = files.sums.get(&version).map(|sum| sum.signature.clone().into());
                (text, signature)
            }),
        });
        let product = product.clone();
        let (by_channel, bytes, blake3) = (is_channel, root.bytes, root.blake3.0);
        Ok(Found { product, version, by_channel, manifest, bytes, blake3, file })
    }
}

/// Refuses a release that a gateway cannot give to anyone.
fn check_offered(product: &Name, version: &Name, ahead: bool, kind: Kind) -> anyhow::Result<()> {
    if ahead {
        let error =
            anyhow!("{product}@{version} is older than what was here, and nobody ordered the way back");
        let next = "an operator can order it: distd channel set --downgrade";
        return Err(Failure::new(Code::Refused, error).next(next).into());
    }
    if kind != Kind::File {
        let error = anyhow!("{product}@{version} is a directory, and a gateway offers files");
        return Err(Failure::new(Code::NotFound, error).next("install it with distd pull").into());
    }
    Ok(())
}

/// Refusal of a request about a release of which nothing is known while the parents are silent.
fn no_answer(wanted: &Wanted) -> Refusal {
    let next = "check that the parent of the gateway's device runs";
    Refusal::later(format!("no answer about {wanted} in time"), next, AGAIN_SECONDS)
}

/// Makes the answer to a caller of a failure.
fn refusal(error: &anyhow::Error) -> Refusal {
    let status = match code_of(error) {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Refused => StatusCode::FORBIDDEN,
        Code::Integrity => StatusCode::BAD_GATEWAY,
        Code::Local => StatusCode::INSUFFICIENT_STORAGE,
        Code::Network | Code::Conflict => StatusCode::SERVICE_UNAVAILABLE,
        Code::Other | Code::Usage | Code::Unusable => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(AGAIN_SECONDS);
    let (message, next) = (Chain(error.as_ref()).to_string(), advice(error).unwrap_or_default());
    Refusal { retry_after, ..Refusal::new(status, message, next) }
}
