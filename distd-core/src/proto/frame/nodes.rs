//! INTEGRITY, NODE_REQUEST and NODES_END: requests for manifest nodes and the nodes themselves.

use bytes::{Buf, BufMut, Bytes};

use crate::bounds::{HELD_MANIFESTS_MAX, MANIFEST_LEVELS_MAX, NODE_BYTES_MAX, NODE_REQUEST_HASHES_MAX};
use crate::proto::codec::DecodeError;
use crate::{ManifestId, NodeHash};

/// Level of a root node on the wire. A root is requested by the manifest id in place of a node
/// hash.
pub const ROOT_LEVEL: u8 = 255;

/// Level of a compact leaf on the wire. It is sent to an asker that named a held manifest the
/// sender knows.
pub const COMPACT_LEAF: u8 = 254;

/// One manifest node. In RFC 7574 §8.7 an INTEGRITY carries a hash; here it carries the node whose
/// hash the receiver already trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Level of the node: 0 is a leaf; also [`ROOT_LEVEL`] and [`COMPACT_LEAF`].
    pub level: u8,
    /// Bytes of the node.
    pub bytes: Bytes,
}

impl Node {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.level);
        out.put_slice(&self.bytes);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() < 2 || body.len() > 1 + NODE_BYTES_MAX {
            return Err(DecodeError::Length(name));
        }
        let level = body.get_u8();
        if level >= MANIFEST_LEVELS_MAX && level != ROOT_LEVEL && level != COMPACT_LEAF {
            return Err(DecodeError::Field(name, "level"));
        }
        Ok(Self { level, bytes: body })
    }
}

/// Request for nodes. Without hashes (or with the manifest id alone, for the root too) it asks for
/// all nodes that the held manifests lack; with hashes it asks for these nodes only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRequest {
    /// Manifests the asker has in full. The answerer skips the nodes of those it knows.
    pub held: Vec<ManifestId>,
    /// Hashes of the requested nodes.
    pub hashes: Vec<NodeHash>,
}

impl NodeRequest {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(u8::try_from(self.held.len()).expect("callers stay within HELD_MANIFESTS_MAX"));
        for id in &self.held {
            out.put_slice(&id.0);
        }
        for hash in &self.hashes {
            out.put_slice(&hash.0);
        }
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let held = body.try_get_u8().map_err(|_| DecodeError::Length(name))? as usize;
        if held > HELD_MANIFESTS_MAX {
            return Err(DecodeError::Field(name, "number of held manifests"));
        }
        if body.len() < held * 32 || !body.len().is_multiple_of(32) {
            return Err(DecodeError::Length(name));
        }
        let hashes = body.split_off(held * 32);
        if hashes.len() / 32 > NODE_REQUEST_HASHES_MAX {
            return Err(DecodeError::Field(name, "number of hashes"));
        }
        Ok(Self {
            held: body.chunks_exact(32).filter_map(ManifestId::from_slice).collect(),
            hashes: hashes.chunks_exact(32).filter_map(NodeHash::from_slice).collect(),
        })
    }
}

/// End of the answer to a NODE_REQUEST. It states how many of the requested nodes did not come, or
/// [`NodesEnd::HELD_UNKNOWN`] if the answerer knows none of the held manifests and sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodesEnd {
    /// Number of nodes requested by hash that did not come.
    pub missing: u32,
}

impl NodesEnd {
    /// The answerer cannot tell which nodes the asker lacks. The asker has to request by hash,
    /// level by level.
    pub const HELD_UNKNOWN: u32 = u32::MAX;

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.missing);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        match body.len() {
            4 => Ok(Self { missing: body.get_u32() }),
            _ => Err(DecodeError::Length(name)),
        }
    }
}
