//! ENROLL and ENROLLED: opaque to the protocol, so relays can forward bodies that they cannot read.

use bytes::Bytes;

/// Body of an enrolment or renewal, msgpack as in docs/trust.md. It fits in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollBody(pub Bytes);
