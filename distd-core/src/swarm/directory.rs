//! [`Directory`]: nodes of each site, their addresses and the chunks they hold.
//!
//! Pure: callers pass verified records and the time. Every node that answers keeps a directory: a
//! parent for its children, a device for the neighbours advertised to it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Neighbour, Shuns};
use crate::bounds::{DIRECTORY_NODES_MAX, DIRECTORY_SITES_MAX, PEX_RECORDS_MAX};
use crate::proto::frame::PeerRecord;
use crate::ranges::ChunkRanges;
use crate::{ManifestId, NodeId};

/// Most disjoint ranges remembered of the chunks a node holds. A node with more ranks lower than it
/// could; nothing else changes.
const HELD_RANGES_MAX: usize = 1024;

/// Name of one site, chosen by the caller. Nodes of a site may exchange chunks with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SiteKey(pub String);

#[derive(Debug)]
struct Entry {
    record: PeerRecord,
    held: ChunkRanges,
    /// Swarms the node is in now, each with the number of times the node opened it.
    swarms: BTreeMap<ManifestId, u32>,
    /// Time of the node's last record, unix seconds.
    heard: u64,
}

/// Node id, and whether the process is resident. The agent and a pull of one device listen at two
/// addresses and have one entry each.
type Key = (NodeId, bool);

#[derive(Debug, Default)]
struct Site {
    nodes: BTreeMap<Key, Entry>,
    shuns: Shuns,
    heard: u64,
}

/// All sites. Bounded: `DIRECTORY_SITES_MAX` sites of `DIRECTORY_NODES_MAX` nodes.
#[derive(Debug, Default)]
pub struct Directory {
    sites: BTreeMap<SiteKey, Site>,
    nothing_said: Shuns,
}

/// A node that asks for neighbours, and its swarm.
#[derive(Clone, Copy, Debug)]
pub struct Requester<'a> {
    /// The asking node. It is not advertised to itself.
    pub node: NodeId,
    /// Id of the swarm's manifest.
    pub manifest: ManifestId,
    /// Chunks of the swarm.
    pub chunks: &'a ChunkRanges,
}

impl Directory {
    /// Takes a record at `now` (unix seconds). The caller has verified its signatures and
    /// addresses. Returns false if the record has expired or is not newer than the known one.
    pub fn handle_record(&mut self, now: u64, site: &SiteKey, node: NodeId, record: PeerRecord) -> bool {
        if record.expires <= now {
            return false;
        }
        if !self.sites.contains_key(site) && self.sites.len() >= DIRECTORY_SITES_MAX {
            let oldest = self.sites.iter().min_by_key(|(_, site)| site.heard).map(|(key, _)| key.clone());
            oldest.map(|key| self.sites.remove(&key));
        }
        let group = self.sites.entry(site.clone()).or_default();
        group.heard = now;
        group.nodes.retain(|_, entry| entry.record.expires > now);
        group.shuns.expire(now);
        let key = (node, record.resident);
        if let Some(entry) = group.nodes.get_mut(&key) {
            if entry.record.sequence >= record.sequence {
                return false;
            }
            entry.record = record;
            entry.heard = now;
            return true;
        }
        if group.nodes.len() >= DIRECTORY_NODES_MAX {
            let oldest = group.nodes.iter().min_by_key(|(_, entry)| entry.heard).map(|(key, _)| *key);
            oldest.map(|key| group.nodes.remove(&key));
        }
        let (held, swarms) = (ChunkRanges::new(), BTreeMap::new());
        group.nodes.insert(key, Entry { record, held, swarms, heard: now });
        group.shuns.handle_members(group.nodes.len());
        true
    }

    fn entry(&mut self, site: &SiteKey, node: NodeId, resident: bool) -> Option<&mut Entry> {
        self.sites.get_mut(site)?.nodes.get_mut(&(node, resident))
    }

    /// A node opened a swarm.
    pub fn handle_joined(&mut self, site: &SiteKey, node: NodeId, resident: bool, manifest: ManifestId) {
        if let Some(entry) = self.entry(site, node, resident) {
            *entry.swarms.entry(manifest).or_default() += 1;
        }
    }

