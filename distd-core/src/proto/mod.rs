//! The protocol `distd/1`: RFC 7574 messages as length-prefixed frames on QUIC streams.
//!
//! docs/protocol.md is the specification. [`frame`] has the messages, [`FrameDecoder`] cuts a stream into them,
//! [`control`] follows the control stream of one swarm and [`batch`] one request stream. All of it is sans-io.

pub mod batch;
pub mod close;
mod codec;
pub mod control;
pub mod frame;
pub mod stream;
mod varint;

pub use codec::{DecodeError, Frame, FrameDecoder};
pub use varint::{put_varint, take_varint};
pub(crate) use varint::{unzigzag, zigzag};

/// ALPN of the protocol proper: the client must show a certificate of the realm.
pub const ALPN: &[u8] = b"distd/1";

/// ALPN of enrolment: the only one that needs no client certificate.
pub const ALPN_ENROLL: &[u8] = b"distd-enroll/1";
