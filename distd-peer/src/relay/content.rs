//! Content of a relay: its store, and through it the content of its parents.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::bounds::HELD_MANIFESTS_MAX;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::role::Role;
use rustls::pki_types::CertificateDer;
use tokio::sync::OnceCell;

use super::asked_capabilities::AskedCapabilities;
use super::log::LogWatch;
use super::metadata_cache::{MetadataCache, PARENT_DOWN};
use super::mirror::Mirror;
use super::reports::{KeepError, Reports};
use super::swarm::RelaySwarm;
use crate::capabilities::Permit;
use crate::clock::unix_now;
use crate::doctor::about_answer;
use crate::manifest_fetch::fetch_manifest;
use crate::net::{exchange_enroll, is_shut_out};
use crate::parents::Parents;
use crate::rates::Throttle;
use crate::request;
use crate::serve::{Content, NodeBudget, ServeError, Swarm};
use crate::store::EdgeStore;
use crate::trust::capability::{CapabilityQuestion, FILE_OF_ANY};
use crate::trust::receipts::Witness;
use crate::trust::report;
use crate::trust::statement::StatementQuestion;
use crate::trust::tls::{PeerIdentity, TrustAnchor};
use crate::trust::tuf::StoreError;
use crate::trust::tuf::wire::{Answer, Query};

/// Maximum number of swarms kept open; beyond it the least recently used is closed. A swarm costs
/// the memory of its manifest, some 8 MB for an 800 MB image.
const SWARMS_MAX: usize = 4;

/// How long a manifest that no parent knows is not asked for again.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Maximum number of unknown manifests remembered.
const UNKNOWN_MAX: usize = 1024;

/// Bytes charged for a request for a manifest that no parent knows.
const UNKNOWN_COST: u64 = 64 << 10;

/// Bytes charged for a manifest that did not arrive completely: the parents may have sent most of a
/// large one.
const FAILED_COST: u64 = 4 << 20;

/// Pause after a report has come, in which others may come.
const REPORTS_GATHER: Duration = Duration::from_millis(500);

/// Time that parents have for a question of a device while they are away.
const WHILE_AWAY: Duration = Duration::from_secs(1);

/// Pause after no parent took the reports.
const REPORTS_AGAIN: Duration = Duration::from_secs(10);

/// Counters of a relay, for `/metrics` and tests.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Questions answered from kept metadata because no parent could be reached.
    pub metadata_stale: AtomicU64,
    /// Swarms opened.
    pub swarms_opened: AtomicU64,
}

/// Open swarms with the time of their last use. The first asker fills the cell.
type OpenSwarms = HashMap<ManifestId, (Instant, Arc<OnceCell<Arc<RelaySwarm>>>)>;

/// The content of a relay.
pub struct Relay {
    store: Arc<EdgeStore>,
    parents: Arc<Parents>,
    download: Option<Arc<Throttle>>,
    anchor: TrustAnchor,
    swarms: Mutex<OpenSwarms>,
    /// Manifests that no parent knew, and when that was found.
    unknown: Mutex<HashMap<ManifestId, Instant>>,
    metadata: tokio::sync::Mutex<MetadataCache>,
    /// Answers with the capabilities of askers.
    asked: Mutex<AskedCapabilities>,
    /// Signed metadata that passed through, kept for when the parents are away.
    mirror: Option<Mirror>,
    /// Reports of devices that wait for a parent.
    reports: Option<Arc<Reports>>,
    /// Watch over the log of receipts.
    log: Option<LogWatch>,
    /// Unix time in seconds at which a parent last answered; 0 for never.
    heard: AtomicU64,
    /// Whether no parent answered when the relay last looked.
    away: AtomicBool,
    /// Counters of this relay.
    pub counters: RelayCounters,
}

