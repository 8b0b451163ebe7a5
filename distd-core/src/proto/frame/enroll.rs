//! ENROLL and ENROLLED: opaque to the protocol, so that relays forward what they cannot use.

use bytes::Bytes;

/// Body of an enrolment or renewal, msgpack as docs/trust.md says. At most one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollBody(pub Bytes);
