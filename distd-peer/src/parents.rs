//! The parents of this node, nearest first. They are dialled when needed, dialled again after a
//! lost connection, and shared by all swarms.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::bounds::REQUEST_CHUNKS_MAX;
use distd_core::error::Chain;
use distd_core::proto::close::CloseCode;
use distd_core::proto::frame::Cost;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::Tier;
use tokio::sync::Mutex;

use crate::capabilities::Capabilities;
use crate::clock::unix_now;
use crate::net::{Carrier, DialError, Dialer, Link, LinkError, Meter, MeterReading, Outbound};
use crate::quarantine::Quarantine;
use crate::trust::report;
use distd_core::role::Role;

/// Time for which a parent that did not answer is not dialled again, so that not every stage of a
/// pull waits for that parent anew.
const DOWN: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Held {
    link: Option<Arc<Link>>,
    failed: Option<Instant>,
}

struct Slot {
    address: String,
    link: Mutex<Held>,
    /// Carrier over which the parent was last reached.
    carrier: std::sync::Mutex<Option<Carrier>>,
    /// Traffic received from this parent, split by the role it turned out to have, so that an
    /// origin that replaces a relay is counted separately.
    relay: Arc<Meter>,
    origin: Arc<Meter>,
}

/// A fixed list of parent addresses with at most one connection each.
pub struct Parents {
    dialer: Dialer,
    slots: Vec<Slot>,
    quarantine: Arc<Quarantine>,
    capabilities: Arc<Capabilities>,
}

/// Reason why no parent could be reached.
#[derive(Debug, thiserror::Error)]
pub enum ParentsError {
    /// No parent is configured.
    #[error("no parent to ask: name one with --parent HOST:PORT")]
    None,
    /// The parent did not answer a moment ago.
    #[error("{0} did not answer: check that it runs and that packets reach it")]
    Down(String),
    /// Dialling or using the last parent failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The parent is in quarantine.
    #[error("{address} sent wrong bytes earlier and is not asked until {until} (unix seconds){}", sooner(.list))]
    Quarantined {
        /// Address of the parent.
        address: String,
        /// End of the quarantine, unix seconds.
        until: u64,
        /// File of the list; `None` for a list that ends with this process.
        list: Option<std::path::PathBuf>,
    },
}

fn sooner(list: &Option<std::path::PathBuf>) -> String {
    list.as_ref()
        .map_or(String::new(), |path| format!("; to ask it sooner, remove it from {}", path.display()))
}

impl Parents {
    /// Creates the list of the parents at `addresses` (`HOST:PORT`), asked in this order.
    pub fn new(
        dialer: Dialer,
        addresses: Vec<String>,
        quarantine: Arc<Quarantine>,
        capabilities: Arc<Capabilities>,
    ) -> Self {
        let slot = |address| Slot {
            address,
            link: Mutex::default(),
            carrier: std::sync::Mutex::default(),
            relay: Arc::default(),
            origin: Arc::default(),
        };
        Self { dialer, slots: addresses.into_iter().map(slot).collect(), quarantine, capabilities }
    }

    /// Number of parents.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no parent.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Configured address of a parent.
    pub fn address(&self, index: usize) -> &str {
        &self.slots[index].address
    }

