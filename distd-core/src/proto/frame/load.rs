//! LOAD: how busy the sender's uplink is, so that an asker can choose between two parents.

use bytes::{Buf, BufMut, Bytes};

use crate::proto::codec::DecodeError;

/// Load of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Share of the sender's uplink that is in use, percent, `0..=100`.
    pub percent: u8,
}

impl Load {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.percent);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() != 1 {
            return Err(DecodeError::Length(name));
        }
        match body.get_u8() {
            percent @ 0..=100 => Ok(Self { percent }),
            _ => Err(DecodeError::Field(name, "percentage")),
        }
    }
}
