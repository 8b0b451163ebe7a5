//! The sites of the nodes that ask: who of them listens where, and what one of them is fetching for the others.
//!
//! The decisions are the core's [`Directory`] and [`Leases`]; here they get verified records, the time, and a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distd_core::proto::frame::PeerRecord;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{Asker, Directory, Lately, LeaseId, Leases, SiteKey};
use distd_core::{ChunkId, ManifestId, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::clock::{monotonic_now, unix_now};
use crate::trust::record::verify_record;

/// Who is of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteRule {
    /// All who ask, whatever they say: a device's neighbours.
    All,
    /// Those that name the same site, and those that name none: a relay's office.
    Named,
    /// Those that name the same site; of the others those that are seen at one network: behind one public IPv4 address, in one
    /// IPv4 /24 of private addresses, in one IPv6 /64.
    NamedOrNetwork,
}

/// All sites this node answers.
pub struct Sites {
    ca: CertificateDer<'static>,
    rule: SiteRule,
    /// Whether chunks are leased: only where each one sent is uplink traffic. Elsewhere a crowd gets each once for a while.
    leasing: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    directory: Directory,
    leases: BTreeMap<(SiteKey, ManifestId), Leases>,
    lately: BTreeMap<(SiteKey, ManifestId), Lately>,
    changed: BTreeMap<SiteKey, watch::Sender<()>>,
    /// Open control streams of nodes that take part, by swarm: who, and where it listens if it does.
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

/// A node in one swarm, for as long as its control stream is open.
pub(crate) struct Member {
    sites: Arc<Sites>,
    site: SiteKey,
    node: NodeId,
    manifest: ManifestId,
    resident: bool,
    listens: Option<SocketAddr>,
}

/// Leased chunks on their way in one batch. Dropping it frees what was not sent.
pub(crate) struct BatchLease<'m> {
    member: &'m Member,
    id: LeaseId,
}

impl Sites {
    /// For nodes of the realm with this CA.
    pub fn new(ca: CertificateDer<'static>, rule: SiteRule, leasing: bool) -> Arc<Self> {
        Arc::new(Self { ca, rule, leasing, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer `node`, seen at `observed`, opened the swarm of `manifest` with `record`. `None` when the record is not its own or
    /// does not verify: it is served all the same, but takes no part in the exchange.
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
                tracing::info!(%node, %signer, "a node sent another's record as its own");
                return None;
            }
            Err(error) => {
                tracing::info!(%node, %error, "peer record refused");
                return None;
            }
        }
        let seen = observed.ip().to_canonical();
        if let Some(elsewhere) = record.addresses.iter().find(|address| address.ip() != seen) {
            // Nobody can have others sent to an address that is not theirs.
            tracing::info!(%node, %seen, %elsewhere, "peer record names an address its node was not seen at");
            return None;
        }
        let site = self.site_of(&record, seen);
        let (resident, listens) = (record.resident, record.addresses.first().copied());
        let mut state = self.state();
        state.directory.handle_record(now, &site, node, record);
        state.directory.handle_joined(&site, node, resident, manifest);
        state.members.entry(manifest).or_default().push((node, listens));
        state.tell(&site);
        Some(Member { sites: self.clone(), site, node, manifest, resident, listens })
    }

    fn site_of(&self, record: &PeerRecord, seen: IpAddr) -> SiteKey {
        SiteKey(match self.rule {
            SiteRule::All => String::new(),
            _ if !record.site.is_empty() => format!("site {}", record.site),
            SiteRule::Named => String::new(),
            SiteRule::NamedOrNetwork => network_of(seen),
        })
    }

    /// How many nodes that take part have the swarm open here.
    pub fn members(&self, manifest: &ManifestId) -> usize {
        self.state().members.get(manifest).map_or(0, Vec::len)
    }

    /// Who of them listens where, as seen.
    pub(crate) fn callers(&self, manifest: &ManifestId) -> Vec<(NodeId, SocketAddr)> {
        let state = self.state();
        let members = state.members.get(manifest).into_iter().flatten();
        members.filter_map(|(node, listens)| Some((*node, (*listens)?))).collect()
    }

    /// Marked as changed when somebody of a site came.
    pub(crate) fn changes(&self, site: &SiteKey) -> watch::Receiver<()> {
        let mut state = self.state();
        state.changed.entry(site.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// A record heard of from elsewhere, verified already, of a node in the swarm of `manifest`.
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

/// Names the network an address is in.
fn network_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) if ip.is_private() || ip.is_loopback() || ip.is_link_local() => {
            let [a, b, c, _] = ip.octets();
            format!("network {a}.{b}.{c}.0/24")
        }
        IpAddr::V4(ip) => format!("network {ip}/32"),
        IpAddr::V6(ip) => {
            let prefix = ip.to_bits() >> 64 << 64;
            format!("network {}/64", std::net::Ipv6Addr::from_bits(prefix))
        }
    }
}