impl Relay {
    /// Creates a relay over `store` that asks `parents`. Enrolments are forwarded to the first
    /// parent that answers.
    pub fn new(store: Arc<EdgeStore>, parents: Arc<Parents>, anchor: TrustAnchor) -> Self {
        let metadata = tokio::sync::Mutex::default();
        Self {
            store,
            parents,
            download: None,
            anchor,
            swarms: Mutex::default(),
            unknown: Mutex::default(),
            metadata,
            asked: Mutex::default(),
            mirror: None,
            reports: None,
            log: None,
            heard: AtomicU64::new(0),
            away: AtomicBool::new(false),
            counters: RelayCounters::default(),
        }
    }

    /// Limits the rate at which chunks are taken from the parents.
    #[must_use]
    pub fn limited(mut self, download: Option<Arc<Throttle>>) -> Self {
        self.download = download;
        self
    }

    /// Keeps signed metadata in `dir`, and answers from it while no parent does.
    #[must_use]
    pub fn mirroring(mut self, dir: &Path) -> Self {
        self.mirror = Some(Mirror::new(dir));
        self
    }

    /// Keeps reports of devices in `dir` until a parent has taken them. A relay without such a
    /// directory takes no reports.
    #[must_use]
    pub fn keeping_reports(mut self, dir: &Path) -> Self {
        self.reports = Some(Arc::new(Reports::load(dir)));
        self
    }

    /// Watches the log of receipts, and keeps its newest head in the state directory `dir`. A relay
    /// without it tells its devices no head.
    #[must_use]
    pub fn watching_log(mut self, dir: &Path, ca: CertificateDer<'static>) -> Self {
        self.log = Some(LogWatch::new(Witness::load(dir, ca)));
        self
    }

