//! INTEGRITY, NODE_REQUEST and NODES_END: the manifest's nodes.

use bytes::{Buf, BufMut, Bytes};

use crate::limits::{HELD_MANIFESTS_MAX, MANIFEST_LEVELS_MAX, NODE_BYTES_MAX, NODE_REQUEST_HASHES_MAX};
use crate::proto::codec::DecodeError;
use crate::{ManifestId, NodeHash};

/// Level under which a root node travels: it is asked for by the manifest id in place of a node hash.
pub const ROOT_LEVEL: u8 = 255;

/// Level under which a leaf travels in compact form, to someone who named a held manifest that the sender knows.
pub const COMPACT_LEAF: u8 = 254;

/// One manifest node (RFC 7574 §8.7: there a hash, here the node whose hash the receiver already trusts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its level: 0 is a leaf.
    pub level: u8,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Node {
    const NAME: &'static str = "INTEGRITY";

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.level);
        out.put_slice(&self.bytes);
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() < 2 || body.len() > 1 + NODE_BYTES_MAX {
            return Err(DecodeError::Length(Self::NAME));
        }
        let level = body.get_u8();
        if level >= MANIFEST_LEVELS_MAX && level != ROOT_LEVEL && level != COMPACT_LEAF {
            return Err(DecodeError::Field(Self::NAME, "level"));
        }
        Ok(Self { level, bytes: body })
    }
}

/// Asks for nodes: with no hashes (or the manifest id alone, for the root too), all that the held manifests lack; with
/// hashes, those and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRequest {
    /// Manifests the asker has in full. The answerer skips what they share, where it knows them.
    pub held: Vec<ManifestId>,
    /// Nodes by hash.
    pub hashes: Vec<NodeHash>,
}

impl NodeRequest {
    const NAME: &'static str = "NODE_REQUEST";

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(u8::try_from(self.held.len()).expect("callers stay within HELD_MANIFESTS_MAX"));
        for id in &self.held {
            out.put_slice(&id.0);
        }
        for hash in &self.hashes {
            out.put_slice(&hash.0);
        }
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let held = body.try_get_u8().map_err(|_| DecodeError::Length(Self::NAME))? as usize;
        if held > HELD_MANIFESTS_MAX {
            return Err(DecodeError::Field(Self::NAME, "number of held manifests"));
        }
        if body.len() < held * 32 || !body.len().is_multiple_of(32) {
            return Err(DecodeError::Length(Self::NAME));
        }
        let hashes = body.split_off(held * 32);
        if hashes.len() / 32 > NODE_REQUEST_HASHES_MAX {
            return Err(DecodeError::Field(Self::NAME, "number of hashes"));
        }
        Ok(Self {
            held: body.chunks_exact(32).filter_map(ManifestId::from_slice).collect(),
            hashes: hashes.chunks_exact(32).filter_map(NodeHash::from_slice).collect(),
        })
    }
}

/// Ends the answer to a NODE_REQUEST and says how many of the named nodes are not here;
/// [`NodesEnd::HELD_UNKNOWN`] when none of the held manifests is known and nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodesEnd {
    /// Nodes asked for by hash that did not come.
    pub missing: u32,
}

impl NodesEnd {
    /// The answerer cannot tell what the asker lacks: ask by hash, level by level.
    pub const HELD_UNKNOWN: u32 = u32::MAX;

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.missing);
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        match body.len() {
            4 => Ok(Self { missing: body.get_u32() }),
            _ => Err(DecodeError::Length("NODES_END")),
        }
    }
}
