//! The protocol `distd/1`: RFC 7574 messages as length-prefixed frames on QUIC streams.
//!
//! docs/protocol.md is the specification. [`frame`] has the messages, [`FrameDecoder`] splits a
//! stream into frames, [`control`] keeps the state of a swarm's control stream, and [`batch`] that
//! of a request stream. All of it is sans-io.

pub mod batch;
pub mod close;
mod codec;
pub mod control;
pub mod frame;
pub mod stream;
mod varint;

pub use codec::{DecodeError, FrameDecoder};
pub use frame::Frame;
pub use varint::{put_varint, take_varint};
pub(crate) use varint::{unzigzag, zigzag};

/// ALPN of the protocol. The client must present a certificate of the realm.
pub const ALPN: &[u8] = b"distd/1";

/// ALPN of enrolment, the only one without a client certificate.
pub const ALPN_ENROLL: &[u8] = b"distd-enroll/1";