    /// The metadata that the relay keeps, if it does.
    pub(super) fn mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref()
    }

    /// Watch over the log of receipts.
    pub(super) fn log(&self) -> Option<&LogWatch> {
        self.log.as_ref()
    }

    /// Unix time in seconds at which a parent last answered; 0 for never.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Fetches the newest of the metadata that every device needs, whether a device asks for it or
    /// not.
    ///
    /// # Errors
    /// [`ServeError`].
    pub(super) async fn refresh_metadata(&self) -> Result<(), ServeError> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        let internal = |e: StoreError| ServeError::Internal(e.into());
        let question = mirror.question().await.map_err(internal)?;
        let answer = self.ask_parents(question.encode().into()).await?;
        if mirror.keep(&answer).await.map_err(internal)? {
            return Ok(());
        }
        // A kept file is damaged, or the origin was restored from a backup.
        let whole = Query { differences: false, ..question };
        let answer = self.ask_parents(whole.encode().into()).await?;
        mirror.keep(&answer).await.map(drop).map_err(internal)
    }

    /// Leaves at the parents those swarms from which nobody has fetched for a while: a parent has
    /// places for swarms in use, not for all that are open here.
    pub(super) fn leave_idle(&self) {
        self.swarms().values().filter_map(|(_, cell)| cell.get()).for_each(|swarm| swarm.leave_when_idle());
    }

    /// Returns when a device got newer metadata than the relay keeps.
    pub(super) async fn metadata_news(&self) {
        match &self.mirror {
            Some(mirror) => mirror.news.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Sends an encoded metadata question to the first parent that answers. While the parents are
    /// away, a parent has only a moment for it: an office without an uplink must not wait for one
    /// at each question.
    ///
    /// # Errors
    /// [`ServeError::Upstream`].
    pub(super) async fn ask_metadata(&self, question: Bytes) -> Result<Bytes, ServeError> {
        if !self.away.load(Ordering::Relaxed) {
            return self.ask_parents(question).await;
        }
        let asked = tokio::time::timeout(WHILE_AWAY, self.ask_parents(question)).await;
        asked.unwrap_or_else(|_| Err(ServeError::Upstream("no parent answers".into())))
    }

    /// Notes whether a parent answers.
    pub(super) fn note_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    async fn ask_parents(&self, question: Bytes) -> Result<Bytes, ServeError> {
        let link = self.parents.any_link().await.map_err(|e| ServeError::Upstream(e.into()))?;
        let answer = link.metadata(question).await.map_err(|e| ServeError::Upstream(e.into()))?;
        self.heard.store(unix_now(), Ordering::Relaxed);
        self.note_away(false);
        Ok(answer)
    }

    /// Keeps reports that a peer hands over.
    async fn keep_reports(&self, peer: &PeerIdentity, question: Query) -> Result<Bytes, ServeError> {
        let Some(kept) = self.reports.clone() else { return Ok(Answer::default().encode().into()) };
        let peer = peer.clone();
        let reports: Vec<Bytes> =
            question.reports.into_iter().map(|bytes| Bytes::from(bytes.into_vec())).collect();
        let keep = tokio::task::spawn_blocking(move || kept.keep(&peer, &reports));
        match keep.await {
            Ok(Ok(())) => Ok(report::kept_answer()),
            Ok(Err(error @ (KeepError::TooOften | KeepError::Full))) => {
                Err(ServeError::Upstream(error.into()))
            }
            Ok(Err(error)) => Err(ServeError::Internal(error.into())),
            Err(error) => Err(ServeError::Internal(error.into())),
        }
    }

    /// Hands the reports that wait to a parent, for as long as the relay runs.
    pub(super) async fn pass_reports_on(&self) {
        let Some(reports) = self.reports.clone() else { return };
        loop {
            let batch = reports.batch();
            if batch.is_empty() {
                reports.news().await;
                // Devices of one site report at about the same time.
                tokio::time::sleep(REPORTS_GATHER).await;
                continue;
            }
            let question = report::question(batch.iter().map(|(_, _, bytes)| bytes));
            if self.parents.hand_over(&question).await {
                let reports = reports.clone();
                // A removal that fails is logged, and the report is sent again.
                let _ = tokio::task::spawn_blocking(move || reports.taken(&batch)).await;
            } else {
                tokio::time::sleep(REPORTS_AGAIN).await;
            }
        }
    }

    /// Answers an asker's question for its capabilities: from memory while they are fresh, and as
    /// long as they are valid while no parent answers.
    async fn capabilities_of(&self, peer: &PeerIdentity, mut question: Query) -> Result<Bytes, ServeError> {
        let asked = question.capability.get_or_insert_default();
        // The parent believes this relay, so the relay must not pass on the claim of a device.
        if peer.role != Role::Relay {
            *asked = CapabilityQuestion::new(peer.node_id, std::mem::take(&mut asked.manifests));
        }
        let (node, manifests) = (asked.node(), asked.manifests.clone());
        // The parent gets what it needs, and nothing else that the asker may have written.
        let has_targets = !question.targets.is_empty();
        let question = asked.clone().encode(std::mem::take(&mut question.targets));
        let asked = || self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = asked().fresh(&node, &question, unix_now()) {
            return Ok(answer);
        }
        let down_until = self.metadata.lock().await.down_until;
        let answered = match down_until.is_some_and(|until| Instant::now() < until) {
            true => Err(ServeError::Upstream("no parent answered a moment ago".into())),
            false => self.ask_metadata(question.clone()).await,
        };
        match answered {
            Ok(answer) => {
                // An answer that does not decode is the asker's to refuse.
                if let Ok(decoded) = Answer::decode(&answer) {
                    self.keep_of_any(&decoded);
                    asked().keep(node, question, &answer, &decoded, has_targets.then(unix_now));
                }
                Ok(answer)
            }
            Err(error) => {
                if let Some(answer) = asked().valid(&node, &question, unix_now()) {
                    return Ok(answer);
                }
                let of_any = self.parents.capabilities().of_any(&manifests).into_iter();
                let files: Vec<_> = of_any.map(|bytes| (FILE_OF_ANY.to_owned(), bytes)).take(1).collect();
                if files.is_empty() { Err(error) } else { Ok(Answer { files }.encode().into()) }
            }
        }
    }

    /// Keeps the capability of any node in an answer that passes through: devices need it when the
    /// parents are away.
    fn keep_of_any(&self, answer: &Answer) {
        if let Some((_, bytes)) = answer.files.iter().find(|(name, _)| name == FILE_OF_ANY)
            && let Err(error) = self.parents.capabilities().take_of_any(bytes)
        {
            tracing::warn!(error = %Chain(&error), "a parent sent a capability that is not the realm's");
        }
    }

    /// Returns the question for a parent whose answer this relay can read: one without differences
    /// where the asker holds files that the relay has not.
    async fn readable(&self, sent: Bytes) -> Bytes {
        let (Some(mirror), Ok(question)) = (&self.mirror, Query::decode(&sent)) else { return sent };
        if !question.differences || mirror.has_all(&question).await.unwrap_or(false) {
            return sent;
        }
        Query::without_differences(&sent)
    }

    /// Returns the kept answer to a question that no parent answers.
    async fn kept_metadata(&self, question: &Bytes) -> Option<Bytes> {
        match self.mirror.as_ref()?.answer(question).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(
                    error = %Chain(&error),
                    "kept metadata cannot answer a question"
                );
                None
            }
        }
    }

    /// Parents of this relay.
    pub fn parents(&self) -> &Arc<Parents> {
        &self.parents
    }

    /// Chunk store of this relay.
    pub fn store(&self) -> &Arc<EdgeStore> {
        &self.store
    }

    /// Number of chunks fetched from parents, and of those that the store already had (must stay
    /// 0). Counts the open swarms only.
    pub fn fetched(&self) -> (u64, u64) {
        let swarms = self.swarms();
        swarms.values().filter_map(|(_, cell)| cell.get()).fold((0, 0), |(fetched, again), swarm| {
            let demand = &swarm.demand;
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (fetched + load(&demand.fetched), again + load(&demand.refetched))
        })
    }

    fn swarms(&self) -> MutexGuard<'_, OpenSwarms> {
        self.swarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, id: ManifestId) -> Arc<OnceCell<Arc<RelaySwarm>>> {
        let mut swarms = self.swarms();
        let now = Instant::now();
        let entry = swarms.entry(id).or_insert_with(|| (now, Arc::default()));
        entry.0 = now;
        let cell = entry.1.clone();
        while swarms.len() > SWARMS_MAX {
            // A swarm in use stays: a second driver for it would fetch the same chunks again.
            let idle = |cell: &OnceCell<Arc<RelaySwarm>>| {
                cell.get().is_none_or(|swarm| Arc::strong_count(swarm) == 1)
            };
            let old = swarms.iter().filter(|(other, (_, cell))| **other != id && idle(cell));
            let Some(oldest) = old.min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id) else { break };
            swarms.remove(&oldest);
        }
        cell
    }

    fn unknown(&self) -> MutexGuard<'_, HashMap<ManifestId, Instant>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, id: ManifestId, budget: &Arc<NodeBudget>) -> Result<Arc<RelaySwarm>, ServeError> {
        let store = self.store.clone();
        let kept = blocking(move || store.manifest(&id)).await?;
        let manifest = match kept {
            Some(manifest) => manifest,
            None => {
                if budget.is_spent() {
                    return Err(ServeError::Upstream("the node has made this relay fetch too much".into()));
                }
                if self.unknown().get(&id).is_some_and(|at| at.elapsed() < UNKNOWN) {
                    return Err(ServeError::NoManifest(id));
                }
                // In a task of its own, so that the fetch completes, is stored and is charged even
                // if its asker leaves.
                let (store, parents, budget) = (self.store.clone(), self.parents.clone(), budget.clone());
                let fetching = tokio::spawn(async move {
                    let fetched = fetch(&store, &parents, id).await;
                    // The part that the node then takes is credited.
                    budget.charge(match &fetched {
                        Ok(manifest) => manifest.nodes_bytes(),
                        Err(ServeError::NoManifest(_) | ServeError::Unauthorised) => UNKNOWN_COST,
                        Err(_) => FAILED_COST,
                    });
                    fetched
                });
                let fetched = fetching.await.map_err(|e| ServeError::Internal(e.into()))?;
                if matches!(fetched, Err(ServeError::NoManifest(_))) {
                    let mut unknown = self.unknown();
                    if unknown.len() >= UNKNOWN_MAX {
                        unknown.retain(|_, at| at.elapsed() < UNKNOWN);
                    }
                    if unknown.len() < UNKNOWN_MAX {
                        unknown.insert(id, Instant::now());
                    }
                }
                fetched?
            }
        };
        self.counters.swarms_opened.fetch_add(1, Ordering::Relaxed);
        let (store, parents) = (self.store.clone(), self.parents.clone());
        Ok(Arc::new(RelaySwarm::new(store, parents, self.download.clone(), Arc::new(manifest))))
    }
}