    /// A node announced chunks.
    pub fn handle_have(&mut self, site: &SiteKey, node: NodeId, resident: bool, chunks: &ChunkRanges) {
        let Some(entry) = self.entry(site, node, resident) else { return };
        for range in chunks.iter() {
            if entry.held.range_count() < HELD_RANGES_MAX {
                entry.held.insert_range(range);
            }
        }
    }

    /// A node says at `now` (unix seconds) which nodes it shuns; `whom` has all of them.
    pub fn handle_shuns(&mut self, now: u64, site: &SiteKey, node: NodeId, whom: BTreeSet<NodeId>) {
        if let Some(group) = self.sites.get_mut(site) {
            group.shuns.handle_shuns(now, node, whom);
        }
    }

    /// Returns the shuns of a site's nodes.
    pub fn shuns(&self, site: &SiteKey) -> &Shuns {
        self.sites.get(site).map_or(&self.nothing_said, |group| &group.shuns)
    }

    /// A node left a swarm. A node that is not resident is forgotten with its last swarm; returns
    /// true then.
    pub fn handle_left(
        &mut self,
        site: &SiteKey,
        node: NodeId,
        resident: bool,
        manifest: ManifestId,
    ) -> bool {
        let Some(group) = self.sites.get_mut(site) else { return false };
        let Some(entry) = group.nodes.get_mut(&(node, resident)) else { return false };
        if let Some(times) = entry.swarms.get_mut(&manifest) {
            *times -= 1;
            if *times == 0 {
                entry.swarms.remove(&manifest);
            }
        }
        let gone = !resident && entry.swarms.is_empty();
        if gone {
            group.nodes.remove(&(node, resident));
            group.shuns.handle_members(group.nodes.len());
        }
        if group.nodes.is_empty() && group.shuns.is_empty() {
            self.sites.remove(site);
        }
        gone
    }

    /// Returns the resident nodes of all sites whose records have not expired at `now` (unix
    /// seconds), with their first address.
    pub fn residents(&self, now: u64) -> Vec<Neighbour> {
        let entries = self.sites.values().flat_map(|site| &site.nodes);
        let listed = entries.filter(|((_, resident), entry)| *resident && entry.record.expires > now);
        let address = |entry: &Entry| entry.record.addresses.first().copied();
        listed
            .filter_map(|((node, _), entry)| Some(Neighbour { node: *node, address: address(entry)? }))
            .collect()
    }

    /// Returns the neighbours to advertise to `asker`: at most `PEX_RECORDS_MAX`, and none that the
    /// asker shuns. The first half are the best of them, in this order: nodes in `first` (they
    /// fetch for the site), then nodes that hold half of the swarm's chunks, some, or none but are
    /// in the swarm. Nodes that several others shun come after all of these. The second half are
    /// nodes in the swarm. Ties fall differently for each asker, so that not all askers go to one
    /// node.
    pub fn ranked(
        &self,
        now: u64,
        site: &SiteKey,
        asker: Requester<'_>,
        first: &[NodeId],
    ) -> Vec<(NodeId, PeerRecord)> {
        let Some(group) = self.sites.get(site) else { return Vec::new() };
        let mut found: Vec<_> = group
            .nodes
            .iter()
            .filter(|((node, _), entry)| {
                *node != asker.node
                    && !group.shuns.is_shunned_by(*node, asker.node)
                    && entry.record.expires > now
                    && !entry.record.addresses.is_empty()
            })
            .map(|((node, _), entry)| {
                let overlap = entry.held.intersection(asker.chunks).len();
                let joined = entry.swarms.contains_key(&asker.manifest);
                let holds = 2 * u32::from(overlap * 2 >= asker.chunks.len()) + u32::from(overlap > 0);
                let trusted = !group.shuns.is_distrusted_by_origin(*node);
                let rank = (trusted, first.contains(node), holds);
                let helps = overlap > 0 || joined || rank.1;
                let tie = tie(asker.node, *node);
                let fetches = (!(trusted && joined), tie);
                (helps, (std::cmp::Reverse(rank), tie), fetches, *node, entry)
            })
            .filter(|(helps, ..)| *helps)
            .collect();
        found.sort_by_key(|(_, rank, ..)| *rank);
        // The second half of the list are nodes that fetch now. With the best nodes alone, all
        // askers would know only the few nodes that have everything, however slow these are, and
        // not each other.
        let rest = found.get_mut(PEX_RECORDS_MAX / 2..).unwrap_or_default();
        rest.sort_by_key(|(_, _, fetches, ..)| *fetches);
        let listed = found.into_iter().take(PEX_RECORDS_MAX);
        listed.map(|(.., node, entry)| (node, entry.record.clone())).collect()
    }
}

