//! COST: the bytes that chunks take on the wire, known before any is requested. COST_REQUEST has
//! the form of a REQUEST.

use bytes::{Buf, BufMut, Bytes};

use crate::proto::codec::DecodeError;

/// Cost of the chunks of a COST_REQUEST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of the requested chunks whose cost the answerer, or its parent, knows.
    pub chunks: u64,
    /// Packed bytes of these chunks together, as DATA carries them. Frame headers come on top.
    pub bytes: u64,
}

impl Cost {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.chunks);
        out.put_u64(self.bytes);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        match body.len() {
            16 => Ok(Self { chunks: body.get_u64(), bytes: body.get_u64() }),
            _ => Err(DecodeError::Length(name)),
        }
    }
}
