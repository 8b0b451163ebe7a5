//! A manifest while it is being fetched: the root first, then the missing nodes, level by level.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Manifest;
use super::node::{Child, NodeError, Root, decode_inner, decode_leaf, node_hash, root_hash, sum};
use crate::{ManifestId, NodeHash};

/// Reason why a node cannot be part of this manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The node's hash is not among the missing ones.
    #[error("received manifest node {0} of level {1}, which was not requested")]
    Unasked(NodeHash, u8),
    /// The node breaks a rule of the format.
    #[error("manifest node {hash} is unusable")]
    Node {
        /// Hash of the node.
        hash: NodeHash,
        /// The rule that it breaks.
        #[source]
        cause: NodeError,
    },
}

/// Collects the nodes of one manifest. It accepts only nodes that a verified parent names, so it
/// never holds more than the manifest's own size.
#[derive(Debug)]
pub struct Assembly {
    root: Root,
    root_bytes: Bytes,
    id: ManifestId,
    nodes: BTreeMap<NodeHash, Bytes>,
    /// Claims that parents make about the missing nodes, by node hash: level, chunks, bytes.
    missing: BTreeMap<NodeHash, (u8, u64, u64)>,
}

impl Assembly {
    /// Starts from the bytes of the signed root node.
    pub fn new(root_bytes: Bytes) -> Result<Self, NodeError> {
        let root = Root::decode(&root_bytes)?;
        let id = root_hash(&root_bytes);
        let mut assembly = Self { root, root_bytes, id, nodes: BTreeMap::new(), missing: BTreeMap::new() };
        let children = assembly.root.children.clone();
        if let Some(level) = assembly.root.levels.checked_sub(1) {
            assembly.expect(level, &children)?;
        }
        Ok(assembly)
    }

    /// Returns the manifest id.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// Returns the decoded root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    fn expect(&mut self, level: u8, children: &[Child]) -> Result<(), NodeError> {
        for child in children {
            let claim = (level, child.chunks, child.bytes);
            match self.missing.get(&child.hash) {
                Some(earlier) if *earlier != claim => {
                    return Err(NodeError::Bounds("a count that differs from its twin's"));
                }
                Some(_) => {}
                None if self.nodes.contains_key(&child.hash) => {
                    // The same node also lies elsewhere in the tree. Its sums were compared there
                    // with that parent's claim, or not compared at all, so compare them with this
                    // claim too.
                    let bytes = self.nodes[&child.hash].clone();
                    check_sums(level, &bytes, child.chunks, child.bytes)?;
                }
                None => {
                    self.missing.insert(child.hash, claim);
                }
            }
        }
        Ok(())
    }

    /// Takes every missing node that `held` has, without a request.
    pub fn reuse(&mut self, held: &Manifest) {
        self.reuse_with(|hash| held.node(hash).cloned());
    }

    /// Takes every missing node that `find` returns, parents before children.
    pub fn reuse_with(&mut self, mut find: impl FnMut(&NodeHash) -> Option<Bytes>) {
        let mut refused: Vec<NodeHash> = Vec::new();
        loop {
            let found: Vec<_> = self
                .missing
                .iter()
                .filter(|(hash, _)| !refused.contains(hash))
                .filter_map(|(hash, (level, ..))| find(hash).map(|bytes| (*hash, *level, bytes)))
                .collect();
            if found.is_empty() {
                return;
            }
            for (hash, level, bytes) in found {
                // A held node that does not fit is damaged. It stays missing and is fetched.
                if self.insert(level, bytes).is_err() {
                    refused.push(hash);
                }
            }
        }
    }

    /// Returns the nodes to ask for now, highest level first; empty when the manifest is complete.
    /// Call this again after inserting them: their children are only known then.
    pub fn missing(&self) -> Vec<(u8, NodeHash)> {
        let mut list: Vec<_> = self.missing.iter().map(|(hash, (level, ..))| (*level, *hash)).collect();
        list.sort_by_key(|(level, hash)| (std::cmp::Reverse(*level), *hash));
        list
    }

    /// Adds one node.
    ///
    /// # Errors
    /// [`InsertError`] when the node is not missing or breaks the format. Nothing changes then.
    pub fn insert(&mut self, level: u8, bytes: Bytes) -> Result<NodeHash, InsertError> {
        let hash = node_hash(level, &bytes);
        let Some(&(expected_level, chunks, total)) = self.missing.get(&hash) else {
            return Err(InsertError::Unasked(hash, level));
        };
        let wrap = |cause| InsertError::Node { hash, cause };
        if expected_level != level {
            return Err(InsertError::Unasked(hash, level));
        }
        let children = check_sums(level, &bytes, chunks, total).map_err(wrap)?;
        if level == 0 {
            let cut_max = self.root.cut.max();
            let entries = decode_leaf(&bytes).map_err(wrap)?;
            if entries.iter().any(|e| e.len > cut_max) {
                return Err(wrap(NodeError::Bounds("a chunk longer than the cut allows")));
            }
        }
        self.missing.remove(&hash);
        self.nodes.insert(hash, bytes);
        if let Some(below) = level.checked_sub(1)
            && let Err(cause) = self.expect(below, &children)
        {
            self.nodes.remove(&hash);
            self.missing.insert(hash, (level, chunks, total));
            return Err(wrap(cause));
        }
        Ok(hash)
    }

    /// Returns the manifest if no node is missing, and the assembly itself otherwise.
    pub fn finish(self) -> Result<Manifest, Box<Self>> {
        if !self.missing.is_empty() {
            return Err(Box::new(self));
        }
        Ok(Manifest { root: self.root, root_bytes: self.root_bytes, id: self.id, nodes: self.nodes })
    }
}

/// Checks that the chunks and bytes below a node are the ones its parent states, and returns the
/// node's children (none for a leaf).
fn check_sums(level: u8, bytes: &[u8], chunks: u64, total: u64) -> Result<Vec<Child>, NodeError> {
    let (children, sums) = if level == 0 {
        let entries = decode_leaf(bytes)?;
        (Vec::new(), Some((entries.len() as u64, entries.iter().map(|e| u64::from(e.len)).sum())))
    } else {
        let children = decode_inner(level, bytes)?;
        let sums = sum(&children);
        (children, sums)
    };
    if sums != Some((chunks, total)) {
        return Err(NodeError::Bounds("a count that does not add up"));
    }
    Ok(children)
}