/// Fetches a manifest from the first parent that has it, and stores it.
async fn fetch(
    store: &Arc<EdgeStore>,
    parents: &Arc<Parents>,
    id: ManifestId,
) -> Result<Manifest, ServeError> {
    let local = store.clone();
    // The two newest are enough: a release shares nodes with the releases before it.
    let held = blocking(move || {
        let ids = local.recent_manifests(HELD_MANIFESTS_MAX.min(2))?;
        ids.iter().map(|id| local.manifest(id)).filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let upstream = |e: Box<dyn std::error::Error + Send + Sync>| ServeError::Upstream(e);
    let mut last = ServeError::NoManifest(id);
    for index in 0..parents.len() {
        let link = match parents.link(index).await {
            Ok(link) => link,
            Err(error) => {
                last = upstream(error.into());
                continue;
            }
        };
        let attempt = async {
            let swarm = link.open_swarm(id, parents.capability_for(link.role(), id).await).await?;
            let held: Vec<&Manifest> = held.iter().collect();
            let fetched = fetch_manifest(&swarm.handle(), id, None, &held).await;
            swarm.leave();
            fetched
        };
        match attempt.await {
            Ok(manifest) => {
                let local = store.clone();
                return blocking(move || local.put_manifest(&manifest).map(|()| manifest)).await;
            }
            Err(error) => {
                if error.is_breach() {
                    parents.quarantine(&link);
                }
                last = if error.is_no_manifest() {
                    ServeError::NoManifest(id)
                } else if is_shut_out(&error) {
                    let parent = parents.address(index);
                    tracing::warn!(parent, manifest = %id, "this relay has no grant to read a manifest that a device wants");
                    ServeError::Unauthorised
                } else {
                    upstream(error.into())
                };
            }
        }
    }
    Err(last)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ServeError::Internal(e.into()))?
        .map_err(|e| ServeError::Internal(e.into()))
}

#[async_trait]
impl Content for Relay {
    async fn permit(
        &self,
        peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        shown: &Bytes,
    ) -> Result<Permit, ServeError> {
        let capabilities = self.parents.capabilities();
        let judge = || capabilities.permit(&peer.node_id, &manifest, shown, unix_now());
        let refused = match judge() {
            Ok(permit) => {
                // Devices may need the relay's copy when the parents are away.
                self.parents.renew_if_due(manifest);
                return Ok(permit);
            }
            Err(refused) => refused,
        };
        // Without an answer the relay does not know: the asker comes again.
        let unknown = || ServeError::Upstream("no parent answered a question for capabilities".into());
        if !shown.is_empty() || budget.is_spent() || capabilities.was_settled(&manifest) {
            let unsure = shown.is_empty() && capabilities.is_unanswered();
            return Err(if unsure { unknown() } else { ServeError::NotPermitted(refused) });
        }
        // A device of an earlier release shows none. The origin may have released the manifest for
        // any node.
        let _few = budget.opening().await;
        budget.charge(UNKNOWN_COST);
        self.parents.capability(manifest).await;
        match judge() {
            Err(_) if capabilities.is_unanswered() => Err(unknown()),
            judged => judged.map_err(ServeError::NotPermitted),
        }
    }

    async fn swarm(
        &self,
        _peer: &PeerIdentity,
        budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        let cell = self.cell(manifest);
        // A node opens few swarms at once. The permit is taken before the cell, so that others who
        // want the same manifest do not wait behind this node.
        let _few = match cell.get() {
            Some(_) => None,
            None => Some(budget.opening().await),
        };
        let swarm = cell.get_or_try_init(|| self.open(manifest, budget)).await;
        match swarm {
            Ok(swarm) => Ok(swarm.clone()),
            Err(error) => {
                let mut swarms = self.swarms();
                let same = swarms.get(&manifest).is_some_and(|(_, held)| Arc::ptr_eq(held, &cell));
                if same && cell.get().is_none() {
                    swarms.remove(&manifest);
                }
                Err(error)
            }
        }
    }

    async fn metadata(&self, peer: &PeerIdentity, sent: Bytes) -> Result<Bytes, ServeError> {
        let mut query = sent.clone();
        if let Ok(mut question) = Query::decode(&sent) {
            if let Some(id) = question.request.take() {
                if let Some(request) = request::plain(Some(&id)) {
                    let node = peer.node_id;
                    tracing::debug!(target: request::LOG_TARGET, request, %node, "asked for metadata");
                }
                // Devices that ask the same share one answer, whatever their ids are.
                query = question.encode().into();
            }
            if question.about {
                return Ok(about_answer());
            }
            if question.capability.is_some() {
                return self.capabilities_of(peer, question).await;
            }
            if !question.reports.is_empty() {
                return self.keep_reports(peer, question).await;
            }
            if question.turn.is_some() {
                // It is signed by the device, and its answer is for it alone.
                return self.ask_metadata(query).await;
            }
            if let Some(asked) = question.log {
                return Ok(self.log_of(asked).await);
            }
            if let Some(asked) = question.statement {
                // The parent believes this relay, so the relay must not pass on the claim of a
                // device.
                let node = if peer.role == Role::Relay { asked.node() } else { peer.node_id };
                return self.ask_metadata(StatementQuestion::new(node, asked.has).encode()).await;
            }
        }
        // Held while asking: another asker of the same question waits here and then finds the
        // answer.
        let mut cache = self.metadata.lock().await;
        if let Some(answer) = cache.fresh(&query) {
            return Ok(answer);
        }
        let down = cache.down_until.is_some_and(|until| Instant::now() < until);
        let stale = |answer: Bytes| {
            self.counters.metadata_stale.fetch_add(1, Ordering::Relaxed);
            Ok(answer)
        };
        if down {
            // The mirror is never older than a kept answer.
            let kept = match self.kept_metadata(&query).await {
                None => cache.kept(&query),
                kept => kept,
            };
            if let Some(answer) = kept {
                return stale(answer);
            }
        }
        match self.ask_metadata(self.readable(sent).await).await {
            Ok(answer) => {
                cache.down_until = None;
                cache.keep(query.clone(), answer.clone());
                drop(cache);
                if let Some(mirror) = &self.mirror
                    && let Err(error) = mirror.keep_of_device(&query, &answer).await
                {
                    tracing::warn!(error = %Chain(&error), "metadata could not be stored");
                }
                Ok(answer)
            }
            Err(error) => {
                cache.down_until = Some(Instant::now() + PARENT_DOWN);
                let kept = cache.kept(&query);
                drop(cache);
                self.kept_metadata(&query).await.or(kept).map_or(Err(error), stale)
            }
        }
    }

    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError> {
        let mut last = ServeError::Upstream("no parent configured".into());
        for index in 0..self.parents.len() {
            let (address, outbound) = (self.parents.address(index), self.parents.outbound());
            match exchange_enroll(address, &self.anchor, outbound, &body).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last = ServeError::Upstream(error.into()),
            }
        }
        Err(last)
    }
}