impl Member {
    /// The node announced chunks.
    pub(crate) fn have(&self, chunks: &ChunkRanges) {
        let mut state = self.sites.state();
        state.directory.handle_have(&self.site, self.node, self.resident, chunks);
        if self.sites.leasing && self.listens.is_some() && !self.resident {
            let leases = state.leases.entry((self.site.clone(), self.manifest)).or_default();
            leases.handle_have(monotonic_now(), self.node, chunks);
        }
        // No word to the others: they learn of chunks from the node itself.
    }

    /// The node says whom it takes nothing of.
    pub(crate) fn shuns(&self, nodes: BTreeSet<NodeId>) {
        let mut state = self.sites.state();
        state.directory.handle_shuns(unix_now(), &self.site, self.node, nodes);
        state.tell(&self.site);
    }

    /// Of whom several of the site take nothing, where chunks are leased: who leases them is asked first when they are passed by.
    pub(crate) fn disowned(&self) -> Vec<NodeId> {
        let state = self.sites.state();
        let shuns = state.directory.shuns(&self.site);
        shuns.disowned().filter(|_| self.sites.leasing).copied().collect()
    }

    /// The node sent its record anew.
    pub(crate) fn refresh(&self, observed: SocketAddr, record: PeerRecord) {
        let verified = verify_record(&record, &self.sites.ca, unix_now()) == Ok(self.node);
        let seen = observed.ip().to_canonical();
        if verified && record.resident == self.resident && record.addresses.iter().all(|a| a.ip() == seen) {
            self.sites.state().directory.handle_record(unix_now(), &self.site, self.node, record);
        }
    }

    /// Marked as changed when somebody of the site came.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.sites.changes(&self.site)
    }

    /// Its neighbours, best first.
    pub(crate) fn neighbours(&self, chunks: &ChunkRanges) -> Vec<(NodeId, PeerRecord)> {
        let state = self.sites.state();
        let holders: Vec<NodeId> = state
            .leases
            .get(&(self.site.clone(), self.manifest))
            .map(|leases| leases.holders(monotonic_now()).collect())
            .unwrap_or_default();
        let asker = Asker { node: self.node, manifest: self.manifest, chunks };
        state.directory.ranked(unix_now(), &self.site, asker, &holders)
    }

    /// What of `wanted` the node gets, and what is left to a neighbour. `None` where nothing is leased.
    pub(crate) fn lease(&self, wanted: &ChunkRanges) -> Option<(BatchLease<'_>, ChunkRanges, ChunkRanges)> {
        if !self.sites.leasing {
            return None;
        }
        let mut state = self.sites.state();
        let now = monotonic_now();
        state.leases.retain(|_, leases| !leases.is_idle(now));
        let State { directory, leases, .. } = &mut *state;
        let leases = leases.entry((self.site.clone(), self.manifest)).or_default();
        let shuns = directory.shuns(&self.site);
        let (id, granted, refused) =
            leases.handle_request(now, self.node, wanted, self.listens.is_some(), shuns);
        Some((BatchLease { member: self, id }, granted, refused))
    }

    /// What of `wanted` the node gets, and what is left to neighbours because they were sent it a moment ago and there is a crowd.
    pub(crate) fn left_lately(
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
        let lately = state.lately.entry(key).or_insert_with(|| Lately::of(by_relay));
        let now = monotonic_now();
        let (granted, left) = match crowd {
            true => lately.handle_request(now, &wanted),
            false => (wanted, ChunkRanges::new()),
        };
        if self.listens.is_some() {
            lately.handle_granted(now, &granted);
        }
        (granted, left)
    }

    fn with_leases(&self, change: impl FnOnce(&mut Leases)) {
        if let Some(leases) = self.sites.state().leases.get_mut(&(self.site.clone(), self.manifest)) {
            change(leases);
        }
    }
}

impl BatchLease<'_> {
    /// A chunk is on its way.
    pub(crate) fn sent(&self, chunk: ChunkId) {
        self.member.with_leases(|leases| leases.handle_sent(monotonic_now(), self.id, chunk));
    }
}

impl Drop for BatchLease<'_> {
    fn drop(&mut self) {
        self.member.with_leases(|leases| leases.handle_end(monotonic_now(), self.id));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.sites.state();
        if let Some(members) = state.members.get_mut(&self.manifest) {
            let own = members.iter().position(|member| *member == (self.node, self.listens));
            own.map(|at| members.swap_remove(at));
            if members.is_empty() {
                state.members.remove(&self.manifest);
                state.lately.retain(|(_, manifest), _| *manifest != self.manifest);
            }
        }
        let gone = state.directory.handle_left(&self.site, self.node, self.resident, self.manifest);
        if gone && let Some(leases) = state.leases.get_mut(&(self.site.clone(), self.manifest)) {
            leases.handle_gone(self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_what_a_site_is_seen_at() {
        for (ip, network) in [
            ("192.168.7.9", "network 192.168.7.0/24"),
            ("203.0.113.9", "network 203.0.113.9/32"),
            ("2001:db8:1:2:3:4:5:6", "network 2001:db8:1:2::/64"),
        ] {
            assert_eq!(network_of(ip.parse().expect("an address")), network);
        }
    }
}
