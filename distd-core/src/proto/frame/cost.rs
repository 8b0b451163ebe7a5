//! COST: what chunks are on the wire, before any is asked for. COST_REQUEST has the form of a REQUEST.

use bytes::{Buf, BufMut, Bytes};

use crate::proto::codec::DecodeError;

/// What the chunks of a COST_REQUEST would cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How many of them the answerer, or its parent, knows.
    pub chunks: u64,
    /// Their packed bytes together, as DATA carries them; frame headers come on top.
    pub bytes: u64,
}

impl Cost {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.chunks);
        out.put_u64(self.bytes);
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        match body.len() {
            16 => Ok(Self { chunks: body.get_u64(), bytes: body.get_u64() }),
            _ => Err(DecodeError::Length("COST")),
        }
    }
}
