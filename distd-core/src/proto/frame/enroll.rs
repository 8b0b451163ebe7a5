//! ENROLL and ENROLLED: opaque to the protocol, so relays can forward bodies that they cannot read.

use bytes::{BufMut, Bytes};

use crate::proto::codec::DecodeError;

/// Body of an enrolment or renewal, msgpack as in docs/trust.md. It fits in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollBody(pub Bytes);

impl EnrollBody {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(in crate::proto) fn decode(_name: &'static str, body: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(body))
    }
}
