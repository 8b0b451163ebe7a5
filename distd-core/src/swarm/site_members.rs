//! [`SiteMembers`]: the nodes that take part in the exchange of their sites, as one answerer knows
//! them, and which of them it leaves to fetch a chunk for the others.
//!
//! # Goals
//! - Where chunks are leased, each chunk is sent into a site once, and a node that does not reach
//!   its neighbours is sent everything.
//! - Elsewhere a node with many askers at once sends each chunk to a site once for a while.
//! - A node cannot direct others to an address where it was not seen.
//!
//! # Non-goals
//! - Signatures of records: the caller verifies them.
//!
//! # Example
//! Two devices of one site open a swarm at an origin. The first asks for the chunks 1 to 3 and is
//! sent them; the second is left to fetch them from the first.
//!
//! ```
//! use distd_core::proto::frame::PeerRecord;
//! use distd_core::ranges::ChunkRanges;
//! use distd_core::swarm::{SiteKey, SiteMembers};
//! use distd_core::time::Timestamp;
//! use distd_core::{ChunkId, ManifestId, NodeId};
//!
//! let (now, unix, manifest) = (Timestamp(0), 1_700_000_000, ManifestId([7; 32]));
//! let record = |n: u8| PeerRecord {
//!     sequence: 1,
//!     expires: unix + 3600,
//!     resident: false,
//!     site: String::new(),
//!     addresses: vec![([10, 0, 0, n], 4434).into()],
//!     certificate: Default::default(),
//!     signature: [0; 64],
//! };
//! let chunks: ChunkRanges = [ChunkId(1)..=ChunkId(3)].into_iter().collect();
//! let mut sites = SiteMembers::new(true);
//! let [a, b] = [1, 2].map(|n| {
//!     sites.handle_joined(unix, SiteKey::default(), NodeId([n; 16]), manifest, record(n))
//! });
//! assert_eq!(sites.handle_request(now, a, &chunks).granted, chunks);
//! assert_eq!(sites.handle_request(now, b, &chunks).refused, chunks);
//! assert_eq!(sites.neighbours(now, unix, b, &chunks)[0].0, NodeId([1; 16]));
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::reach::Reach;
use super::{Directory, LeaseId, Leases, Neighbour, RecentlySent, Requester, SiteKey};
use crate::proto::frame::PeerRecord;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;
use crate::{ChunkId, ManifestId, NodeId};

/// A node that has one swarm open at the answerer and takes part in the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(u64);

#[derive(Debug)]
struct Member {
    site: SiteKey,
    node: NodeId,
    manifest: ManifestId,
    resident: bool,
    /// Addresses where the node listens; empty if it serves nobody.
    addresses: Vec<SocketAddr>,
    reach: Reach,
}

impl Member {
    fn serves(&self) -> bool {
        !self.addresses.is_empty()
    }

    fn key(&self) -> (SiteKey, ManifestId) {
        (self.site.clone(), self.manifest)
    }
}

/// Leases of one swarm's chunks at one site, and the chunks sent to or announced by any node of the
/// site.
#[derive(Debug, Default)]
struct Leased {
    leases: Leases,
    there: ChunkRanges,
}

/// Division of a request between the member and its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// The lease under which the granted chunks are sent; `None` where chunks are not leased, or if
    /// the node does not reach its neighbours.
    pub lease: Option<LeaseId>,
    /// Chunks that the node gets now.
    pub granted: ChunkRanges,
    /// Chunks that are left to neighbours.
    pub refused: ChunkRanges,
    /// Whether the node was found not to reach its neighbours, with this request.
    pub newly_alone: bool,
}

/// The members of all sites of one answerer.
#[derive(Debug)]
pub struct SiteMembers {
    /// Whether chunks are leased: only where each chunk sent is uplink traffic.
    leasing: bool,
    directory: Directory,
    leased: BTreeMap<(SiteKey, ManifestId), Leased>,
    recently_sent: BTreeMap<(SiteKey, ManifestId), RecentlySent>,
    members: BTreeMap<MemberId, Member>,
    /// Members by swarm.
    swarms: BTreeMap<ManifestId, BTreeSet<MemberId>>,
    next: u64,
}

impl SiteMembers {
    /// Starts without members, at an answerer that leases chunks or does not.
    pub fn new(leasing: bool) -> Self {
        Self {
            leasing,
            directory: Directory::default(),
            leased: BTreeMap::new(),
            recently_sent: BTreeMap::new(),
            members: BTreeMap::new(),
            swarms: BTreeMap::new(),
            next: 0,
        }
    }