/// Returns a number that differs for each pair.
fn tie(asker: NodeId, node: NodeId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&asker.0).update(&node.0);
    u64::from_be_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("eight of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ChunkId;

    const NOW: u64 = 1_000_000;
    const V1: ManifestId = ManifestId([1; 32]);
    const V2: ManifestId = ManifestId([2; 32]);

    fn node(n: u16) -> NodeId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    }

    fn site() -> SiteKey {
        SiteKey("hall".into())
    }

    fn record(n: u16, resident: bool, expires: u64) -> PeerRecord {
        PeerRecord {
            sequence: 1,
            expires,
            resident,
            site: String::new(),
            addresses: vec![([10, 0, (n >> 8) as u8, n as u8], 4434).into()],
            certificate: Bytes::new(),
            signature: [0; 64],
        }
    }

    fn set(start: u64, end: u64) -> ChunkRanges {
        [ChunkId(start)..=ChunkId(end)].into_iter().collect()
    }

    fn ports(records: &[(NodeId, PeerRecord)]) -> Vec<u8> {
        records
            .iter()
            .map(|(_, r)| match r.addresses[0].ip() {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            })
            .collect()
    }

    #[test]
    fn a_list_is_short_ranked_and_of_one_site() {
        let mut directory = Directory::default();
        let chunks = set(1, 100);
        for n in 1..=20 {
            assert!(directory.handle_record(NOW, &site(), node(n), record(n, false, NOW + 60)));
            directory.handle_joined(&site(), node(n), false, V2);
        }
        // Holds chunks of a similar manifest and is not in the swarm itself.
        directory.handle_record(NOW, &site(), node(30), record(30, true, NOW + 60));
        directory.handle_have(&site(), node(30), true, &set(50, 500));
        directory.handle_have(&site(), node(7), false, &set(1, 90));
        directory.handle_record(NOW, &SiteKey("other".into()), node(40), record(40, true, NOW + 60));
        let asker = Requester { node: node(3), manifest: V2, chunks: &chunks };
        let list = ports(&directory.ranked(NOW, &site(), asker, &[node(9)]));
        assert_eq!(list.len(), PEX_RECORDS_MAX);
        assert_eq!(list[..3], [9, 7, 30], "who fetches, then who holds most");
        assert!(!list.contains(&3) && !list.contains(&40));
        let other = ports(&directory.ranked(NOW, &site(), Requester { node: node(4), ..asker }, &[node(9)]));
        assert_ne!(list[3..], other[3..], "another asker is sent to others");
        let nobody = Requester { manifest: V1, chunks: &set(900, 901), ..asker };
        assert!(directory.ranked(NOW, &site(), nobody, &[]).is_empty(), "nobody has any of it");
    }

    #[test]
    fn a_record_expires_and_an_older_one_does_not_come_back() {
        let mut directory = Directory::default();
        let newer = PeerRecord { sequence: 2, ..record(1, true, NOW + 60) };
        assert!(directory.handle_record(NOW, &site(), node(1), newer));
        assert!(!directory.handle_record(NOW, &site(), node(1), record(1, true, NOW + 600)));
        assert!(!directory.handle_record(NOW, &site(), node(2), record(2, true, NOW)));
        directory.handle_joined(&site(), node(1), true, V1);
        let chunks = set(1, 1);
        let asker = Requester { node: node(9), manifest: V1, chunks: &chunks };
        assert_eq!(directory.ranked(NOW, &site(), asker, &[]).len(), 1);
        assert!(directory.ranked(NOW + 60, &site(), asker, &[]).is_empty());
    }

    #[test]
    fn a_pull_is_forgotten_when_it_leaves_and_an_agent_is_not() {
        let mut directory = Directory::default();
        for resident in [false, true] {
            directory.handle_record(NOW, &site(), node(1), record(1, resident, NOW + 60));
            directory.handle_joined(&site(), node(1), resident, V1);
            directory.handle_have(&site(), node(1), resident, &set(1, 5));
        }
        assert!(directory.handle_left(&site(), node(1), false, V1));
        assert!(!directory.handle_left(&site(), node(1), true, V1));
        let chunks = set(1, 5);
        let asker = Requester { node: node(9), manifest: V1, chunks: &chunks };
        let list = directory.ranked(NOW, &site(), asker, &[]);
        assert!(list.len() == 1 && list[0].1.resident);
    }

    #[test]
    fn half_of_a_list_are_nodes_that_fetch_now_although_others_hold_everything() {
        let mut directory = Directory::default();
        let chunks = set(1, 100);
        for n in 1..=40 {
            directory.handle_record(NOW, &site(), node(n), record(n, true, NOW + 60));
            match n {
                1..=20 => directory.handle_have(&site(), node(n), true, &chunks),
                _ => directory.handle_joined(&site(), node(n), true, V1),
            }
        }
        let told = |to| {
            let asker = Requester { node: node(to), manifest: V1, chunks: &chunks };
            ports(&directory.ranked(NOW, &site(), asker, &[]))
        };
        let list = told(50);
        assert!(list[..4].iter().all(|n| *n <= 20) && list[4..].iter().all(|n| *n > 20), "{list:?}");
        assert_ne!(list[4..], told(51)[4..]);
    }

    #[test]
    fn a_node_that_several_shun_is_listed_last_and_never_to_nodes_that_shun_it() {
        let mut directory = Directory::default();
        for n in 1..=4 {
            directory.handle_record(NOW, &site(), node(n), record(n, true, NOW + 60));
            directory.handle_joined(&site(), node(n), true, V1);
        }
        directory.handle_have(&site(), node(1), true, &set(1, 9));
        let chunks = set(1, 9);
        let told = |directory: &Directory, to| {
            let asker = Requester { node: node(to), manifest: V1, chunks: &chunks };
            ports(&directory.ranked(NOW, &site(), asker, &[]))
        };
        assert_eq!(told(&directory, 9)[0], 1, "it has everything");
        directory.handle_shuns(NOW, &site(), node(2), [node(1)].into());
        assert!(!told(&directory, 2).contains(&1));
        assert_eq!(told(&directory, 9)[0], 1, "one voice");
        directory.handle_shuns(NOW, &site(), node(3), [node(1)].into());
        assert_eq!(told(&directory, 9)[3], 1);
    }

    #[test]
    fn nodes_that_do_not_serve_are_not_advertised() {
        let mut directory = Directory::default();
        let silent = PeerRecord { addresses: Vec::new(), ..record(1, false, NOW + 60) };
        directory.handle_record(NOW, &site(), node(1), silent);
        directory.handle_joined(&site(), node(1), false, V1);
        let chunks = set(1, 1);
        let asker = Requester { node: node(9), manifest: V1, chunks: &chunks };
        assert!(directory.ranked(NOW, &site(), asker, &[node(1)]).is_empty());
    }

    #[test]
    fn sites_and_nodes_are_bounded() {
        let mut directory = Directory::default();
        for n in 0..DIRECTORY_NODES_MAX as u16 + 10 {
            directory.handle_record(NOW + u64::from(n), &site(), node(n), record(n, true, NOW + 100_000));
        }
        assert_eq!(directory.sites[&site()].nodes.len(), DIRECTORY_NODES_MAX);
        assert!(!directory.sites[&site()].nodes.contains_key(&(node(0), true)), "heard of longest ago");
        for n in 0..DIRECTORY_SITES_MAX + 10 {
            directory.handle_record(
                NOW + 5000 + n as u64,
                &SiteKey(n.to_string()),
                node(1),
                record(1, true, NOW + 100_000),
            );
        }
        assert_eq!(directory.sites.len(), DIRECTORY_SITES_MAX);
    }
}
