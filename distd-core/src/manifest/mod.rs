//! The manifest: a Merkle tree over an artifact's chunks, with content-defined node borders.
//!
//! A node ends behind an entry whose hash ends in six zero bits (between [`NODE_ENTRIES_MIN`] and
//! [`NODE_ENTRIES_MAX`] entries). So a changed chunk changes one node a level wherever it is, and
//! an inserted chunk shifts nothing behind it. docs/formats.md, "Manifest", specifies every byte.
//!
//! # Goals
//! - One signature covers the artifact: TUF signs the root node, which fixes every node, chunk and
//!   length below it.
//! - A device that holds an earlier release fetches only the nodes that differ
//!   ([`Manifest::nodes_missing_from`]).
//! - Nothing a peer sends is stored before its hash was named by a verified parent ([`Assembly`]).
//!
//! # Non-goals
//! - Secrecy: anybody who has the manifest knows every chunk hash.
//! - Places of chunks on disk or at peers: stores, [`planner`](crate::planner) and
//!   [`swarm`](crate::swarm) know them.
//! - Signatures: this module hashes; the TUF client in `distd-peer` verifies.
//!
//! # Example: three chunks
//! Release 1 is a file of chunks A, B and C, 4096 bytes each, and the origin gave them the ids 1, 2
//! and 3. Release 2 changes the second chunk; the new chunk D gets id 4.
//!
//! ```text
//!  TUF target releases/os/1    releases/os/2     signed: length and hashes of the root's bytes
//!       |                           |
//!     root                        root'          kind, bytes, chunks, cut, BLAKE3 of the file,
//!       |                           |            levels (1), child [hash of the leaf, 3, 12288]
//!     leaf                        leaf'
//!  [1 A] [2 B] [3 C]           [1 A] [4 D] [3 C]  each [id, chunk hash, 4096]
//! ```
//!
//! The signature is TUF's, over the metadata that states the root's length and hash; no node
//! carries one. Three entries are fewer than [`NODE_ENTRIES_MIN`], so there is one leaf: the last
//! node of a level may be short. A device that holds release 1 gets the new root as a TUF target,
//! finds one leaf missing and requests it. The leaf travels compact: ids 1 and 3 as one byte each,
//! chunk D as its id, length and hash.
//!
//! ```
//! use distd_core::cut::CutParams;
//! use distd_core::manifest::{Builder, Entry, Kind, compact_leaf};
//! use distd_core::{ArtifactHash, ChunkHash, ChunkId};
//!
//! let release = |chunks: [(u64, &[u8; 4096]); 3]| {
//!     let mut builder = Builder::new(CutParams::default(), Kind::File);
//!     for (id, raw) in chunks {
//!         builder.push(Entry { id: ChunkId(id), hash: ChunkHash::of(raw), len: 4096 });
//!     }
//!     builder.finish(ArtifactHash([0; 32]))
//! };
//! let (a, b, c, d) = (&[1; 4096], &[2; 4096], &[3; 4096], &[4; 4096]);
//! let (old, new) = (release([(1, a), (2, b), (3, c)]), release([(1, a), (4, d), (3, c)]));
//! assert_eq!((old.root().chunks, old.root().bytes, old.root().levels), (3, 12288, 1));
//!
//! let missing = new.nodes_missing_from(&[&old]);
//! let [(0, leaf)] = missing[..] else { panic!("one leaf") };
//! let plain = new.node(&leaf).expect("its own node");
//! let compact = compact_leaf(plain, |id| id.0 <= 3)?.expect("near ids");
//! assert_eq!((plain.len(), compact.len()), (118, 37));
//! assert_eq!(new.changed_since(&old).count(), 3, "the chunks of that leaf");
//! # Ok::<(), distd_core::manifest::NodeError>(())
//! ```

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

/// Most entries of a node. The bound keeps a node below 14 KiB, and a long run of equal chunks (a
/// sparse image) repeats the same node, which is stored once.
pub const NODE_ENTRIES_MAX: usize = 256;

/// Bits that are zero in the last byte of a hash behind which a node ends: 1 hash in 64.
pub const BORDER_MASK: u8 = 63;

/// Most children of the root. A level with more nodes gets another level above it.
pub const ROOT_CHILDREN_MAX: usize = 64;

/// A complete manifest: the root and every node below it, each held once.
///
/// [`Builder`], [`Assembly`] and [`Manifest::from_file_bytes`] make manifests. All three guarantee
/// that every node is reachable and of its level and that counts and lengths add up, so later walks
/// need no checks.
#[derive(Clone, Debug)]
pub struct Manifest {
    root: Root,
    root_bytes: Bytes,
    id: ManifestId,
    nodes: BTreeMap<NodeHash, Bytes>,
}

impl Manifest {
    /// Returns the hash of the root node.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// Returns the decoded root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the root node's bytes, which TUF signs as the release target.
    pub fn root_bytes(&self) -> &Bytes {
        &self.root_bytes
    }

    /// Returns the bytes of a node below the root; `None` if the manifest has no such node.
    pub fn node(&self, hash: &NodeHash) -> Option<&Bytes> {
        self.nodes.get(hash)
    }

    /// Returns the level an inner node states; `None` if the bytes are not an inner node.
    pub fn inner_level(bytes: &[u8]) -> Option<u8> {
        match bytes {
            [0x92, level, ..] if *level < crate::bounds::MANIFEST_LEVELS_MAX => Some(*level),
            _ => None,
        }
    }

    /// Returns the number of distinct nodes below the root.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the total length of the distinct nodes below the root, in bytes.
    pub fn nodes_bytes(&self) -> u64 {
        self.nodes.values().map(|node| node.len() as u64).sum()
    }

    /// Returns every chunk in artifact order, repeats included.
    pub fn entries(&self) -> Entries<'_> {
        Entries::new(self, 0)
    }

    /// Returns the chunk that has the byte at `offset`, and every chunk behind it, in artifact
    /// order. Costs a few nodes, wherever the offset is.
    pub fn entries_at(&self, offset: u64) -> Entries<'_> {
        Entries::new(self, offset)
    }

    /// Returns levels and hashes of the nodes that no manifest of `held` has, highest first: the
    /// nodes to fetch for a device that has `held`. Equal subtrees are skipped without a walk.
    pub fn nodes_missing_from(&self, held: &[&Self]) -> Vec<(u8, NodeHash)> {
        walk::nodes_missing_from(self, held)
    }

    /// Returns the chunks of the leaves that `held` does not have, in artifact order.
    pub fn changed_since<'a>(&'a self, held: &'a Self) -> Changed<'a> {
        Changed::new(self, held)
    }
}