    /// A node of `site` opened the swarm of `manifest` with its own, verified record. `unix` is in
    /// unix seconds.
    pub fn handle_joined(
        &mut self,
        unix: u64,
        site: SiteKey,
        node: NodeId,
        manifest: ManifestId,
        record: PeerRecord,
    ) -> MemberId {
        let id = MemberId(self.next);
        self.next += 1;
        let (resident, addresses) = (record.resident, record.addresses.clone());
        self.directory.handle_record(unix, &site, node, record);
        self.directory.handle_joined(&site, node, resident, manifest);
        self.swarms.entry(manifest).or_default().insert(id);
        let reach = Reach::default();
        self.members.insert(id, Member { site, node, manifest, resident, addresses, reach });
        id
    }

    /// Another node advertised a verified record, of a node in the swarm of `manifest`. Returns
    /// whether the record was new.
    pub fn handle_learned(
        &mut self,
        unix: u64,
        site: &SiteKey,
        node: NodeId,
        manifest: ManifestId,
        record: PeerRecord,
    ) -> bool {
        let resident = record.resident;
        let fresh = self.directory.handle_record(unix, site, node, record);
        if fresh {
            self.directory.handle_joined(site, node, resident, manifest);
        }
        fresh
    }

    /// A member, seen at `seen`, sent a newer verified record of itself. A private address must
    /// stay the same: a node that changed it again and again could have others dial one host after
    /// another.
    pub fn handle_renewed(&mut self, unix: u64, id: MemberId, seen: IpAddr, record: PeerRecord) {
        let Some(member) = self.members.get(&id) else { return };
        let here = record.addresses.iter().all(|address| address.ip() == seen);
        if record.resident == member.resident && (here || record.addresses == member.addresses) {
            self.directory.handle_record(unix, &member.site, member.node, record);
        }
    }

    /// A member announced chunks. The others of the site are not notified: they learn of chunks
    /// from the node itself.
    pub fn handle_have(&mut self, now: Timestamp, id: MemberId, chunks: &ChunkRanges) {
        let Some(member) = self.members.get_mut(&id) else { return };
        self.directory.handle_have(&member.site, member.node, member.resident, chunks);
        if !self.leasing {
            return;
        }
        if let Some(leased) = self.leased.get(&member.key()) {
            member.reach.handle_have(chunks, &leased.there);
        }
        if member.serves() && !member.resident && !member.reach.is_alone() {
            let leased = self.leased.entry(member.key()).or_default();
            leased.leases.handle_have(now, member.node, chunks);
            leased.there.extend(chunks);
        }
    }

    /// A member names the nodes from which it takes nothing, at `unix` (unix seconds).
    pub fn handle_shuns(&mut self, unix: u64, id: MemberId, nodes: BTreeSet<NodeId>) {
        if let Some(member) = self.members.get(&id) {
            self.directory.handle_shuns(unix, &member.site, member.node, nodes);
        }
    }

    /// Returns the nodes that several of the member's site shun. Empty where chunks are not leased:
    /// askers that pass such a relay by turn to the node that leases.
    pub fn distrusted(&self, id: MemberId) -> Vec<NodeId> {
        let member = self.members.get(&id).filter(|_| self.leasing);
        let nodes = member.map(|member| self.directory.shuns(&member.site).distrusted_by_origin());
        nodes.into_iter().flatten().copied().collect()
    }

    /// Returns the records of the member's neighbours in the swarm of the chunks `chunks`, best
    /// first.
    pub fn neighbours(
        &self,
        now: Timestamp,
        unix: u64,
        id: MemberId,
        chunks: &ChunkRanges,
    ) -> Vec<(NodeId, PeerRecord)> {
        let Some(member) = self.members.get(&id) else { return Vec::new() };
        let holders: Vec<NodeId> = self
            .leased
            .get(&member.key())
            .map(|leased| leased.leases.holders(now).collect())
            .unwrap_or_default();
        let requester = Requester { node: member.node, manifest: member.manifest, chunks };
        self.directory.ranked(unix, &member.site, requester, &holders)
    }

