//! Building a manifest from chunks in artifact order.

use std::collections::BTreeMap;
use std::mem;

use bytes::Bytes;

use super::node::{Child, Entry, Kind, Root, encode_inner, encode_leaf, node_hash, root_hash};
use super::{BORDER_MASK, Manifest, NODE_ENTRIES_MAX, NODE_ENTRIES_MIN, ROOT_CHILDREN_MAX};
use crate::cut::CutParams;
use crate::{ArtifactHash, NodeHash};

/// Takes chunks in artifact order and builds the manifest.
///
/// Memory: each distinct node once (about 45 bytes for each distinct chunk), and 48 bytes for each
/// leaf.
#[derive(Debug)]
pub struct Builder {
    cut: CutParams,
    kind: Kind,
    leaf: Vec<Entry>,
    leaves: Vec<Child>,
    nodes: BTreeMap<NodeHash, Bytes>,
}

/// Whether a node of `entries` entries ends behind its last entry, whose hash is `hash`.
fn is_border(hash: &[u8; 32], entries: usize) -> bool {
    entries >= NODE_ENTRIES_MAX || (entries >= NODE_ENTRIES_MIN && hash[31] & BORDER_MASK == 0)
}

impl Builder {
    /// Starts an empty artifact of `kind`, cut with `cut`.
    pub fn new(cut: CutParams, kind: Kind) -> Self {
        Self { cut, kind, leaf: Vec::new(), leaves: Vec::new(), nodes: BTreeMap::new() }
    }

    /// Appends the next chunk.
    pub fn push(&mut self, entry: Entry) {
        self.leaf.push(entry);
        if is_border(entry.hash.as_bytes(), self.leaf.len()) {
            self.end_leaf();
        }
    }

    fn end_leaf(&mut self) {
        let entries = mem::take(&mut self.leaf);
        let bytes = encode_leaf(&entries);
        let hash = node_hash(0, &bytes);
        self.nodes.entry(hash).or_insert(bytes);
        self.leaves.push(Child {
            hash,
            chunks: entries.len() as u64,
            bytes: entries.iter().map(|e| u64::from(e.len)).sum(),
        });
    }

    /// Ends the artifact and returns its manifest; `blake3` is the hash of all its bytes.
    pub fn finish(mut self, blake3: ArtifactHash) -> Manifest {
        if !self.leaf.is_empty() {
            self.end_leaf();
        }
        let mut level_nodes = self.leaves;
        let mut levels = u8::from(!level_nodes.is_empty());
        while level_nodes.len() > ROOT_CHILDREN_MAX {
            level_nodes = put_level_above(levels, &level_nodes, &mut self.nodes);
            levels += 1;
        }
        let root = Root {
            kind: self.kind,
            bytes: level_nodes.iter().map(|c| c.bytes).sum(),
            chunks: level_nodes.iter().map(|c| c.chunks).sum(),
            cut: self.cut,
            blake3,
            levels,
            children: level_nodes,
        };
        let root_bytes = root.encode();
        Manifest { id: root_hash(&root_bytes), root, root_bytes, nodes: self.nodes }
    }
}

fn put_level_above(level: u8, below: &[Child], nodes: &mut BTreeMap<NodeHash, Bytes>) -> Vec<Child> {
    let mut above = Vec::new();
    let mut start = 0;
    for end in 1..=below.len() {
        if !is_border(below[end - 1].hash.as_bytes(), end - start) && end < below.len() {
            continue;
        }
        let children = &below[start..end];
        let bytes = encode_inner(level, children);
        let hash = node_hash(level, &bytes);
        nodes.entry(hash).or_insert(bytes);
        above.push(Child {
            hash,
            chunks: children.iter().map(|c| c.chunks).sum(),
            bytes: children.iter().map(|c| c.bytes).sum(),
        });
        start = end;
    }
    above
}