    /// Returns the connection to one parent and makes one if there is none.
    ///
    /// # Errors
    /// [`ParentsError`].
    pub async fn link(&self, index: usize) -> Result<Arc<Link>, ParentsError> {
        let slot = &self.slots[index];
        let mut held = slot.link.lock().await;
        if let Some(link) = held.link.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        if held.link.take().is_some_and(|lost| lost.starved()) {
            self.dialer.outbound().starved(&slot.address);
        }
        if held.failed.is_some_and(|failed| failed.elapsed() < DOWN) {
            return Err(ParentsError::Down(slot.address.clone()));
        }
        let dialled = Link::connect(&self.dialer, &slot.address, &slot.relay, &slot.origin, unix_now()).await;
        if let Err(LinkError::Dial(DialError::Silent { .. } | DialError::Tcp(..))) = dialled {
            held.failed = Some(Instant::now());
        }
        let dialled = dialled?;
        if let Some(until) = self.quarantine.until(&dialled.node_id(), unix_now()) {
            let list = self.quarantine.path().map(std::path::Path::to_owned);
            return Err(ParentsError::Quarantined { address: slot.address.clone(), until, list });
        }
        let link = Arc::new(dialled);
        tracing::info!(parent = slot.address, over = link.carrier().name(), "connected to a parent");
        *slot.carrier.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.carrier());
        held.link = Some(link.clone());
        Ok(link)
    }

    /// Settings and memory for reaching parents: transport, proxy, and the transports that worked
    /// last.
    pub fn outbound(&self) -> &Arc<Outbound> {
        self.dialer.outbound()
    }

    /// Carrier (QUIC or HTTPS) over which each parent was last reached, by address; only parents
    /// that were connected to.
    pub fn carriers(&self) -> BTreeMap<String, Carrier> {
        let last = |slot: &Slot| *slot.carrier.lock().unwrap_or_else(PoisonError::into_inner);
        self.slots.iter().filter_map(|slot| Some((slot.address.clone(), last(slot)?))).collect()
    }

    /// Closes all connections.
    pub fn close(&self) {
        for slot in &self.slots {
            // A parent that is being dialled has no connection yet.
            if let Ok(held) = slot.link.try_lock()
                && let Some(link) = &held.link
            {
                link.close(CloseCode::Done);
            }
        }
    }

    /// Returns the connection to the first parent that answers, in order.
    ///
    /// # Errors
    /// The error of the last parent.
    pub async fn any_link(&self) -> Result<Arc<Link>, ParentsError> {
        let mut last = ParentsError::None;
        for index in 0..self.slots.len() {
            match self.link(index).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    tracing::debug!(
                        parent = self.address(index),
                        error = %Chain(&error),
                        "parent cannot be used; trying the next one"
                    );
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Sends an encoded metadata question to one parent and returns its answer.
    ///
    /// # Errors
    /// [`ParentsError`].
    pub async fn ask(&self, index: usize, question: &Bytes) -> Result<Bytes, ParentsError> {
        Ok(self.link(index).await?.metadata(question.clone()).await?)
    }

    /// Hands over the reports of an encoded [question](report::question) to the first parent that
    /// keeps them; `false` when none does.
    pub async fn hand_over(&self, question: &Bytes) -> bool {
        for index in 0..self.slots.len() {
            let parent = self.address(index);
            match self.ask(index, question).await {
                Ok(answer) if report::is_kept(&answer) => return true,
                // A parent of an earlier release takes no reports.
                Ok(_) => tracing::debug!(parent, "the parent takes no reports"),
                Err(error) => tracing::debug!(parent, error = %Chain(&error), "reports wait"),
            }
        }
        false
    }

    /// The capabilities of this node.
    pub fn capabilities(&self) -> &Arc<Capabilities> {
        &self.capabilities
    }

    /// Returns the capability of this node for a manifest, as the handshake with a peer of `role`
    /// carries it. Empty if there is none. An origin needs none, so the first request to it does
    /// not wait for one.
    pub async fn capability_for(self: &Arc<Self>, role: Role, manifest: ManifestId) -> Bytes {
        match role {
            Role::Origin => self.capabilities.proof(&manifest, unix_now()).unwrap_or_default(),
            Role::Relay | Role::Leaf => self.capability(manifest).await,
        }
    }

    /// Returns the capability of this node for a manifest. Asks the parents if there is none; one
    /// that should be renewed is returned at once, and renewed beside that. Empty when no parent
    /// gives one.
    pub async fn capability(self: &Arc<Self>, manifest: ManifestId) -> Bytes {
        if let Some(held) = self.capabilities.proof(&manifest, unix_now()) {
            self.renew_if_due(manifest);
            return held;
        }
        let is_settled = || {
            let capabilities = &self.capabilities;
            capabilities.was_settled(&manifest)
                || capabilities.is_unanswered()
                || capabilities.proof(&manifest, unix_now()).is_some()
        };
        if !is_settled() {
            let _turn = self.capabilities.turn().await;
            if !is_settled() {
                self.ask_capabilities(vec![manifest], Vec::new()).await;
            }
        }
        self.capabilities.proof(&manifest, unix_now()).unwrap_or_default()
    }

    /// Starts to ask the parents for a newer capability than the one that is held, if it is time
    /// for one. Does not wait for the answer.
    pub fn renew_if_due(self: &Arc<Self>, manifest: ManifestId) {
        let now = unix_now();
        if self.capabilities.renew_at(&manifest, now).is_some_and(|due| due <= now) {
            let this = self.clone();
            tokio::spawn(async move { this.renew_capability(manifest).await });
        }
    }

    /// Asks the parents for a newer capability, if it is time for one.
    pub async fn renew_capability(&self, manifest: ManifestId) {
        let _turn = self.capabilities.turn().await;
        let now = unix_now();
        let is_due = self.capabilities.renew_at(&manifest, now).is_none_or(|due| due <= now);
        if is_due && !self.capabilities.is_unanswered() {
            self.ask_capabilities(vec![manifest], Vec::new()).await;
        }
    }

    /// Asks the first parent that answers for the capabilities of some manifests and of the
    /// releases that `targets` name. An answer that is missing or not the realm's is logged: the
    /// swarm's answerer then decides without a capability.
    pub async fn ask_capabilities(&self, manifests: Vec<ManifestId>, targets: Vec<String>) {
        self.capabilities.note_asked(&manifests);
        let question = self.capabilities.question(manifests.clone(), targets);
        for index in 0..self.slots.len() {
            match self.ask(index, &question).await {
                Ok(answer) => {
                    if let Err(error) = self.capabilities.take(&answer) {
                        let (parent, error) = (self.address(index), Chain(&error));
                        tracing::warn!(parent, error = %error, "an answer with capabilities is not used");
                    }
                    return self.capabilities.note_settled(&manifests, true);
                }
                Err(error) => {
                    let (parent, error) = (self.address(index), Chain(&error));
                    tracing::debug!(parent, error = %error, "a parent gave no capability");
                }
            }
        }
        self.capabilities.note_settled(&manifests, false);
    }

    /// Asks the first parent that answers how many bytes some chunks of a swarm would take. Asks in
    /// several parts if the chunks exceed one question.
    ///
    /// # Errors
    /// [`ParentsError`].
    pub async fn cost(
        self: &Arc<Self>,
        manifest: ManifestId,
        wanted: &ChunkRanges,
    ) -> Result<Cost, ParentsError> {
        let link = self.any_link().await?;
        let swarm = link.open_swarm(manifest, self.capability_for(link.role(), manifest).await).await?;
        let (handle, mut rest, mut sum) = (swarm.handle(), wanted.clone(), Cost::default());
        while !rest.is_empty() {
            let cost = handle.cost(&rest.take_first(REQUEST_CHUNKS_MAX)).await?;
            sum.chunks += cost.chunks;
            sum.bytes += cost.bytes;
        }
        swarm.leave();
        Ok(sum)
    }

    /// Quarantines the node behind a link, persistently, and closes the link.
    pub fn quarantine(&self, link: &Link) {
        self.quarantine.add(link.node_id(), unix_now());
        link.close(CloseCode::IntegrityFailed);
    }

    /// Number of nodes in quarantine at `now` (unix seconds).
    pub fn quarantined(&self, now: u64) -> usize {
        self.quarantine.nodes(now).len()
    }

    /// Traffic received so far from relays and from origins.
    pub fn readings(&self) -> (MeterReading, MeterReading) {
        let sum = |pick: fn(&Slot) -> &Arc<Meter>| {
            self.slots.iter().map(|slot| pick(slot).read()).fold(MeterReading::default(), |a, b| {
                MeterReading {
                    bytes_in: a.bytes_in + b.bytes_in,
                    requests: a.requests + b.requests,
                    round_trips: a.round_trips + b.round_trips,
                    unknown_frames: a.unknown_frames + b.unknown_frames,
                }
            })
        };
        (sum(|slot| &slot.relay), sum(|slot| &slot.origin))
    }
}

/// Fetch tier that corresponds to a role.
pub(crate) fn tier_of(role: Role) -> Tier {
    match role {
        Role::Origin => Tier::Origin,
        Role::Relay => Tier::Relay,
        Role::Leaf => Tier::Site,
    }
}