    /// Divides a request that has an upload slot, by leases.
    pub fn handle_request(&mut self, now: Timestamp, id: MemberId, wanted: &ChunkRanges) -> Division {
        let mut division = Division {
            lease: None,
            granted: wanted.clone(),
            refused: ChunkRanges::new(),
            newly_alone: false,
        };
        let Some(member) = self.members.get_mut(&id).filter(|_| self.leasing) else { return division };
        self.leased.retain(|_, leased| !leased.leases.is_idle(now));
        let leased = self.leased.entry(member.key()).or_default();
        division.newly_alone = member.reach.handle_request(now);
        if division.newly_alone {
            // Nor do the others wait for this node.
            leased.leases.handle_gone(member.node);
        }
        if member.reach.is_alone() {
            return division;
        }
        let shuns = self.directory.shuns(&member.site);
        let (lease, granted, refused) =
            leased.leases.handle_request(now, member.node, wanted, member.serves(), shuns);
        member.reach.handle_answer(now, &granted, &refused, &leased.there);
        Division { lease: Some(lease), granted, refused, ..division }
    }

    /// Splits a request, before it has an upload slot, into the chunks that the member gets and
    /// those left to neighbours: the chunks recently sent to the site, if the answerer has many
    /// askers at once. `by_relay`: whether the answerer is a relay.
    pub fn suppress_duplicates(
        &mut self,
        now: Timestamp,
        id: MemberId,
        wanted: ChunkRanges,
        is_suppressing: bool,
        by_relay: bool,
    ) -> (ChunkRanges, ChunkRanges) {
        let Some(member) = self.members.get(&id).filter(|_| !self.leasing) else {
            return (wanted, ChunkRanges::new());
        };
        let recently_sent =
            self.recently_sent.entry(member.key()).or_insert_with(|| RecentlySent::of(by_relay));
        let (granted, left) = match is_suppressing {
            true => recently_sent.handle_request(now, &wanted),
            false => (wanted, ChunkRanges::new()),
        };
        if member.serves() {
            recently_sent.handle_granted(now, &granted);
        }
        (granted, left)
    }

    /// A chunk granted under a lease is on its way.
    pub fn handle_sent(&mut self, now: Timestamp, id: MemberId, lease: LeaseId, chunk: ChunkId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.reach.handle_sent(chunk);
        if let Some(leased) = self.leased.get_mut(&member.key()) {
            leased.leases.handle_sent(now, lease, chunk);
            leased.there.insert(chunk);
        }
    }

    /// The batch of a lease ended.
    pub fn handle_lease_end(&mut self, now: Timestamp, id: MemberId, lease: LeaseId) {
        let Some(member) = self.members.get(&id) else { return };
        if let Some(leased) = self.leased.get_mut(&member.key()) {
            leased.leases.handle_end(now, lease);
        }
    }

    /// A member closed the swarm, or its connection ended.
    pub fn handle_left(&mut self, id: MemberId) {
        let Some(member) = self.members.remove(&id) else { return };
        if let Some(swarm) = self.swarms.get_mut(&member.manifest) {
            swarm.remove(&id);
            if swarm.is_empty() {
                self.swarms.remove(&member.manifest);
                self.recently_sent.retain(|(_, manifest), _| *manifest != member.manifest);
            }
        }
        let gone = self.directory.handle_left(&member.site, member.node, member.resident, member.manifest);
        if gone && let Some(leased) = self.leased.get_mut(&member.key()) {
            leased.leases.handle_gone(member.node);
        }
    }

    /// Returns the number of members that have the swarm open.
    pub fn count(&self, manifest: &ManifestId) -> usize {
        self.swarms.get(manifest).map_or(0, BTreeSet::len)
    }

    /// Returns the resident nodes whose records have not expired at `unix` (unix seconds), with
    /// their first address.
    pub fn residents(&self, unix: u64) -> Vec<Neighbour> {
        self.directory.residents(unix)
    }

