//! The manifest: a Merkle tree over an artifact's chunks, with content-defined node borders.
//!
//! A node ends behind an entry whose hash ends in six zero bits (between [`NODE_ENTRIES_MIN`] and
//! [`NODE_ENTRIES_MAX`] entries), so that one changed chunk changes one node a level wherever it is, and an
//! inserted chunk shifts nothing behind it. docs/formats.md, "Manifest", specifies every byte.

mod build;
mod compact;
mod file;
mod node;
mod partial;
mod walk;

pub use build::Builder;
pub use compact::{compact_leaf, expand_leaf};
pub use file::{FILE_MAGIC, FileError};
pub use node::{Child, Entry, Kind, NodeError, Root, leaf_hash, node_hash};
pub use partial::{Assembly, InsertError};
pub use walk::{Changed, ChunkAt, Entries};

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{ManifestId, NodeHash};

/// Fewest entries of a node that is not the last of its level.
pub const NODE_ENTRIES_MIN: usize = 16;

/// Most entries of a node. Bounds a node to 14 KiB and makes runs of equal chunks (a sparse image) repeat
/// the very same node, which is then stored once.
pub const NODE_ENTRIES_MAX: usize = 256;

/// A node ends behind an entry whose hash's last byte has these bits zero: 1 in 64.
pub const BORDER_MASK: u8 = 63;

/// The root lists at most this many children; above it another level is put between.
pub const ROOT_CHILDREN_MAX: usize = 64;

/// A complete manifest: the root and every node below it, each held once.
///
/// Construction goes through [`Builder`], [`Assembly`] or [`Manifest::from_file_bytes`]; all three check that
/// every node is reachable, of its level, and that counts and lengths add up, so what is walked later is sound.
#[derive(Clone, Debug)]
pub struct Manifest {
    root: Root,
    root_bytes: Bytes,
    id: ManifestId,
    nodes: BTreeMap<NodeHash, Bytes>,
}

impl Manifest {
    /// Hash of the root node.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// The decoded root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The root node's bytes: what TUF signs as the release target.
    pub fn root_bytes(&self) -> &Bytes {
        &self.root_bytes
    }

    /// The bytes of a node below the root.
    pub fn node(&self, hash: &NodeHash) -> Option<&Bytes> {
        self.nodes.get(hash)
    }

    /// The level an inner node states; `None` for bytes that are no inner node.
    pub fn inner_level(bytes: &[u8]) -> Option<u8> {
        match bytes {
            [0x92, level, ..] if *level < crate::limits::MANIFEST_LEVELS_MAX => Some(*level),
            _ => None,
        }
    }

    /// Number of distinct nodes below the root.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of the nodes below the root.
    pub fn nodes_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.len() as u64).sum()
    }

    /// Every chunk in artifact order, repeats included.
    pub fn entries(&self) -> Entries<'_> {
        Entries::new(self)
    }

    /// Levels and hashes of the nodes that `held` lacks, highest first: what a device that has `held` must
    /// fetch. Equal subtrees are skipped without being walked.
    pub fn nodes_missing_from(&self, held: &[&Self]) -> Vec<(u8, NodeHash)> {
        walk::nodes_missing_from(self, held)
    }

    /// The chunks below leaves that `held` does not have, in artifact order.
    pub fn changed_since<'a>(&'a self, held: &'a Self) -> Changed<'a> {
        Changed::new(self, held)
    }
}
