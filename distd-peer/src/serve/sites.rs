//! Sites of the asking nodes: which of them listen at which address, and which chunks one of them
//! fetches for the rest.
//!
//! The core's [`Directory`] and [`Leases`] decide. This module gives them verified records, the
//! time, and a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::error::Chain;
use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{Directory, LeaseId, Leases, RecentlySent, Requester, SiteKey};
use distd_core::{ChunkId, ManifestId, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::reach::Reach;
use super::site::SiteRule;
use crate::clock::{monotonic_now, unix_now};
use crate::trust::record::verify_record;

/// The sites of all askers of this node.
pub struct Sites {
    ca: CertificateDer<'static>,
    rule: SiteRule,
    /// Whether chunks are leased: only where each chunk sent is uplink traffic. Elsewhere duplicate
    /// suppression applies while there are many askers at once.
    leasing: bool,
    state: Mutex<State>,
    /// Number of nodes that are refused nothing any more, as they get nothing from their
    /// neighbours.
    pub(super) alone: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    directory: Directory,
    leased: BTreeMap<(SiteKey, ManifestId), Leased>,
    recently_sent: BTreeMap<(SiteKey, ManifestId), RecentlySent>,
    changed: BTreeMap<SiteKey, watch::Sender<()>>,
    /// Open control streams of nodes that take part, by swarm: the node, and its listening address
    /// if it serves.
    members: BTreeMap<ManifestId, Vec<(NodeId, Option<SocketAddr>)>>,
}

impl State {
    fn tell(&mut self, site: &SiteKey) {
        if let Some(changed) = self.changed.get(site) {
            if changed.is_closed() {
                self.changed.remove(site);
            } else {
                changed.send_replace(());
            }
        }
    }
}

/// Leases of one swarm's chunks at one site, and the chunks sent to or announced by any node of the
/// site.
#[derive(Default)]
struct Leased {
    leases: Leases,
    there: ChunkRanges,
}

/// A node's membership in one swarm, which lasts as long as its control stream is open.
pub(crate) struct Member {
    sites: Arc<Sites>,
    site: SiteKey,
    node: NodeId,
    manifest: ManifestId,
    resident: bool,
    /// Addresses where the node listens; empty if it serves nobody.
    addresses: Vec<SocketAddr>,
    reach: Mutex<Reach>,
}

/// Leased chunks of one batch. Dropping it frees the chunks that were not sent.
pub(crate) struct BatchLease<'m> {
    member: &'m Member,
    id: LeaseId,
}