    /// Returns the members that have the swarm open and listen, with their first address.
    pub fn callers(&self, manifest: &ManifestId) -> Vec<Neighbour> {
        let ids = self.swarms.get(manifest).into_iter().flatten();
        let members = ids.filter_map(|id| self.members.get(id));
        members
            .filter_map(|member| Some(Neighbour { node: member.node, address: *member.addresses.first()? }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);
    const UNIX: u64 = 1_000_000;
    const V1: ManifestId = ManifestId([1; 32]);

    fn set(first: u64, last: u64) -> ChunkRanges {
        [ChunkId(first)..=ChunkId(last)].into_iter().collect()
    }

    fn record(n: u8, serves: bool, sequence: u64) -> PeerRecord {
        PeerRecord {
            sequence,
            expires: UNIX + 3600,
            resident: false,
            site: String::new(),
            addresses: serves.then(|| ([10, 0, 0, n], 4434).into()).into_iter().collect(),
            certificate: Bytes::new(),
            signature: [0; 64],
        }
    }

    fn join(sites: &mut SiteMembers, n: u8, serves: bool) -> MemberId {
        sites.handle_joined(UNIX, SiteKey::default(), NodeId([n; 16]), V1, record(n, serves, 1))
    }

    #[test]
    fn a_member_that_leaves_gives_back_its_leases() {
        let mut sites = SiteMembers::new(true);
        let (a, b) = (join(&mut sites, 1, true), join(&mut sites, 2, true));
        let lease = sites.handle_request(T0, a, &set(1, 3)).lease.expect("leased");
        sites.handle_sent(T0, a, lease, ChunkId(1));
        assert_eq!(sites.handle_request(T0, b, &set(1, 4)).granted, set(4, 4));
        sites.handle_left(a);
        assert_eq!(sites.handle_request(T0, b, &set(1, 3)).granted, set(1, 3));
        assert_eq!((sites.count(&V1), sites.callers(&V1).len()), (1, 1));
        sites.handle_left(b);
        assert_eq!(sites.count(&V1), 0);
    }

    #[test]
    fn a_member_that_gets_nothing_from_its_neighbours_is_sent_everything() {
        let mut sites = SiteMembers::new(true);
        let (a, b) = (join(&mut sites, 1, true), join(&mut sites, 2, true));
        let lease = sites.handle_request(T0, a, &set(1, 3)).lease.expect("leased");
        set(1, 3).ids().for_each(|id| sites.handle_sent(T0, a, lease, id));
        assert_eq!(sites.handle_request(T0, b, &set(1, 3)).refused, set(1, 3));
        let later = T0 + Duration::from_secs(20);
        let division = sites.handle_request(later, b, &set(1, 3));
        assert!(division.newly_alone && division.lease.is_none());
        assert_eq!(division.granted, set(1, 3));
        assert!(!sites.handle_request(later, b, &set(1, 3)).newly_alone, "reported once");
    }

    #[test]
    fn duplicates_are_suppressed_only_with_many_batches_and_where_chunks_are_not_leased() {
        for (leasing, suppressing, left) in
            [(false, true, set(1, 3)), (false, false, set(1, 0)), (true, true, set(1, 0))]
        {
            let mut sites = SiteMembers::new(leasing);
            let (a, b) = (join(&mut sites, 1, true), join(&mut sites, 2, true));
            sites.suppress_duplicates(T0, a, set(1, 3), false, true);
            let (granted, refused) = sites.suppress_duplicates(T0, b, set(1, 3), suppressing, true);
            assert_eq!((&refused, granted), (&left, set(1, 3).difference(&left)));
        }
        // A node that serves nobody passes nothing on.
        let mut sites = SiteMembers::new(false);
        let (a, b) = (join(&mut sites, 1, false), join(&mut sites, 2, true));
        sites.suppress_duplicates(T0, a, set(1, 3), false, true);
        assert_eq!(sites.suppress_duplicates(T0, b, set(1, 3), true, true).0, set(1, 3));
    }

    #[test]
    fn relays_are_distrusted_only_where_chunks_are_leased() {
        for (leasing, expected) in [(true, vec![NodeId([9; 16])]), (false, Vec::new())] {
            let mut sites = SiteMembers::new(leasing);
            let members = [join(&mut sites, 1, true), join(&mut sites, 2, true)];
            members.iter().for_each(|id| sites.handle_shuns(UNIX, *id, [NodeId([9; 16])].into()));
            assert_eq!(sites.distrusted(members[0]), expected);
        }
    }

    #[test]
    fn a_renewed_record_may_name_a_new_address_only_where_the_node_was_seen() {
        let advertised = |sites: &SiteMembers, to| -> Vec<SocketAddr> {
            let ranked = sites.neighbours(T0, UNIX, to, &set(1, 9));
            ranked.into_iter().flat_map(|(_, record)| record.addresses).collect()
        };
        let at = |n: u8| SocketAddr::from(([10, 0, 0, n], 4434));
        let mut sites = SiteMembers::new(true);
        let (a, b) = (join(&mut sites, 1, true), join(&mut sites, 2, true));
        sites.handle_renewed(UNIX, a, at(1).ip(), record(7, true, 2));
        assert_eq!(advertised(&sites, b), [at(1)]);
        sites.handle_renewed(UNIX, a, at(7).ip(), record(7, true, 3));
        assert_eq!(advertised(&sites, b), [at(7)]);
    }
}
