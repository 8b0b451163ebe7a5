//! HALT and NEWER: what a node is told without asking (docs/protocol.md, "News").

use bytes::{Buf, BufMut, Bytes};

use crate::fleet::HALT_BYTES_MAX;
use crate::proto::codec::DecodeError;

/// A signed halt notice, 1 to [`HALT_BYTES_MAX`] bytes, opaque to the protocol (docs/rollouts.md,
/// "Halt notices").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltBody(pub Bytes);

impl HaltBody {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(in crate::proto) fn decode(name: &'static str, body: Bytes) -> Result<Self, DecodeError> {
        if body.is_empty() || body.len() > HALT_BYTES_MAX {
            return Err(DecodeError::Length(name));
        }
        Ok(Self(body))
    }
}

/// Version of the timestamp that was current when a channel last changed. It is a hint: the asker
/// verifies what it then gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newer {
    /// The version.
    pub version: u64,
}

impl Newer {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.version);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() != 8 {
            return Err(DecodeError::Length(name));
        }
        Ok(Self { version: body.get_u64() })
    }
}
