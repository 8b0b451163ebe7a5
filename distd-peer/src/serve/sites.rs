//! Sites of the asking nodes: which of them listen at which address, and which chunks one of them
//! fetches for the rest.
//!
//! The core's [`SiteMembers`] decides. This module gives it verified records, the time, and a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::error::Chain;
use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{LeaseId, MemberId, Neighbour, SiteKey, SiteMembers, SiteRule};
use distd_core::{ChunkId, ManifestId, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::clock::{monotonic_now, unix_now};
use crate::trust::record::verify_record;

/// The sites of all askers of this node.
pub struct Sites {
    ca: CertificateDer<'static>,
    rule: SiteRule,
    state: Mutex<State>,
    /// Number of nodes that are refused nothing any more, as they get nothing from their
    /// neighbours.
    pub(super) alone: Arc<AtomicU64>,
}

struct State {
    members: SiteMembers,
    changed: BTreeMap<SiteKey, watch::Sender<()>>,
}

impl State {
    fn notify(&mut self, site: &SiteKey) {
        if let Some(changed) = self.changed.get(site) {
            if changed.is_closed() {
                self.changed.remove(site);
            } else {
                changed.send_replace(());
            }
        }
    }
}

/// A node's membership in one swarm, which lasts as long as its control stream is open.
pub(crate) struct Member {
    sites: Arc<Sites>,
    site: SiteKey,
    node: NodeId,
    id: MemberId,
    may_seed: bool,
}

/// Lease of the chunks granted to one batch; it ends on drop.
pub(crate) struct BatchLease<'m> {
    member: &'m Member,
    id: LeaseId,
}

impl Sites {
    /// Creates an empty directory. Records of peers must verify against the realm's CA; `rule` says
    /// which of them are neighbours, and `leasing` whether each chunk is leased to one node of a
    /// site: only where each chunk sent is uplink traffic. Elsewhere duplicate suppression applies
    /// while there are many askers at once.
    pub fn new(ca: CertificateDer<'static>, rule: SiteRule, leasing: bool) -> Arc<Self> {
        let state = State { members: SiteMembers::new(leasing), changed: BTreeMap::new() };
        Arc::new(Self { ca, rule, state: Mutex::new(state), alone: Arc::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the peer `node`, seen at `observed`, which opened the swarm of `manifest` with
    /// `record`. A peer that may not seed takes chunks of its neighbours, and none of them learns
    /// of it. Returns `None` if the record is not the peer's own or does not verify: the peer is
    /// served all the same, but takes no part in the exchange.
    pub(crate) fn join(
        self: &Arc<Self>,
        node: NodeId,
        observed: SocketAddr,
        manifest: ManifestId,
        mut record: PeerRecord,
        may_seed: bool,
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
        if !may_seed {
            record.addresses.clear();
        }
        let mut state = self.state();
        let id = state.members.handle_joined(now, site.clone(), node, manifest, record);
        state.notify(&site);
        Some(Member { sites: self.clone(), site, node, id, may_seed })
    }

    /// Number of nodes that take part and have the swarm open here.
    pub fn members(&self, manifest: &ManifestId) -> usize {
        self.state().members.count(manifest)
    }

    /// Nodes that have the swarm open here and listen, with their addresses as seen.
    pub(crate) fn callers(&self, manifest: &ManifestId) -> Vec<Neighbour> {
        self.state().members.callers(manifest)
    }

    /// Resident nodes of all sites, with their addresses.
    pub(crate) fn residents(&self) -> Vec<Neighbour> {
        self.state().members.residents(unix_now())
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
        if state.members.handle_learned(unix_now(), &site, node, manifest, record) {
            state.notify(&site);
        }
    }
}

impl Member {
    /// Records chunks that the node announced.
    pub(crate) fn have(&self, chunks: &ChunkRanges) {
        self.sites.state().members.handle_have(monotonic_now(), self.id, chunks);
    }

    /// Records the nodes from which this node takes nothing.
    pub(crate) fn shuns(&self, nodes: BTreeSet<NodeId>) {
        let mut state = self.sites.state();
        state.members.handle_shuns(unix_now(), self.id, nodes);
        state.notify(&self.site);
    }

    /// Nodes that several of the site shun. Empty where chunks are not leased.
    pub(crate) fn distrusted(&self) -> Vec<NodeId> {
        self.sites.state().members.distrusted(self.id)
    }

    /// Takes a newer record of the node. That of a node which may not seed says nothing new.
    pub(crate) fn refresh(&self, observed: SocketAddr, record: PeerRecord) {
        let now = unix_now();
        if self.may_seed && verify_record(&record, &self.sites.ca, now) == Ok(self.node) {
            let seen = observed.ip().to_canonical();
            self.sites.state().members.handle_renewed(now, self.id, seen, record);
        }
    }

    /// Receiver that is marked as changed when the directory of the node's site changes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.sites.changes(&self.site)
    }

    /// Records of the node's neighbours, best first.
    pub(crate) fn neighbours(&self, chunks: &ChunkRanges) -> Vec<(NodeId, PeerRecord)> {
        self.sites.state().members.neighbours(monotonic_now(), unix_now(), self.id, chunks)
    }

    /// Splits `wanted` into the chunks that the node gets, perhaps under a lease, and those left to
    /// a neighbour.
    pub(crate) fn lease(&self, wanted: &ChunkRanges) -> (Option<BatchLease<'_>>, ChunkRanges, ChunkRanges) {
        let division = self.sites.state().members.handle_request(monotonic_now(), self.id, wanted);
        if division.newly_alone {
            tracing::info!(node = %self.node, site = self.site.0, "a node gets nothing from its neighbours; sending it everything");
            self.sites.alone.fetch_add(1, Ordering::Relaxed);
        }
        let lease = division.lease.map(|id| BatchLease { member: self, id });
        (lease, division.granted, division.refused)
    }

    /// Splits `wanted` into the chunks that the node gets and those left to neighbours: the chunks
    /// recently sent to the site, if there are many askers at once.
    pub(crate) fn left_after_duplicates(
        &self,
        wanted: ChunkRanges,
        is_suppressing: bool,
        by_relay: bool,
    ) -> (ChunkRanges, ChunkRanges) {
        let now = monotonic_now();
        self.sites.state().members.suppress_duplicates(now, self.id, wanted, is_suppressing, by_relay)
    }
}

impl BatchLease<'_> {
    /// Records that a chunk is on its way.
    pub(crate) fn sent(&self, chunk: ChunkId) {
        let member = self.member;
        member.sites.state().members.handle_sent(monotonic_now(), member.id, self.id, chunk);
    }
}

impl Drop for BatchLease<'_> {
    fn drop(&mut self) {
        let member = self.member;
        member.sites.state().members.handle_lease_end(monotonic_now(), member.id, self.id);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.sites.state().members.handle_left(self.id);
    }
}
