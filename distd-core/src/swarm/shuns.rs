//! [`Shuns`]: which nodes of a site say that others sent them wrong bytes.

use std::collections::{BTreeMap, BTreeSet};

use crate::NodeId;
use crate::limits::DIRECTORY_NODES_MAX;

/// Nodes that must say the same of one before the others of the site are spared it: one liar alone, or a device whose memory rots, cannot take
/// anybody's good name.
const VOICES: usize = 2;

/// In a large site one in so many must.
const VOICES_PART: usize = 16;

/// What the nodes of one site say of each other, each its own word: no proof of anything. Bounded: `DIRECTORY_NODES_MAX` that speak, of
/// `SHUN_NODES_MAX` each (`Control`).
#[derive(Debug, Default)]
pub struct Shuns {
    by: BTreeMap<NodeId, BTreeSet<NodeId>>,
    voices: BTreeMap<NodeId, usize>,
    members: usize,
}

impl Shuns {
    /// So many nodes are in the site.
    pub(super) fn handle_members(&mut self, members: usize) {
        self.members = members;
    }

    /// `by` takes nothing of `whom`; instead of what it said before.
    pub fn handle_shuns(&mut self, by: NodeId, whom: BTreeSet<NodeId>) {
        self.handle_left(by);
        if self.by.len() < DIRECTORY_NODES_MAX {
            whom.iter().for_each(|node| *self.voices.entry(*node).or_default() += 1);
            self.by.insert(by, whom);
        }
    }

    /// A node's word counts no longer.
    pub fn handle_left(&mut self, by: NodeId) {
        for node in self.by.remove(&by).unwrap_or_default() {
            if let Some(voices) = self.voices.get_mut(&node) {
                *voices -= 1;
                if *voices == 0 {
                    self.voices.remove(&node);
                }
            }
        }
    }

    /// Whether `node` takes nothing of `whom`.
    pub fn is_shunned_by(&self, whom: NodeId, node: NodeId) -> bool {
        self.by.get(&node).is_some_and(|shunned| shunned.contains(&whom))
    }

    /// All of whom several say so.
    pub fn disowned(&self) -> impl Iterator<Item = &NodeId> {
        self.voices.iter().filter(|(_, voices)| self.is_enough(**voices)).map(|(node, _)| node)
    }

    /// Whether several say so.
    pub fn is_disowned(&self, node: NodeId) -> bool {
        self.voices.get(&node).is_some_and(|voices| self.is_enough(*voices))
    }

    fn is_enough(&self, voices: usize) -> bool {
        voices >= VOICES.max(self.members / VOICES_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_voice_is_for_its_owner_and_two_are_for_all() {
        let node = |n: u8| NodeId([n; 16]);
        let mut shuns = Shuns::default();
        shuns.handle_shuns(node(1), [node(9)].into());
        shuns.handle_shuns(node(1), [node(8), node(9)].into());
        assert!(shuns.is_shunned_by(node(9), node(1)) && !shuns.is_shunned_by(node(9), node(2)));
        assert!(!shuns.is_disowned(node(9)), "said twice by one");
        shuns.handle_shuns(node(2), [node(9)].into());
        assert!(shuns.is_disowned(node(9)) && !shuns.is_disowned(node(8)));
        shuns.handle_members(VOICES_PART * 3);
        assert!(!shuns.is_disowned(node(9)), "two of 48");
        shuns.handle_members(VOICES_PART);
        assert!(shuns.disowned().eq([&node(9)]));
        shuns.handle_left(node(1));
        assert!(!shuns.is_disowned(node(9)));
        shuns.handle_left(node(2));
        assert!(shuns.voices.is_empty() && shuns.by.is_empty());
    }
}
