//! CHOKE: the sender answers no requests (RFC 7574 §8.10), with the time to ask again.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::proto::codec::DecodeError;

/// Most alternates in one frame.
const ALTERNATES_MAX: usize = 16;

/// Refusal of requests for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choke {
    /// Time to wait before asking again; milliseconds on the wire.
    pub retry_after: Duration,
    /// Other peers to ask, `HOST:PORT`. Nodes send none and ignore received ones
    /// (docs/decisions/0011).
    pub alternates: Vec<String>,
}

impl Choke {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(u32::try_from(self.retry_after.as_millis()).unwrap_or(u32::MAX));
        for alternate in self.alternates.iter().take(ALTERNATES_MAX) {
            let bytes = &alternate.as_bytes()[..alternate.len().min(255)];
            out.put_u8(bytes.len() as u8);
            out.put_slice(bytes);
        }
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let short = |_| DecodeError::Length(name);
        let retry_after = Duration::from_millis(u64::from(body.try_get_u32().map_err(short)?));
        let mut alternates = Vec::new();
        while body.has_remaining() {
            let len = body.get_u8() as usize;
            if alternates.len() == ALTERNATES_MAX || len > body.remaining() {
                return Err(DecodeError::Length(name));
            }
            let text = String::from_utf8(body.split_to(len).to_vec())
                .map_err(|_| DecodeError::Field(name, "alternate"))?;
            alternates.push(text);
        }
        Ok(Self { retry_after, alternates })
    }
}
