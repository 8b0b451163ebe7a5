//! [`Shuns`]: nodes of a site that, by the word of other nodes, sent wrong bytes.

use std::collections::{BTreeMap, BTreeSet};

use crate::NodeId;
use crate::bounds::{DIRECTORY_NODES_MAX, RECORD_SECONDS_MAX};

/// Number of nodes of a site that must shun a node before the rest of the site is kept away from
/// it. One liar alone, or one device with failing memory, cannot discredit another node.
const VOICES: usize = 2;

/// In a large site, one in this many nodes must shun a node.
const VOICES_PART: usize = 16;

/// Nodes that the nodes of one site shun. Each entry is the word of one node and no proof. Bounded:
/// `DIRECTORY_NODES_MAX` nodes, each with `SHUN_NODES_MAX` shunned nodes (`Control` sees to that).
#[derive(Debug, Default)]
pub struct Shuns {
    /// Nodes that each node shuns, and until when its word counts, unix seconds: at most as long as
    /// a peer record. The word outlives the pull that learned it, because the next pull can still
    /// use it.
    by: BTreeMap<NodeId, (u64, BTreeSet<NodeId>)>,
    voices: BTreeMap<NodeId, usize>,
    members: usize,
}

impl Shuns {
    /// The site now has `members` nodes.
    pub(super) fn handle_members(&mut self, members: usize) {
        self.members = members;
    }

    /// `by` says at `now` (unix seconds) that it shuns `whom`. The new set replaces the node's
    /// earlier one.
    pub fn handle_shuns(&mut self, now: u64, by: NodeId, whom: BTreeSet<NodeId>) {
        self.expire(now);
        self.forget(by);
        if self.by.len() < DIRECTORY_NODES_MAX {
            whom.iter().for_each(|node| *self.voices.entry(*node).or_default() += 1);
            self.by.insert(by, (now + RECORD_SECONDS_MAX, whom));
        }
    }

    /// Removes words that are too old to count.
    pub(super) fn expire(&mut self, now: u64) {
        let old = self.by.iter().filter(|(_, (until, _))| *until <= now).map(|(by, _)| *by);
        old.collect::<Vec<_>>().into_iter().for_each(|by| self.forget(by));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by.is_empty()
    }

    fn forget(&mut self, by: NodeId) {
        let Some((_, whom)) = self.by.remove(&by) else { return };
        for node in whom {
            if let Some(voices) = self.voices.get_mut(&node) {
                *voices -= 1;
                if *voices == 0 {
                    self.voices.remove(&node);
                }
            }
        }
    }

    /// Whether `node` shuns `whom`.
    pub fn is_shunned_by(&self, whom: NodeId, node: NodeId) -> bool {
        self.by.get(&node).is_some_and(|(_, shunned)| shunned.contains(&whom))
    }

    /// Returns the nodes that enough nodes of the site shun for an origin to distrust them.
    pub fn distrusted_by_origin(&self) -> impl Iterator<Item = &NodeId> {
        self.voices.iter().filter(|(_, voices)| self.is_enough(**voices)).map(|(node, _)| node)
    }

    /// Whether enough nodes of the site shun `node` for an origin to distrust it.
    pub fn is_distrusted_by_origin(&self, node: NodeId) -> bool {
        self.voices.get(&node).is_some_and(|voices| self.is_enough(*voices))
    }

    fn is_enough(&self, voices: usize) -> bool {
        voices >= VOICES.max(self.members / VOICES_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    #[test]
    fn one_node_shuns_for_itself_and_two_shun_for_the_site() {
        let node = |n: u8| NodeId([n; 16]);
        let mut shuns = Shuns::default();
        shuns.handle_shuns(NOW, node(1), [node(9)].into());
        shuns.handle_shuns(NOW, node(1), [node(8), node(9)].into());
        assert!(shuns.is_shunned_by(node(9), node(1)) && !shuns.is_shunned_by(node(9), node(2)));
        assert!(!shuns.is_distrusted_by_origin(node(9)), "said twice by one");
        shuns.handle_shuns(NOW, node(2), [node(9)].into());
        assert!(shuns.is_distrusted_by_origin(node(9)) && !shuns.is_distrusted_by_origin(node(8)));
        shuns.handle_members(VOICES_PART * 3);
        assert!(!shuns.is_distrusted_by_origin(node(9)), "two of 48");
        shuns.handle_members(VOICES_PART);
        assert!(shuns.distrusted_by_origin().eq([&node(9)]));
        shuns.handle_shuns(NOW + 1, node(1), BTreeSet::new());
        assert!(!shuns.is_distrusted_by_origin(node(9)), "taken back");
        shuns.expire(NOW + RECORD_SECONDS_MAX);
        assert!(shuns.voices.is_empty() && shuns.by.len() == 1);
    }
}
