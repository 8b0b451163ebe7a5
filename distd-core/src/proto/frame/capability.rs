//! CAPABILITY: a newer capability of the sender, for the swarm of a control stream that is open.
//! The first one travels in the HANDSHAKE.

use bytes::{BufMut, Bytes};

use crate::bounds::CAPABILITY_FRAME_MAX;
use crate::proto::codec::DecodeError;

/// A signed capability, 1 to [`CAPABILITY_FRAME_MAX`] bytes, opaque to the protocol
/// (docs/fleet.md, "Capabilities").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilityBody(pub Bytes);

impl CapabilityBody {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(in crate::proto) fn decode(name: &'static str, body: Bytes) -> Result<Self, DecodeError> {
        if body.is_empty() || body.len() > CAPABILITY_FRAME_MAX {
            return Err(DecodeError::Length(name));
        }
        Ok(Self(body))
    }
}
