//! The three kinds of node (leaf, inner, root), with one canonical encoding and one hash domain
//! each.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{NODE_ENTRIES_MAX, ROOT_CHILDREN_MAX};
use crate::bounds::{
    ARTIFACT_BYTES_MAX, CHUNK_BYTES_MAX, MANIFEST_LEVELS_MAX, NODE_BYTES_MAX, PATCH_INDEX_BYTES_MAX,
    TREE_LISTING_BYTES_MAX,
};
use crate::cut::CutParams;
use crate::{ArtifactHash, ChunkHash, ChunkId, ManifestId, NodeHash};

/// Format version that the root node states.
pub(super) const FORMAT_VERSION: u8 = 1;

// One context for each kind of node (BLAKE3 derive_key mode), so that no node can be passed off as
// a node of another kind, or as a chunk.
const LEAF_CONTEXT: &str = "distd 2026-11-20 manifest leaf v1";
const INNER_CONTEXT: &str = "distd 2026-11-20 manifest inner v1";
const ROOT_CONTEXT: &str = "distd 2026-11-20 manifest root v1";

/// Kind of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One file or image.
    File,
    /// A directory: its listing, then its files (docs/formats.md, "Tree listing").
    Tree {
        /// Bytes of the listing at the head of the artifact.
        listing_bytes: u64,
    },
    /// The patches between two manifests: their index, then their payloads, one chunk each
    /// (docs/formats.md, "Patch set").
    PatchSet {
        /// Bytes of the index at the head of the artifact.
        index_bytes: u64,
    },
}

/// One chunk of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number that the origin gave to the chunk's hash.
    pub id: ChunkId,
    /// Hash of the chunk's raw bytes.
    pub hash: ChunkHash,
    /// Raw length in bytes, `1..=cut.max`.
    pub len: u32,
}

/// A child node, as its parent lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The child's hash, in the hash domain of its level.
    pub hash: NodeHash,
    /// Number of chunks below the child, repeats counted.
    pub chunks: u64,
    /// Number of artifact bytes below the child.
    pub bytes: u64,
}

/// The root node, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Kind of the artifact.
    pub kind: Kind,
    /// Total bytes of the artifact.
    pub bytes: u64,
    /// Number of chunks of the artifact, repeats counted.
    pub chunks: u64,
    /// Parameters with which the artifact was cut.
    pub cut: CutParams,
    /// BLAKE3 of the whole artifact.
    pub blake3: ArtifactHash,
    /// Levels below the root: 1 when its children are leaves, 0 when it has no children.
    pub levels: u8,
    /// The children, in artifact order.
    pub children: Vec<Child>,
}

/// Reason why bytes are not a manifest node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The bytes are more than any node has.
    #[error("a manifest node has at most {NODE_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// The bytes are not msgpack of the expected shape, or not in canonical form.
    #[error("manifest node is not in canonical form")]
    Malformed,
    /// The root has a format version that this build does not read.
    #[error("manifest has format version {0}, this build reads version {FORMAT_VERSION}: upgrade distd")]
    Version(u8),
    /// A count, length or level is out of bounds.
    #[error("manifest node has an invalid value: {0}")]
    Bounds(&'static str),
}

// The wire shapes are tuples because rmp-serde writes tuples as arrays: without field names, in one
// encoding.
type WireEntry = (u64, ChunkHash, u32);
type WireChild = (NodeHash, u64, u64);
type WireRoot = (u8, u8, u64, u64, (u32, u32, u32), ArtifactHash, u64, u8, Vec<WireChild>);

fn encode<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(rmp_serde::to_vec(value).expect("tuples of integers and byte arrays always encode"))
}

/// Decodes `bytes` and encodes the value again. Bytes that differ from the second encoding were not
/// canonical.
fn decode<'a, T: Serialize + Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, NodeError> {
    if bytes.len() > NODE_BYTES_MAX {
        return Err(NodeError::TooLong(bytes.len()));
    }
    let value: T = rmp_serde::from_slice(bytes).map_err(|_| NodeError::Malformed)?;
    if encode(&value) != bytes {
        return Err(NodeError::Malformed);
    }
    Ok(value)
}

/// Returns the hash of a leaf's bytes.
pub fn leaf_hash(bytes: &[u8]) -> NodeHash {
    blake3::Hasher::new_derive_key(LEAF_CONTEXT).update(bytes).finalize().into()
}

/// Returns the hash of a node's bytes at `level`; level 0 is a leaf.
pub fn node_hash(level: u8, bytes: &[u8]) -> NodeHash {
    if level == 0 {
        return leaf_hash(bytes);
    }
    blake3::Hasher::new_derive_key(INNER_CONTEXT).update(bytes).finalize().into()
}

/// Returns the hash of a root node's bytes, which is the manifest id.
pub(super) fn root_hash(bytes: &[u8]) -> ManifestId {
    blake3::Hasher::new_derive_key(ROOT_CONTEXT).update(bytes).finalize().into()
}