impl Sites {
    /// Creates the directory for nodes of the realm with this CA.
    pub fn new(ca: CertificateDer<'static>, rule: SiteRule, leasing: bool) -> Arc<Self> {
        Arc::new(Self { ca, rule, leasing, state: Mutex::default(), alone: Arc::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the peer `node`, seen at `observed`, which opened the swarm of `manifest` with
    /// `record`. Returns `None` if the record is not the peer's own or does not verify: the peer is
    /// served all the same, but takes no part in the exchange.
    pub(crate) fn join(
        self: &Arc<Self>,
        node: NodeId,
        observed: SocketAddr,
        manifest: ManifestId,
        record: PeerRecord,
    ) -> Option<Member> {
        let now = unix_now();
        match verify_record(&record, &self.ca, now) {
            Ok(signer) if signer == node => {}
            Ok(signer) => {
                tracing::info!(%node, %signer, "a node sent the peer record of another node as its own");
                return None;
            }
            Err(error) => {
                tracing::info!(%node, error = %Chain(&error), "peer record refused");
                return None;
            }
        }
        let seen = observed.ip().to_canonical();
        let Some(site) = self.rule.site_of(&record, seen) else {
            // A node must not direct others to an address that is not its own.
            let named = &record.addresses;
            tracing::info!(%node, %seen, ?named, "peer record names an address its node was not seen at");
            return None;
        };
        let (resident, addresses) = (record.resident, record.addresses.clone());
        let mut state = self.state();
        state.directory.handle_record(now, &site, node, record);
        state.directory.handle_joined(&site, node, resident, manifest);
        state.members.entry(manifest).or_default().push((node, addresses.first().copied()));
        state.tell(&site);
        let reach = Mutex::default();
        Some(Member { sites: self.clone(), site, node, manifest, resident, addresses, reach })
    }

    /// Number of nodes that take part and have the swarm open here.
    pub fn members(&self, manifest: &ManifestId) -> usize {
        self.state().members.get(manifest).map_or(0, Vec::len)
    }

    /// Nodes that have the swarm open here and listen, with their addresses as seen.
    pub(crate) fn callers(&self, manifest: &ManifestId) -> Vec<(NodeId, SocketAddr)> {
        let state = self.state();
        let members = state.members.get(manifest).into_iter().flatten();
        members.filter_map(|(node, listens)| Some((*node, (*listens)?))).collect()
    }

    /// Receiver that is marked as changed when a node joins a site, is learned of, or reports nodes
    /// it shuns.
    pub(crate) fn changes(&self, site: &SiteKey) -> watch::Receiver<()> {
        let mut state = self.state();
        state.changed.entry(site.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Takes a record that came from elsewhere and is already verified, of a node in the swarm of
    /// `manifest`.
    pub(crate) fn learned(&self, node: NodeId, manifest: ManifestId, record: PeerRecord) {
        let site = SiteKey::default();
        let mut state = self.state();
        let resident = record.resident;
        if state.directory.handle_record(unix_now(), &site, node, record) {
            state.directory.handle_joined(&site, node, resident, manifest);
            state.tell(&site);
        }
    }
}

impl Member {
    fn serves(&self) -> bool {
        !self.addresses.is_empty()
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records chunks that the node announced.
    pub(crate) fn have(&self, chunks: &ChunkRanges) {
        let now = monotonic_now();
        let mut state = self.sites.state();
        state.directory.handle_have(&self.site, self.node, self.resident, chunks);
        let mut reach = self.reach();
        reach.handle_have(chunks);
        if self.sites.leasing && self.serves() && !self.resident && !reach.is_alone() {
            let leased = state.leased.entry((self.site.clone(), self.manifest)).or_default();
            leased.leases.handle_have(now, self.node, chunks);
            leased.there.extend(chunks);
        }
        // The others of the site are not notified: they learn of chunks from the node itself.
    }

    /// Records the nodes from which this node takes nothing.
    pub(crate) fn shuns(&self, nodes: BTreeSet<NodeId>) {
        let mut state = self.sites.state();
        state.directory.handle_shuns(unix_now(), &self.site, self.node, nodes);
        state.tell(&self.site);
    }

    /// Nodes that several of the site shun. Empty where chunks are not leased: askers that pass
    /// such a relay by turn to the node that leases.
    pub(crate) fn distrusted_by_origin(&self) -> Vec<NodeId> {
        let state = self.sites.state();
        let shuns = state.directory.shuns(&self.site);
        shuns.distrusted_by_origin().filter(|_| self.sites.leasing).copied().collect()
    }

    /// Takes a newer record of the node.
    pub(crate) fn refresh(&self, observed: SocketAddr, record: PeerRecord) {
        let verified = verify_record(&record, &self.sites.ca, unix_now()) == Ok(self.node);
        let seen = observed.ip().to_canonical();
        // A private address must stay the same: a node that changed it again and again could have
        // others dial one host after another.
        let here = record.addresses.iter().all(|a| a.ip() == seen) || record.addresses == self.addresses;
        if verified && record.resident == self.resident && here {
            self.sites.state().directory.handle_record(unix_now(), &self.site, self.node, record);
        }
    }

    /// Receiver that is marked as changed when the directory of the node's site changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.sites.changes(&self.site)
    }

    /// Records of the node's neighbours, best first.
    pub(crate) fn neighbours(&self, chunks: &ChunkRanges) -> Vec<(NodeId, PeerRecord)> {
        let state = self.sites.state();
        let holders: Vec<NodeId> = state
            .leased
            .get(&(self.site.clone(), self.manifest))
            .map(|leased| leased.leases.holders(monotonic_now()).collect())
            .unwrap_or_default();
        let asker = Requester { node: self.node, manifest: self.manifest, chunks };
        state.directory.ranked(unix_now(), &self.site, asker, &holders)
    }

    /// Splits `wanted` into the chunks that the node gets and those left to a neighbour. `None` if
    /// nothing is left to neighbours: this node does not lease, or the asking node does not reach
    /// its neighbours.
    pub(crate) fn lease(&self, wanted: &ChunkRanges) -> Option<(BatchLease<'_>, ChunkRanges, ChunkRanges)> {
        if !self.sites.leasing {
            return None;
        }
        let mut state = self.sites.state();
        let now = monotonic_now();
        state.leased.retain(|_, leased| !leased.leases.is_idle(now));
        let State { directory, leased, .. } = &mut *state;
        let leased = leased.entry((self.site.clone(), self.manifest)).or_default();
        let mut reach = self.reach();
        if reach.handle_request(now) {
            tracing::info!(node = %self.node, site = self.site.0, "a node gets nothing from its neighbours; sending it everything");
            self.sites.alone.fetch_add(1, Ordering::Relaxed);
            // Nor do the others wait for this node.
            leased.leases.handle_gone(self.node);
        }
        if reach.is_alone() {
            return None;
        }
        let shuns = directory.shuns(&self.site);
        let (id, granted, refused) =
            leased.leases.handle_request(now, self.node, wanted, self.serves(), shuns);
        reach.handle_answer(now, &granted, &refused, &leased.there);
        Some((BatchLease { member: self, id }, granted, refused))
    }

    /// Splits `wanted` into the chunks that the node gets and those left to neighbours: the chunks
    /// recently sent to the site, if there are many askers at once.
    pub(crate) fn left_after_duplicates(
        &self,
        wanted: ChunkRanges,
        crowd: bool,
        by_relay: bool,
    ) -> (ChunkRanges, ChunkRanges) {
        if self.sites.leasing {
            return (wanted, ChunkRanges::new());
        }
        let mut state = self.sites.state();
        let key = (self.site.clone(), self.manifest);
        let recently_sent = state.recently_sent.entry(key).or_insert_with(|| RecentlySent::of(by_relay));
        let now = monotonic_now();
        let (granted, left) = match crowd {
            true => recently_sent.handle_request(now, &wanted),
            false => (wanted, ChunkRanges::new()),
        };
        if self.serves() {
            recently_sent.handle_granted(now, &granted);
        }
        (granted, left)
    }

    fn with_leased(&self, change: impl FnOnce(&mut Leased)) {
        if let Some(leased) = self.sites.state().leased.get_mut(&(self.site.clone(), self.manifest)) {
            change(leased);
        }
    }
}

impl BatchLease<'_> {
    /// Records that a chunk is on its way.
    pub(crate) fn sent(&self, chunk: ChunkId) {
        self.member.with_leased(|leased| {
            leased.leases.handle_sent(monotonic_now(), self.id, chunk);
            leased.there.insert(chunk);
        });
    }
}

impl Drop for BatchLease<'_> {
    fn drop(&mut self) {
        self.member.with_leased(|leased| leased.leases.handle_end(monotonic_now(), self.id));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.sites.state();
        if let Some(members) = state.members.get_mut(&self.manifest) {
            let own =
                members.iter().position(|member| *member == (self.node, self.addresses.first().copied()));
            own.map(|at| members.swap_remove(at));
            if members.is_empty() {
                state.members.remove(&self.manifest);
                state.recently_sent.retain(|(_, manifest), _| *manifest != self.manifest);
            }
        }
        let gone = state.directory.handle_left(&self.site, self.node, self.resident, self.manifest);
        if gone && let Some(leased) = state.leased.get_mut(&(self.site.clone(), self.manifest)) {
            leased.leases.handle_gone(self.node);
        }
    }
}
