//! [`QuarantineList`]: nodes that sent wrong bytes, and until when they are not asked.

use std::collections::BTreeMap;

use crate::NodeId;

/// How long such a node is not asked: a day, as long as a certificate is valid. A repaired node is
/// therefore used again without any action.
pub const QUARANTINE_SECONDS: u64 = 24 * 3600;

/// Most entries. Beyond it the entries that end soonest are dropped.
const ENTRIES_MAX: usize = 10_000;

/// The nodes in quarantine. Times are unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineList(BTreeMap<NodeId, u64>);

impl QuarantineList {
    /// Returns the unix time until which `node` is not asked; `None` if `node` may be asked.
    pub fn until(&self, node: &NodeId, now: u64) -> Option<u64> {
        self.0.get(node).copied().filter(|until| holds(*until, now))
    }

    /// Returns the nodes that are not asked at `now`, the most recently added first.
    pub fn nodes(&self, now: u64) -> Vec<NodeId> {
        let mut nodes: Vec<_> = self.0.iter().filter(|(_, until)| holds(**until, now)).collect();
        nodes.sort_by_key(|(_, until)| std::cmp::Reverse(**until));
        nodes.into_iter().map(|(node, _)| *node).collect()
    }

    /// Adds a node, starting at `now`.
    pub fn add(&mut self, node: NodeId, now: u64) {
        self.0.retain(|_, until| holds(*until, now));
        self.0.insert(node, now + QUARANTINE_SECONDS);
        while self.0.len() > ENTRIES_MAX {
            let Some(soonest) = self.0.iter().min_by_key(|(_, until)| **until).map(|(node, _)| *node) else {
                break;
            };
            self.0.remove(&soonest);
        }
    }

    /// Returns all entries: each node, and the unix time until which it is not asked.
    pub fn entries(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        self.0.iter().map(|(node, until)| (node, *until))
    }
}

impl FromIterator<(NodeId, u64)> for QuarantineList {
    /// Makes a list of entries that were written earlier. Entries beyond the bound are dropped.
    fn from_iter<I: IntoIterator<Item = (NodeId, u64)>>(entries: I) -> Self {
        Self(entries.into_iter().take(ENTRIES_MAX).collect())
    }
}

/// Whether an entry that ends at `until` is in force at `now`. An entry that would last longer than
/// a day was written while the clock was ahead, and is ignored.
fn holds(until: u64, now: u64) -> bool {
    until > now && until <= now.saturating_add(QUARANTINE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_ends_after_a_day() {
        let (node, other) = (NodeId([3; 16]), NodeId([4; 16]));
        let mut quarantine = QuarantineList::default();
        quarantine.add(node, 1000);
        assert_eq!(quarantine.until(&node, 1001), Some(1000 + QUARANTINE_SECONDS));
        assert_eq!(quarantine.until(&node, 1000 + QUARANTINE_SECONDS), None);
        assert_eq!(quarantine.until(&other, 1001), None);
        assert_eq!(quarantine.until(&node, 500), None, "written by a clock that was ahead");
        quarantine.add(other, 2000);
        assert_eq!(quarantine.nodes(2001), [other, node]);
        assert_eq!(quarantine.nodes(1000 + QUARANTINE_SECONDS), [other]);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let node = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            NodeId(id)
        };
        let mut quarantine = QuarantineList::default();
        (0..ENTRIES_MAX as u64 + 5).for_each(|n| quarantine.add(node(n), 1000 + n / 1000));
        assert_eq!(quarantine.entries().count(), ENTRIES_MAX);
        assert!(quarantine.until(&node(0), 1000).is_none(), "the one that ends soonest");
    }
}