pub(super) fn encode_leaf(entries: &[Entry]) -> Bytes {
    let wire: Vec<WireEntry> = entries.iter().map(|e| (e.id.0, e.hash, e.len)).collect();
    encode(&wire)
}

pub(super) fn decode_leaf(bytes: &[u8]) -> Result<Vec<Entry>, NodeError> {
    let wire: Vec<WireEntry> = decode(bytes)?;
    if wire.is_empty() || wire.len() > NODE_ENTRIES_MAX {
        return Err(NodeError::Bounds("the number of entries"));
    }
    wire.into_iter()
        .map(|(id, hash, len)| {
            if len == 0 || len as usize > CHUNK_BYTES_MAX {
                return Err(NodeError::Bounds("a chunk length"));
            }
            if id == 0 || id > i64::MAX as u64 {
                return Err(NodeError::Bounds("a chunk id"));
            }
            Ok(Entry { id: ChunkId(id), hash, len })
        })
        .collect()
}

fn to_wire(children: &[Child]) -> Vec<WireChild> {
    children.iter().map(|c| (c.hash, c.chunks, c.bytes)).collect()
}

fn from_wire(wire: Vec<WireChild>) -> Vec<Child> {
    wire.into_iter().map(|(hash, chunks, bytes)| Child { hash, chunks, bytes }).collect()
}

pub(super) fn encode_inner(level: u8, children: &[Child]) -> Bytes {
    encode(&(level, to_wire(children)))
}

pub(super) fn decode_inner(level: u8, bytes: &[u8]) -> Result<Vec<Child>, NodeError> {
    let (stated, wire): (u8, Vec<WireChild>) = decode(bytes)?;
    if stated != level {
        return Err(NodeError::Bounds("its level"));
    }
    if wire.is_empty() || wire.len() > NODE_ENTRIES_MAX {
        return Err(NodeError::Bounds("the number of entries"));
    }
    Ok(from_wire(wire))
}

/// Returns the numbers of chunks and bytes below all `children`; `None` if a sum overflows.
pub(super) fn sum(children: &[Child]) -> Option<(u64, u64)> {
    children.iter().try_fold((0u64, 0u64), |(c, b), child| {
        Some((c.checked_add(child.chunks)?, b.checked_add(child.bytes)?))
    })
}

impl Root {
    /// Returns the canonical bytes.
    pub fn encode(&self) -> Bytes {
        let (kind, listing) = match self.kind {
            Kind::File => (0, 0),
            Kind::Tree { listing_bytes } => (1, listing_bytes),
            Kind::PatchSet { index_bytes } => (2, index_bytes),
        };
        let cut = (self.cut.min(), self.cut.avg(), self.cut.max());
        let wire: WireRoot = (
            FORMAT_VERSION,
            kind,
            self.bytes,
            self.chunks,
            cut,
            self.blake3,
            listing,
            self.levels,
            to_wire(&self.children),
        );
        encode(&wire)
    }

    /// Decodes and checks a root node.
    ///
    /// # Errors
    /// [`NodeError`] when the bytes are not canonical, have another version, or state counts that
    /// do not add up.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        // Read the version before the rest, so that the error for a newer format names the version
        // instead of "malformed".
        if let [0x90..=0x9f, version, ..] = bytes
            && *version != FORMAT_VERSION
            && *version < 0x80
        {
            return Err(NodeError::Version(*version));
        }
        let (_, kind, total, chunks, cut, blake3, listing, levels, wire): WireRoot = decode(bytes)?;
        let kind = match (kind, listing) {
            (0, 0) => Kind::File,
            (1, listing_bytes) if listing_bytes <= total.min(TREE_LISTING_BYTES_MAX) => {
                Kind::Tree { listing_bytes }
            }
            (2, index_bytes) if index_bytes <= total.min(PATCH_INDEX_BYTES_MAX) => {
                Kind::PatchSet { index_bytes }
            }
            _ => return Err(NodeError::Bounds("its kind")),
        };
        let cut = CutParams::new(cut.0, cut.1, cut.2).map_err(|_| NodeError::Bounds("the cut parameters"))?;
        if total > ARTIFACT_BYTES_MAX {
            return Err(NodeError::Bounds("the artifact's length"));
        }
        if levels > MANIFEST_LEVELS_MAX || wire.len() > ROOT_CHILDREN_MAX || (levels == 0) != wire.is_empty()
        {
            return Err(NodeError::Bounds("the number of levels or children"));
        }
        let children = from_wire(wire);
        if sum(&children) != Some((chunks, total)) {
            return Err(NodeError::Bounds("a count that does not add up"));
        }
        Ok(Self { kind, bytes: total, chunks, cut, blake3, levels, children })
    }

    /// Returns the manifest id of this root.
    pub fn id(&self) -> ManifestId {
        root_hash(&self.encode())
    }
}
