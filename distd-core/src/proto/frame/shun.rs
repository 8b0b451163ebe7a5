//! SHUN: asks the receiver not to use the named nodes, because they sent the sender wrong bytes.

use bytes::{Buf, BufMut, Bytes};

use crate::NodeId;
use crate::bounds::SHUN_NODES_MAX;
use crate::proto::codec::DecodeError;

const ID_BYTES: usize = 16;

/// Nodes the sender shuns, 1 to `SHUN_NODES_MAX`. The sender gives no proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shun(pub Vec<NodeId>);

impl Shun {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        self.0.iter().take(SHUN_NODES_MAX).for_each(|node| out.put_slice(&node.0));
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let count = body.len() / ID_BYTES;
        if !body.len().is_multiple_of(ID_BYTES) || !(1..=SHUN_NODES_MAX).contains(&count) {
            return Err(DecodeError::Length(name));
        }
        let mut nodes = Vec::with_capacity(count);
        while body.has_remaining() {
            let mut id = [0; ID_BYTES];
            body.copy_to_slice(&mut id);
            nodes.push(NodeId(id));
        }
        Ok(Self(nodes))
    }
}
